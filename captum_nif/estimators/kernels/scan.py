"""Neighbors of one point among consecutive samples of an axis, sixteen at a time."""

from __future__ import annotations

import numpy as np

from captum_nif._compile import Int, routine
from captum_nif.estimators.kernels import lanes
from captum_nif.estimators.kernels.grid import IntArray

NOWHERE = np.int32(np.iinfo(np.int32).max)
"""Larger than any distance."""


def nowhere(k: int, capacity: int) -> IntArray:
    """The k + 1 nearest of sixteen points before any is visited, [capacity * 16].

    Lists longer than that start with -1, less than any distance. Kernels load this
    again for each sixteen points: kept in registers, it would take them from the lists.
    """
    lists = np.full((capacity, lanes.WIDTH), NOWHERE, np.int32)
    lists[: capacity - k - 1] = -1
    return lists.reshape(-1)


@routine
def count_within(
    ordered: IntArray, other: IntArray, low: Int, high: Int, a: Int, b: Int, rho: Int
) -> Int:
    """How many samples low, ..., high - 1 are at most rho from the point (a, b).

    ``ordered`` and ``other`` are the samples' scores along both axes, and hold at least
    fifteen more entries after the last sample.
    """
    center_a, center_b = lanes.splat(np.int32(a)), lanes.splat(np.int32(b))
    reach = lanes.splat(np.int32(rho))
    count = np.intp(0)
    for at in range(low, high, lanes.WIDTH):
        d = lanes.maximum(
            lanes.distance(lanes.load(ordered, at), center_a),
            lanes.distance(lanes.load(other, at), center_b),
        )
        count += lanes.count_bits(lanes.mask_at_most(d, reach) & first(high - at))
    return count


@routine
def nearest_within(
    ordered: IntArray,
    other: IntArray,
    low: Int,
    high: Int,
    a: Int,
    b: Int,
    rank: Int,
    bound: Int,
    near: IntArray,
) -> tuple[Int, Int]:
    """The distance of some rank from (a, b) to samples low, ..., high - 1.

    Args:

        ordered: Scores along the axis, see :func:`count_within`.
        other: Scores along the other axis, in the same order.
        low: First sample,
        high: and the one after the last.
        a: The point along the axis,
        b: and along the other one.
        rank: 1 for the smallest distance.
        bound: At least the result.
        near: Working memory: as many distances as there are samples, and sixteen more.

    Returns:

        The distance, and how many samples are no further.
    """
    center_a, center_b = lanes.splat(np.int32(a)), lanes.splat(np.int32(b))
    reach = lanes.splat(np.int32(bound))
    n = np.intp(0)
    for at in range(low, high, lanes.WIDTH):
        d = lanes.maximum(
            lanes.distance(lanes.load(ordered, at), center_a),
            lanes.distance(lanes.load(other, at), center_b),
        )
        mask = lanes.mask_at_most(d, reach) & first(high - at)
        while mask != 0:
            i = at + lanes.first_bit(mask)
            near[n] = max(abs(ordered[i] - a), abs(other[i] - b))
            n += 1
            mask &= mask - np.int32(1)
    for i in range(n, n + lanes.WIDTH):
        near[i] = NOWHERE
    if n <= lanes.WIDTH:
        return _select_of_few(near, n, rank)
    return _select(near, n, rank, bound)


@routine
def _select_of_few(values: IntArray, n: Int, rank: Int) -> tuple[Int, Int]:
    """The value of some rank among at most sixteen, and how many are up to it."""
    everything = lanes.load(values, 0)
    best, up_to_best = NOWHERE, n
    for i in range(n):
        count = lanes.count_bits(lanes.mask_at_most(everything, lanes.splat(values[i])))
        better = count >= rank and values[i] < best
        best = values[i] if better else best
        up_to_best = count if better else up_to_best
    return best, up_to_best


@routine
def _select(values: IntArray, n: Int, rank: Int, bound: Int) -> tuple[Int, Int]:
    """The same among any number of values, by halving the interval that holds it."""
    low, high = -1, bound  # too few values up to low, enough up to high
    up_to_high = n
    while high - low > 1:
        middle = (low + high) >> 1
        count = 0
        upto = lanes.splat(np.int32(middle))
        for at in range(0, n, lanes.WIDTH):
            count += lanes.count_bits(lanes.mask_at_most(lanes.load(values, at), upto))
        if count < rank:
            low = middle
        else:
            high, up_to_high = middle, count
        if count == rank:
            largest = -1
            for i in range(n):
                if values[i] <= middle:
                    largest = max(largest, values[i])
            return largest, rank
    return high, up_to_high


@routine
def first(count: Int) -> Int:
    """Mask of the first ``count`` lanes, of all if there are more."""
    return np.int32((1 << min(count, lanes.WIDTH)) - 1)
