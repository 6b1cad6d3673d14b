r"""
The plain engine: neighbors counted with torch operations, on any device and scale.

Start here: this is the readable form of what the other engines compute, to the last
bit. It holds all distances of a block of points in a block of planes at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from captum_nif._blocks import block_length, blocks
from captum_nif.estimators.marginals import LEAST_DISTANCE, QueryPoints
from captum_nif.estimators.terms import PMIBlock, SumBlock, Terms

_SIDE = 32
"""Variables of each set in a block, where memory allows."""

_BYTES = 32
"""Of temporary tensors for each distance in the plane."""


def pmi_blocks(
    x: QueryPoints, y: QueryPoints, k: int, terms: Terms
) -> Iterator[PMIBlock]:
    """PMI of all points for all pairs of variables, a block at a time.

    Yields:

        Points, variables of x, variables of y, and their PMI in units of terms.
    """
    each = _BYTES * x.references
    width_y = block_length(each, min(max(y.size, 1), _SIDE))
    width_x = block_length(each * width_y, min(max(x.size, 1), _SIDE))
    height = block_length(each * width_y * width_x)
    for rows in blocks(x.count, height):
        for columns_x in blocks(x.size, width_x):
            along_x = _Distances(x, rows, columns_x)
            for columns_y in blocks(y.size, width_y):
                along_y = _Distances(y, rows, columns_y)
                yield rows, columns_x, columns_y, _pmi(along_x, along_y, k, terms)


def sum_blocks(
    x: QueryPoints, y: QueryPoints, k: int, terms: Terms
) -> Iterator[SumBlock]:
    """PMI summed over points, a block at a time.

    Yields:

        Variables of x, variables of y, number of points, and the sum of their PMI.
    """
    for rows, columns_x, columns_y, pmi in pmi_blocks(x, y, k, terms):
        yield columns_x, columns_y, rows.stop - rows.start, pmi.sum(0)


class _Distances:
    """Distances from a block of points to all samples, along a block of variables."""

    def __init__(self, points: QueryPoints, rows: slice, columns: slice) -> None:
        self.distances = points.distances(rows, columns)
        self.ordered = self.distances.contiguous().sort(dim=-1).values
        self.magnitudes = points.magnitudes(rows, columns)
        self.roundoff = points.roundoff

    def counts(self, inside: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """How many samples lie strictly inside, and within reach, along each axis."""
        strict = torch.searchsorted(self.ordered, inside.contiguous())
        closed = torch.searchsorted(self.ordered, reach.contiguous(), right=True)
        return strict, closed


def _pmi(x: _Distances, y: _Distances, k: int, terms: Terms) -> Tensor:
    """PMI of a block of points for a block of pairs, [points, x, y]."""
    along_x, along_y = x.distances[:, :, None], y.distances[:, None]
    rho = torch.maximum(along_x, along_y).topk(k, largest=False).values[..., -1]
    near = _Radius.of(x, y, along_x, along_y, rho)
    inside_x, reach_x = near.bounds(rho, near.tolerance_x)
    inside_y, reach_y = near.bounds(rho, near.tolerance_y)

    def margin(strict: Tensor, closed: Tensor) -> Tensor:
        edge = (closed > strict) & ~near.is_zero
        return terms.margin[edge.long(), closed]

    within = (along_x <= reach_x[..., None]) & (along_y <= reach_y[..., None])
    joint = terms.joint[near.is_zero.long(), within.sum(-1)]
    strict_x, closed_x = x.counts(inside_x, reach_x)
    strict_y, closed_y = y.counts(inside_y.mT, reach_y.mT)
    return joint - margin(strict_x, closed_x) - margin(strict_y.mT, closed_y.mT)


class _Radius(NamedTuple):
    """How far distances along either axis may be from rho by rounding alone.

    Attributes:
        tolerance_x (Tensor): along x, [points, x, y]; 0 if distances are exact.
        tolerance_y (Tensor): along y.
        is_zero (Tensor): whether rho itself is 0 but for rounding.
    """

    tolerance_x: Tensor | int
    tolerance_y: Tensor | int
    is_zero: Tensor

    @staticmethod
    def bounds(rho: Tensor, tolerance: Tensor | int) -> tuple[Tensor, Tensor]:
        """Distances are inside rho below the first, and within it up to the second.

        Equal values are inside, whatever the tolerance.
        """
        if isinstance(tolerance, int):
            return rho, rho
        return (rho - tolerance).clamp(min=LEAST_DISTANCE), rho + tolerance

    @classmethod
    def of(
        cls, x: _Distances, y: _Distances, along_x: Tensor, along_y: Tensor, rho: Tensor
    ) -> _Radius:
        """The radius rho of the k-th nearest sample in the plane, [points, x, y].

        Rho is a distance along x, along y, or along both, and as uncertain as that. The
        axis that attains it compares like with like; the other allows for both errors.
        Units of one axis thus do not blur the other.
        """
        if x.roundoff == y.roundoff == 0:
            return cls(0, 0, rho == 0)
        here = rho[..., None]
        from_x = ((along_x == here) & (along_y <= here)).any(-1)
        from_y = ((along_y == here) & (along_x <= here)).any(-1)
        error_x = x.roundoff * (x.magnitudes[:, :, None] + rho)
        error_y = y.roundoff * (y.magnitudes[:, None] + rho)
        both = error_x + error_y
        return cls(
            torch.where(from_x, error_x, both),
            torch.where(from_y, error_y, both),
            (~from_x | (rho <= error_x)) & (~from_y | (rho <= error_y)),
        )
