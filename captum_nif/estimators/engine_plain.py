r"""
The plain engine: neighbours counted with torch operations, on any device and scale.

It holds all distances of a block of points in a block of planes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from captum_nif._blocks import blocks
from captum_nif.estimators.marginals import Centres
from captum_nif.estimators.terms import Sums, Terms, Values

_BUDGET = 1 << 22
"""Distances in the plane held at a time."""

_SIDE = 32
"""Variables of each set in a block, where the budget allows."""


def pmi_blocks(x: Centres, y: Centres, k: int, terms: Terms) -> Iterator[Values]:
    """PMI of all points for all pairs of variables, a block at a time.

    Yields:

        Points, variables of x, variables of y, and their PMI in units of terms.
    """
    width_y = max(1, min(y.size, _SIDE, _BUDGET // x.others))
    width_x = max(1, min(x.size, _SIDE, _BUDGET // (x.others * width_y)))
    height = max(1, _BUDGET // (x.others * width_y * width_x))
    for rows in blocks(x.count, height):
        for columns in blocks(x.size, width_x):
            along_x = _Axis(x, rows, columns)
            for others in blocks(y.size, width_y):
                along_y = _Axis(y, rows, others)
                yield rows, columns, others, _pmi(along_x, along_y, k, terms)


def sum_blocks(x: Centres, y: Centres, k: int, terms: Terms) -> Iterator[Sums]:
    """PMI summed over points, a block at a time.

    Yields:

        Variables of x, variables of y, number of points, and the sum of their PMI.
    """
    for rows, columns, others, pmi in pmi_blocks(x, y, k, terms):
        yield columns, others, rows.stop - rows.start, pmi.sum(0)


class _Axis:
    """Distances from a block of points to all samples, along a block of variables."""

    def __init__(self, centres: Centres, rows: slice, columns: slice) -> None:
        self.distances = centres.distances(rows, columns)
        self.ordered = self.distances.contiguous().sort(dim=-1).values
        self.magnitudes = centres.magnitudes(rows, columns)
        self.roundoff = centres.roundoff

    def counts(self, inside: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """How many samples lie strictly inside, and within reach, along each axis."""
        strict = torch.searchsorted(self.ordered, inside.contiguous())
        closed = torch.searchsorted(self.ordered, reach.contiguous(), right=True)
        return strict, closed


def _pmi(x: _Axis, y: _Axis, k: int, terms: Terms) -> Tensor:
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


def _tolerance(x: _Axis, y: _Axis, rho: Tensor) -> Tensor | int:
    """How much distances of about rho may differ by rounding alone; 0 if exact."""
    roundoff = max(x.roundoff, y.roundoff)
    if roundoff == 0:
        return 0
    return roundoff * (x.magnitudes[:, :, None] + y.magnitudes[:, None] + rho)


class Whole(Centres):
    """All variables of some points taken together as one, by their Chebyshev distance.

    Joint PMI of a vector is PMI of this one variable.
    """

    size = 1

    def __init__(self, parts: Centres) -> None:
        self._parts = parts
        self.count, self.others = parts.count, parts.others
        self.roundoff, self.device = parts.roundoff, parts.device

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Largest distance over the components."""
        return self._largest(self._parts.distances, rows, self.others)

    def magnitudes(self, rows: slice, columns: slice) -> Tensor:
        """Largest magnitude over the components."""
        return self._largest(self._parts.magnitudes, rows, 1)

    def _largest(
        self, of: Callable[[slice, slice], Tensor], rows: slice, each: int
    ) -> Tensor:
        width = max(1, _BUDGET // (each * (rows.stop - rows.start)))
        largest: Tensor | None = None
        for columns in blocks(self._parts.size, width):
            here = of(rows, columns).amax(dim=1, keepdim=True)
            largest = here if largest is None else torch.maximum(largest, here)
        assert largest is not None, "a vector has at least one variable"
        return largest
