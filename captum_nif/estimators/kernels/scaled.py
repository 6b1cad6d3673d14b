"""Neighbors on the scale of the values themselves, counted as the plain engine does.

Distances are floats, and those that tie but for rounding count as equal. Computed
distances never decrease along a sorted variable on either side of a point, so a search
that stops early, and bisection, give what comparing with every sample would.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captum_nif._compile import Int, kernel, routine
from captum_nif.estimators.kernels.grid import LongArray
from captum_nif.estimators.marginals import LEAST_DISTANCE

Floats = NDArray[np.float64]


class ScaledAxis(NamedTuple):
    """Some variables, row by row, and points on their axes.

    Attributes:
        values: Of all samples, [variables, N].
        ordered: The same in ascending order.
        order: Which samples these are.
        points: Where the points lie, [variables, points].
        scale: What distances from a point are divided by, [variables, points].
    """

    values: Floats
    ordered: Floats
    order: LongArray
    points: Floats
    scale: Floats


@kernel
def pointwise(
    x: ScaledAxis,
    y: ScaledAxis,
    own: Int,
    k: Int,
    roundoff_x: float,
    roundoff_y: float,
    joint: LongArray,
    margin: LongArray,
) -> LongArray:
    """PMI of all points for all pairs of variables, [points, x, y].

    Args:

        x: Variables of x,
        y: and of y.
        own: 1 if the points are the samples, each out of its own reach, else 0.
        k: Number of neighbors.
        roundoff_x: Relative error of a distance along x,
        roundoff_y: and along y.
        joint: The terms of the formula for the plane,
        margin: and those for an axis.
    """
    points = x.points.shape[1]
    pmi = np.empty((points, len(x.points), len(y.points)), np.int64)
    nearest = np.empty(k, np.float64)
    for v in range(len(x.points)):
        for w in range(len(y.points)):
            ordered, order, other = x.ordered[v], x.order[v], y.values[w]
            for i in range(points):
                a, b = x.points[v, i], y.points[w, i]
                unit_a, unit_b = x.scale[v, i], y.scale[w, i]
                self = i if own == 1 else -1
                rho = nearest_along(
                    ordered, order, other, a, b, unit_a, unit_b, self, nearest
                )
                from_x = from_y = False
                low, high = interval(ordered, a, unit_a, rho, True)
                for p in range(low, high):
                    if order[p] != self:
                        along_x = abs(ordered[p] - a) / unit_a
                        along_y = abs(other[order[p]] - b) / unit_b
                        from_x |= along_x == rho and along_y <= rho
                        from_y |= along_y == rho
                error_x = roundoff_x * (abs(a) / unit_a + rho)
                error_y = roundoff_y * (abs(b) / unit_b + rho)
                near_x = error_x if from_x else error_x + error_y
                near_y = error_y if from_y else error_x + error_y
                is_zero = (not from_x or rho <= error_x) and (
                    not from_y or rho <= error_y
                )
                low, high = interval(ordered, a, unit_a, rho + near_x, True)
                count = -own
                for p in range(low, high):
                    count += abs(other[order[p]] - b) / unit_b <= rho + near_y
                term_x = margin_of(
                    ordered, a, unit_a, rho, near_x, own, is_zero, margin
                )
                term_y = margin_of(
                    y.ordered[w], b, unit_b, rho, near_y, own, is_zero, margin
                )
                pmi[i, v, w] = joint[int(is_zero), count] - term_x - term_y
    return pmi


@routine
def nearest_along(
    ordered: Floats,
    order: LongArray,
    other: Floats,
    a: float,
    b: float,
    unit_a: float,
    unit_b: float,
    self: Int,
    nearest: Floats,
) -> float:
    """Distance from (a, b) to the k-th nearest sample, walking away from a both ways.

    Args:

        ordered: The axis walked along, in ascending order,
        order: and which samples these are.
        other: Their values along the other axis, sample by sample.
        a: The point,
        b: along both axes.
        unit_a: What distances along one axis are divided by,
        unit_b: and along the other.
        self: The sample that is the point itself; -1 for none.
        nearest: Working memory: k distances.
    """
    samples, last = len(ordered), len(nearest) - 1
    nearest[:] = np.inf
    up: Int = np.searchsorted(ordered, a)
    down = up - 1
    ahead = (ordered[up] - a) / unit_a if up < samples else np.inf
    behind = (a - ordered[down]) / unit_a if down >= 0 else np.inf
    while True:
        d = min(ahead, behind)
        if d >= nearest[last]:
            return float(nearest[last])
        if ahead <= behind:
            sample = order[up]
            up += 1
            ahead = (ordered[up] - a) / unit_a if up < samples else np.inf
        else:
            sample = order[down]
            down -= 1
            behind = (a - ordered[down]) / unit_a if down >= 0 else np.inf
        if sample == self:
            continue
        d = max(d, abs(other[sample] - b) / unit_b)
        if d < nearest[last]:
            at = last
            while at > 0 and nearest[at - 1] > d:
                nearest[at] = nearest[at - 1]
                at -= 1
            nearest[at] = d


@routine
def margin_of(
    ordered: Floats,
    a: float,
    unit: float,
    rho: float,
    near: float,
    own: Int,
    is_zero: bool,
    margin: LongArray,
) -> Int:
    """The term of one axis for a point at a; it counts itself if ``own`` is 1."""
    low, high = interval(ordered, a, unit, rho + near, True)
    inside = max(rho - near, LEAST_DISTANCE)
    low_in, high_in = interval(ordered, a, unit, inside, False)
    closed, strict = high - low - own, high_in - low_in - own
    return margin[int(closed > strict and not is_zero), closed]


@routine
def interval(
    ordered: Floats, a: float, unit: float, bound: float, closed: bool
) -> tuple[Int, Int]:
    """Samples whose distance from a is less than a bound, or equal to it if closed."""
    middle: Int = np.searchsorted(ordered, a)
    low, high = 0, middle
    while low < high:
        at = (low + high) >> 1
        d = (a - ordered[at]) / unit
        if d < bound or (closed and d == bound):
            high = at
        else:
            low = at + 1
    begin = low
    low, high = middle, len(ordered)
    while low < high:
        at = (low + high) >> 1
        d = (ordered[at] - a) / unit
        if d < bound or (closed and d == bound):
            low = at + 1
        else:
            high = at
    return begin, low
