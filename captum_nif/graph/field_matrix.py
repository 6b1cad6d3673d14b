"""Matrices between two maps whose places see each other only in part.

A convolution links every channel of a place to every channel of the places in its
field. Such a matrix is held as one small full matrix per pair of places: a number per
link, and next to nothing to say where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_nif._blocks import blocks
from captum_nif.graph.elements import sorted_sparse

_BUDGET = 1 << 23
"""Numbers held at a time while a product is made (64 MiB of float64)."""

_DENSE = 0.5
"""Share of the pairs of nodes above which a full matrix takes less than a sparse one.
"""


@dataclass(frozen=True)
class FieldMatrix:
    """A matrix [a, b] between the nodes of two maps, 0 outside of fields.

    Nodes are ordered by channel, then by place.

    Args:
        blocks (Tensor): K full matrices between channels, [K, channels of the source,
            channels of the target].
        rows (Tensor): the place of the source that each belongs to, [K].
        columns (Tensor): the place of the target, [K].
        places (tuple of int): how many places the source and the target have.
    """

    blocks: Tensor
    rows: Tensor
    columns: Tensor
    places: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Nodes of the source and of the target."""
        _, source, target = self.blocks.shape
        return source * self.places[0], target * self.places[1]

    @property
    def mT(self) -> FieldMatrix:  # noqa: N802  # as torch.Tensor.mT
        """The transpose, [b, a], which shares the blocks."""
        return FieldMatrix(self.blocks.mT, self.columns, self.rows, self.places[::-1])

    def __matmul__(self, other: Tensor) -> Tensor:
        """The product with a matrix, [b, S], as [a, S]."""
        (a, b), (here, there) = self.shape, self.places
        found = other.new_empty(a, other.shape[1])
        width = max(1, _BUDGET // max(1, len(self.rows) * (a // here + b // there)))
        for part in blocks(other.shape[1], width):
            by_place = other[:, part].reshape(b // there, there, -1).transpose(0, 1)
            products = self.blocks @ by_place.contiguous()[self.columns]
            sums = products.new_zeros(here, *products.shape[1:])
            sums.index_add_(0, self.rows, products)
            found[:, part] = sums.transpose(0, 1).reshape(a, -1)
        return found

    def to_tensor(self) -> Tensor:
        """The same as a sparse tensor (COO), or as a full one if half of it is used."""
        (a, b), (here, there) = self.shape, self.places
        sources = torch.arange(0, a, here, device=self.rows.device)
        targets = torch.arange(0, b, there, device=self.rows.device)
        rows = self.rows[:, None, None] + sources[:, None]
        columns = self.columns[:, None, None] + targets
        if self.blocks.numel() > _DENSE * a * b:
            dense = self.blocks.new_zeros(a, b)
            dense[rows, columns] = self.blocks
            return dense
        at = (rows * b + columns).flatten()
        order = at.argsort()
        at = at[order]
        values = self.blocks.flatten()[order]
        return sorted_sparse(torch.stack([at // b, at % b]), values, (a, b))
