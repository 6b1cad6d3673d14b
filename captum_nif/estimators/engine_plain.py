r"""
The plain engine: neighbors counted with torch operations, on any device and scale.

Start here: this is the readable form of what the other engines compute, to the last
bit. It holds all distances of a block of points in a block of planes at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from captum_nif._blocks import block_length, blocks
from captum_nif.estimators.marginals import QueryPoints
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
    plane = torch.maximum(x.distances[:, :, None], y.distances[:, None])
    rho = plane.topk(k, largest=False).values[..., -1]
    tolerance = _tolerance(x, y, rho)
    inside, reach = rho - tolerance, rho + tolerance
    coincide = rho <= tolerance

    def margin(strict: Tensor, closed: Tensor) -> Tensor:
        edge = (closed > strict) & ~coincide
        return terms.margin[edge.long(), closed]

    c_joint = (plane <= reach[..., None]).sum(-1)
    joint = terms.joint[coincide.long(), c_joint]
    strict_x, closed_x = x.counts(inside, reach)
    strict_y, closed_y = y.counts(inside.mT, reach.mT)
    return joint - margin(strict_x, closed_x) - margin(strict_y.mT, closed_y.mT)


def _tolerance(x: _Distances, y: _Distances, rho: Tensor) -> Tensor | int:
    """How much distances of about rho may differ by rounding alone; 0 if exact."""
    roundoff = max(x.roundoff, y.roundoff)
    if roundoff == 0:
        return 0
    return roundoff * (x.magnitudes[:, :, None] + y.magnitudes[:, None] + rho)
