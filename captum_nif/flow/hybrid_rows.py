"""Where samples and their hybrids are in the tensors of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_nif.tracing.layout import sample_axis
from captum_nif.tracing.origins import Labels


@dataclass(frozen=True)
class HybridRows:
    """Blocks of samples along an axis: one of each hybrid, the last of themselves.

    Args:
        axis (int): the axis that counts them.
        before (int): how often all of them come one after another along it.
        after (int): elements along it that follow each other within a sample.
        blocks (int): how many blocks of samples there are.
    """

    axis: int
    before: int
    after: int
    blocks: int

    def averaged(self, x: Tensor) -> Tensor:
        """A tensor of the same shape, with the mean over hybrids in every block."""
        parts = self._parts(x)
        hybrids = parts.narrow(self.axis + 1, 0, self.blocks - 1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean = hybrids.mean(self.axis + 1, keepdim=True, dtype=dtype).to(x.dtype)
        return mean.expand_as(parts).reshape(x.shape)

    def repeated(self, x: Tensor) -> Tensor:
        """A tensor of the same shape, with what the samples have in every block."""
        parts = self._parts(x)
        own = parts.narrow(self.axis + 1, self.blocks - 1, 1)
        return own.expand_as(parts).reshape(x.shape)

    def of_samples(self, x: Tensor) -> Tensor:
        """What the samples have, sample after sample, [S, ..., rest of the axes].

        Each is a batch of its own: of what is before and after it along the axis.
        """
        parts = self._parts(x).select(self.axis + 1, self.blocks - 1)
        parts = parts.unflatten(self.axis + 1, (-1, self.after))
        parts = parts.movedim(self.axis + 1, 0)
        own: Tensor = parts.flatten(self.axis + 1, self.axis + 2)
        return own

    def _parts(self, x: Tensor) -> Tensor:
        parts: Tensor = x.unflatten(self.axis, (self.before, self.blocks, -1))
        return parts


def hybrid_rows(
    labels: Labels | None, x: Tensor, n_rows: int, blocks: int
) -> HybridRows | None:
    """Where samples are in a tensor, if an axis tells.

    Args:
        labels (Labels or None): of the tensor.
        x (Tensor): the tensor.
        n_rows (int): samples and hybrids that run together.
        blocks (int): see :class:`HybridRows`.
    """
    if labels is None or labels.rows is None:
        return None
    where = sample_axis(x.shape, labels.rows, n_rows)
    return None if where is None else HybridRows(*where, blocks)


def averaged(slopes: Tensor, rows: HybridRows | None) -> Tensor:
    """Slopes averaged over hybrids, if it is known where these are."""
    return slopes if rows is None else rows.averaged(slopes)
