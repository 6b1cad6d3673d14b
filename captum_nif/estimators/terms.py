r"""
The seam between what is estimated and how neighbors are searched and counted.

For a point and a pair of variables (x, y), with Chebyshev distance in their plane, and
a sample never its own neighbor, an engine computes

- rho, the distance to the k-th nearest sample;
- ``c_joint``, ``c_x`` and ``c_y``, the samples at most rho away, in the plane and along
  each axis (closed balls);
- whether there is an *edge* along an axis: a sample exactly rho away, where rho > 0.

A formula is a table of terms in these; see :class:`Terms`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_nif.estimators.protocol import Progress

FIXED_POINT = 1 << 36
"""One nat in the integer units of terms. Sums of integers are exact, so a mean does not
depend on the order, the blocks or the threads in which it was summed; they fit into
int64 for eight million samples of variables that determine each other."""

PMIBlock = tuple[slice, slice, slice, Tensor]
"""Points, variables of x, variables of y, and PMI of that shape in units of terms."""

SumBlock = tuple[slice, slice, int, Tensor]
"""Variables of x, variables of y, number of points, and the sum of their PMI."""


@dataclass(frozen=True)
class Terms:
    """A formula for PMI, tabulated: PMI = joint - margin of x - margin of y.

    Attributes:
        joint (Tensor): Indexed by [rho = 0, c_joint], int64 in units of 2^-36 nats.
        margin (Tensor): Indexed by [edge, c_x] or [edge, c_y], likewise.
    """

    joint: Tensor
    margin: Tensor

    def to(self, device: torch.device) -> Terms:
        """The same on another device."""
        return Terms(self.joint.to(device), self.margin.to(device))


def fixed_point(nats: Tensor) -> Tensor:
    """Nats rounded to the units of terms."""
    return torch.round(nats * FIXED_POINT).long()


def to_nats(terms: Tensor) -> Tensor:
    """Sums of terms in nats, float64."""
    return terms.double().div_(FIXED_POINT)


def assemble_sums(
    sums: Iterable[SumBlock],
    shape: tuple[int, int],
    device: torch.device,
    progress: Progress | None,
) -> Tensor:
    """Sums of PMI over points, in nats, [a, b], from an engine's blocks."""
    total = torch.zeros(shape, dtype=torch.int64, device=device)
    for columns_x, columns_y, count, block in sums:
        total[columns_x, columns_y] += block
        if progress is not None:
            progress(count * block.numel())
    return to_nats(total)


def assemble_pmi(
    values: Iterable[PMIBlock],
    shape: tuple[int, int, int],
    device: torch.device,
    progress: Progress | None,
) -> Tensor:
    """PMI of points in nats, [N, a, b], from an engine's blocks."""
    pmi = torch.empty(shape, dtype=torch.float64, device=device)
    for rows, columns_x, columns_y, block in values:
        pmi[rows, columns_x, columns_y] = to_nats(block)
        if progress is not None:
            progress(block.numel())
    return pmi
