r"""
The plain engine: nearest-neighbour counts with torch operations, on any device.

For every point i and every pair of variables (x, y), with Chebyshev distance in the
plane of the pair, and a point never its own neighbour:

- rho is the distance to the k-th nearest sample;
- ``c_joint``, ``c_x`` and ``c_y`` count the samples at most rho away, in the plane and
  along each axis (closed balls);
- an axis has an *edge* sample if one lies exactly rho away along it.

The :class:`Terms` of a formula turn these counts into PMI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_nif.estimators.blocks import blocks
from captum_nif.estimators.marginals import Centres

FIXED_POINT = 2**40
"""One nat in the integer units of :class:`Terms`. Sums of integers are exact, so a mean
does not depend on the order, the blocks or the threads in which it was added up."""

_BUDGET = 1 << 22
"""Distances in the plane held at a time."""

_PAIRS = 32
"""Variables of each set in a block, where the budget allows."""


@dataclass(frozen=True)
class Terms:
    """A formula for PMI, tabulated: PMI = joint - margin of x - margin of y.

    Attributes:
        joint (Tensor): Indexed by [rho = 0, c_joint], int64 in units of 2^-40 nats.
        margin (Tensor): Indexed by [edge, c_x] or [edge, c_y], likewise.
    """

    joint: Tensor
    margin: Tensor

    def to(self, device: torch.device) -> Terms:
        """The same on another device."""
        return Terms(self.joint.to(device), self.margin.to(device))


def pmi_blocks(
    x: Centres, y: Centres, k: int, terms: Terms
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """PMI of all points for all pairs of variables, a block at a time.

    Yields:

        Points, variables of x, variables of y, and their PMI: int64 in units of
        2^-40 nats, of that shape.
    """
    width_y = max(1, min(y.size, _PAIRS, _BUDGET // x.others))
    width_x = max(1, min(x.size, _PAIRS, _BUDGET // (x.others * width_y)))
    height = max(1, _BUDGET // (x.others * width_y * width_x))
    for rows in blocks(x.count, height):
        for columns in blocks(x.size, width_x):
            along_x = _Axis(x, rows, columns)
            for others in blocks(y.size, width_y):
                along_y = _Axis(y, rows, others)
                yield rows, columns, others, _pmi(along_x, along_y, k, terms)


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
    rho = plane.kthvalue(k, dim=-1).values
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
