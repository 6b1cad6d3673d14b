"""Population workload: all N samples of all pairs of ranked variables.

For one pair, samples are put in the order of x, and within equal x of y. Sixteen
consecutive ones at a time look for their k nearest neighbors by walking away from
themselves in that order, both ways at once, one contiguous load per step, until no
sample further on can be nearer than the k-th so far. That takes some sqrt(k N) steps.

- In a run of equal x the way on is sorted by y, so a walk can end inside the run if the
  next x is too far away: half of all samples at 0, as after a ReLU, cost nothing extra.
- Samples equal in x and y have equal PMI: one stands for all, and no more copies than
  can be some point's k nearest neighbors take part.
- The few lanes whose walk is long (outliers in y) finish alone, scanning the samples
  within reach along the axis where they are fewer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from captum_nif._compile import Int, kernel, routine
from captum_nif.estimators.kernels import lanes
from captum_nif.estimators.kernels.around import around_sample, term_at
from captum_nif.estimators.kernels.grid import (
    Grid,
    IntArray,
    LongArray,
    Ranks,
    cumulate,
    within,
)
from captum_nif.estimators.kernels.scan import (
    count_within,
    first,
    nearest_within,
    nowhere,
)

FAR = np.int32(3 << 29)
"""A score further from every score than these are from each other."""

UNCOUNTED = np.int32(0)
"""Stands for a number of neighbors within rho that may be more than k. No count is 0,
and it is an index into the terms: copies of a point, which need no count, keep it."""

STEPS = 4
"""Steps of a walk between two looks at whether it may end."""

LONGEST = 256
"""Steps after which a walk is left to the scan."""

FEW = 1
"""Lanes that are not worth a walk of all sixteen."""

PADDING = LONGEST + lanes.WIDTH


class RankedAxis(NamedTuple):
    """Some ranked variables, row by row, ready for the kernels.

    Attributes:
        ranks: Twice the mean rank of every sample.
        scores: Its score.
        order: Samples in ascending order.
        ordered: Their scores.
        cumulative: Number of samples up to each doubled rank.
        distinct: Number of distinct values, one number per variable.
    """

    ranks: Ranks
    scores: IntArray
    order: Ranks
    ordered: IntArray
    cumulative: Ranks
    distinct: IntArray


def axis_of(ranks: Ranks, grid: Grid) -> RankedAxis:
    """Order variables by counting their ranks [variables, N]."""
    size, samples = ranks.shape
    axis = RankedAxis(
        ranks,
        scores=np.empty((size, samples), np.int32),
        order=np.empty_like(ranks),
        # Padded, to load sixteen lanes at the last sample.
        ordered=np.full((size, samples + lanes.WIDTH), FAR, np.int32),
        cumulative=np.empty((size, 2 * samples + 2), grid.before.dtype),
        distinct=np.zeros(size, np.int32),
    )
    _put_in_order(axis, grid.scores)
    return axis


@kernel
def _put_in_order(axis: RankedAxis, table: IntArray) -> None:
    size, samples = axis.ranks.shape
    ranks, scores, order, ordered = axis.ranks, axis.scores, axis.order, axis.ordered
    cumulative, distinct = axis.cumulative, axis.distinct
    cumulate(ranks, cumulative)
    place = np.empty(2 * samples + 2, np.int32)
    for v in range(size):
        for h in range(2, 2 * samples + 2):
            place[h] = cumulative[v, h - 1]
            distinct[v] += cumulative[v, h] > place[h]
        for i in range(samples):
            rank = np.uintp(ranks[v, i])
            at = np.uintp(place[rank])
            place[rank] += 1
            scores[v, i] = ordered[v, at] = table[rank]
            order[v, at] = i


class Scratch(NamedTuple):
    """Working memory for one pair of variables with N samples.

    ``walk_x`` and ``walk_y`` are padded for a walk before the first and after the last
    sample, arrays of samples for sixteen lanes after the last.
    """

    walk_x: IntArray
    walk_y: IntArray
    up: IntArray
    down: IntArray
    copies: IntArray
    sample: IntArray
    leader: IntArray
    place: IntArray
    rho: IntArray
    counts: IntArray
    late: IntArray
    y_along_x: IntArray
    x_along_y: IntArray
    near: IntArray
    nowhere: IntArray
    term: IntArray
    term_x: IntArray
    term_y: IntArray
    pmi: LongArray


def scratch_for(samples: int, k: int, capacity: int) -> Scratch:
    """Allocate working memory."""
    walk_x = np.full(samples + 2 * PADDING, FAR, np.int32)
    walk_x[:PADDING] = -FAR
    special: dict[str, Any] = {
        "walk_x": walk_x,
        "walk_y": np.zeros_like(walk_x),
        "place": np.zeros(2 * samples + 2, np.int32),
        "nowhere": nowhere(k, capacity),
        "pmi": np.zeros(samples, np.int64),
    }
    plain = [name for name in Scratch._fields if name not in special]
    rows = np.zeros((len(plain), samples + lanes.WIDTH), np.int32)
    return Scratch(**special | dict(zip(plain, rows, strict=True)))


@routine
def lay_out(x: RankedAxis, i: Int, y: RankedAxis, j: Int, k: Int, s: Scratch) -> Int:
    """Put the samples of a pair in order of x, then of y; thin out coinciding ones.

    Returns:

        Number of points in ``walk_x`` and ``walk_y`` from ``PADDING`` on. ``copies``
        says how many samples a point stands for, ``leader`` which point stands for the
        sample ``sample`` at a place in order.
    """
    samples = x.ranks.shape[1]
    untied = x.distinct[i] == samples
    for p in range(samples):
        s.y_along_x[p] = y.scores[j, np.uintp(x.order[i, p])]
        s.x_along_y[p] = x.scores[i, np.uintp(y.order[j, p])]
    if untied:
        for p in range(samples):
            s.walk_x[PADDING + p] = x.ordered[i, p]
            s.walk_y[PADDING + p] = s.y_along_x[p]
            s.sample[p] = x.order[i, p]
            s.leader[p] = p
            s.copies[p] = 1
            s.up[p] = 0
            s.down[p] = 0
        n = samples
    else:
        n = _lay_out_tied(x, i, y, j, k, s)
    for p in range(PADDING + n, PADDING + samples):
        s.walk_x[p] = FAR
    return n


@routine
def _lay_out_tied(
    x: RankedAxis, i: Int, y: RankedAxis, j: Int, k: Int, s: Scratch
) -> Int:
    samples = x.ranks.shape[1]
    ranks, cumulative, ordered = x.ranks[i], x.cumulative[i], x.ordered[i]
    order_y, scores_y, y_along_x = y.order[j], y.scores[j], s.y_along_x
    place, sample_at, leader, copies = s.place, s.sample, s.leader, s.copies
    walk_x, walk_y, up, down = s.walk_x, s.walk_y, s.up, s.down
    for rank in range(1, len(place)):  # assigning slices takes seconds to compile
        place[rank] = cumulative[rank - 1]
    for q in range(samples):
        sample = np.uintp(order_y[q])
        h = np.uintp(ranks[sample])
        at = np.uintp(place[h])
        place[h] += 1
        sample_at[at] = sample
        y_along_x[at] = scores_y[sample]
    n = 0
    p = 0
    lower = np.int32(-FAR)  # the x before the run of equal x
    while p < samples:
        h = np.uintp(ranks[np.uintp(sample_at[p])])
        end = cumulative[h]
        value = ordered[p]
        higher = ordered[end]
        while p < end:
            other = y_along_x[p]
            start = p
            while p < end and y_along_x[p] == other:
                leader[p] = n
                p += 1
            for copy in range(min(p - start, k + 2)):
                walk_x[PADDING + n] = value
                walk_y[PADDING + n] = other
                up[n] = higher - value
                down[n] = value - lower
                copies[n] = p - start if copy == 0 else 0
                n += 1
        lower = value
    return n


@routine
def walk(n: Int, k: Int, capacity: tuple[int, ...], s: Scratch) -> Int:
    """Find rho of all points, sixteen at a time.

    Sets ``rho``, and ``counts`` where just k samples are within it. Lists in ``late``
    the points for which rho is only an upper bound, and returns how many.
    """
    walk_x, walk_y, all_up, all_down = s.walk_x, s.walk_y, s.up, s.down
    rho, counts, late_points = s.rho, s.counts, s.late
    k_samples, uncounted = lanes.splat(np.int32(k)), lanes.splat(UNCOUNTED)
    late = 0
    for p in range(0, n, lanes.WIDTH):
        here = PADDING + p
        x, y = lanes.load(walk_x, here), lanes.load(walk_y, here)
        up, down = lanes.load(all_up, p), lanes.load(all_down, p)
        nearest = lanes.load_lists(capacity, s.nowhere)
        valid = first(n - p)
        walking = valid
        step = 1
        while step <= LONGEST:
            x_up, x_down, y_up, y_down = x, x, y, y
            for _ in range(0, STEPS, 2):
                x_next = lanes.subtract(lanes.load(walk_x, here + step), x)
                y_next = lanes.distance(lanes.load(walk_y, here + step), y)
                x_last = lanes.subtract(x, lanes.load(walk_x, here - step))
                y_last = lanes.distance(lanes.load(walk_y, here - step), y)
                step += 1
                x_up = lanes.subtract(lanes.load(walk_x, here + step), x)
                y_up = lanes.distance(lanes.load(walk_y, here + step), y)
                x_down = lanes.subtract(x, lanes.load(walk_x, here - step))
                y_down = lanes.distance(lanes.load(walk_y, here - step), y)
                step += 1
                nearest = lanes.insert_four(
                    nearest,
                    lanes.maximum(x_next, y_next),
                    lanes.maximum(x_last, y_last),
                    lanes.maximum(x_up, y_up),
                    lanes.maximum(x_down, y_down),
                )
            # What lies further on is at least this far: along x if x differs already,
            # else along y within the run, or at the next x.
            ahead = lanes.maximum(x_up, lanes.minimum(y_up, up))
            behind = lanes.maximum(x_down, lanes.minimum(y_down, down))
            further = lanes.minimum(ahead, behind)
            walking = lanes.mask_at_most(further, nearest[-2]) & valid
            if lanes.count_bits(walking) <= FEW:
                break
        lanes.store(rho, p, nearest[-2])
        count = lanes.choose_at_most(nearest[-1], nearest[-2], uncounted, k_samples)
        lanes.store(counts, p, count)
        while walking != 0:
            late_points[late] = p + lanes.first_bit(walking)
            late += 1
            walking &= walking - np.int32(1)
    return late


@routine
def finish(
    late: Int,
    x: RankedAxis,
    i: Int,
    y: RankedAxis,
    j: Int,
    k: Int,
    grid: Grid,
    s: Scratch,
) -> None:
    """Find rho of the points listed in ``late`` by scanning what is within reach."""
    walk_x, walk_y, rho, counts = s.walk_x, s.walk_y, s.rho, s.counts
    cum_x, ordered_x, y_along_x = x.cumulative[i], x.ordered[i], s.y_along_x
    cum_y, ordered_y, x_along_y = y.cumulative[j], y.ordered[j], s.x_along_y
    scores, before, origin, shift = grid.scores, grid.before, grid.origin, grid.shift
    near = s.near
    for at in range(late):
        p = s.late[at]
        a, b = walk_x[PADDING + p], walk_y[PADDING + p]
        bound = rho[p]
        low_x, high_x = within(scores, before, origin, shift, cum_x, a, bound)
        low_y, high_y = within(scores, before, origin, shift, cum_y, b, bound)
        # The point itself, at distance 0, comes first.
        if high_x - low_x <= high_y - low_y:
            rho[p], count = nearest_within(
                ordered_x, y_along_x, low_x, high_x, a, b, k + 1, bound, near
            )
        else:
            rho[p], count = nearest_within(
                ordered_y, x_along_y, low_y, high_y, b, a, k + 1, bound, near
            )
        counts[p] = count - 1


@routine
def count_uncounted(
    n: Int, x: RankedAxis, i: Int, y: RankedAxis, j: Int, grid: Grid, s: Scratch
) -> None:
    """Count the samples within rho where they may be more than k."""
    walk_x, walk_y, rhos, counts, copies = s.walk_x, s.walk_y, s.rho, s.counts, s.copies
    cum_x, ordered_x, y_along_x = x.cumulative[i], x.ordered[i], s.y_along_x
    cum_y, ordered_y, x_along_y = y.cumulative[j], y.ordered[j], s.x_along_y
    scores, before, origin, shift = grid.scores, grid.before, grid.origin, grid.shift
    for p in range(n):
        if counts[p] != UNCOUNTED or copies[p] == 0:
            continue
        a, b, rho = walk_x[PADDING + p], walk_y[PADDING + p], rhos[p]
        low_x, high_x = within(scores, before, origin, shift, cum_x, a, rho)
        low_y, high_y = within(scores, before, origin, shift, cum_y, b, rho)
        if high_x - low_x <= high_y - low_y:
            count = count_within(ordered_x, y_along_x, low_x, high_x, a, b, rho)
        else:
            count = count_within(ordered_y, x_along_y, low_y, high_y, b, a, rho)
        counts[p] = count - 1


@routine
def evaluate(
    n: Int,
    x: RankedAxis,
    i: Int,
    y: RankedAxis,
    j: Int,
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
    s: Scratch,
) -> None:
    """Turn rho and counts of all points into ``pmi``."""
    rhos, counts, pmi = s.rho, s.counts, s.pmi
    scores, before, origin, shift = grid.scores, grid.before, grid.origin, grid.shift
    samples = x.ranks.shape[1]
    cum_x, untied_x = x.cumulative[i], x.distinct[i] == samples
    cum_y, untied_y = y.cumulative[j], y.distinct[j] == samples
    zero, terms = lanes.splat(np.int32(0)), len(margin) // 2
    term, term_x, term_y = s.term, s.term_x, s.term_y
    for p in range(0, n, lanes.WIDTH):
        rho, count = lanes.load(rhos, p), lanes.load(counts, p)
        closed_x, inside_x = around_sample(
            scores,
            before,
            origin,
            shift,
            cum_x,
            untied_x,
            lanes.load(s.walk_x, PADDING + p),
            rho,
        )
        closed_y, inside_y = around_sample(
            scores,
            before,
            origin,
            shift,
            cum_y,
            untied_y,
            lanes.load(s.walk_y, PADDING + p),
            rho,
        )
        coinciding = lanes.add(count, lanes.splat(np.int32(terms)))
        lanes.store(term, 0, lanes.choose_at_most(rho, zero, coinciding, count))
        lanes.store(term_x, 0, term_at(closed_x, inside_x, rho, terms))
        lanes.store(term_y, 0, term_at(closed_y, inside_y, rho, terms))
        for lane in range(min(lanes.WIDTH, n - p)):
            pmi[p + lane] = (
                joint[np.uintp(term[lane])]
                - margin[np.uintp(term_x[lane])]
                - margin[np.uintp(term_y[lane])]
            )


@routine
def solve(
    x: RankedAxis,
    i: Int,
    y: RankedAxis,
    j: Int,
    k: Int,
    capacity: tuple[int, ...],
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
    s: Scratch,
) -> Int:
    """PMI of one pair: of every point in ``pmi``. Returns the number of points."""
    n = lay_out(x, i, y, j, k, s)
    late = walk(n, k, capacity, s)
    finish(late, x, i, y, j, k, grid, s)
    count_uncounted(n, x, i, y, j, grid, s)
    evaluate(n, x, i, y, j, grid, joint, margin, s)
    return n


@kernel
def _solve_all(
    x: RankedAxis,
    y: RankedAxis,
    k: Int,
    capacity: tuple[int, ...],
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
    s: Scratch,
    total: LongArray,
    pmi: LongArray,
) -> None:
    """Set ``total`` [x, y] to sums of PMI, and ``pmi`` [x, y, N] unless it is empty."""
    for i in range(len(x.distinct)):
        for j in range(len(y.distinct)):
            # Walk along the axis with more ties.
            a, u, b, v = x, i, y, j
            if x.distinct[i] > y.distinct[j]:
                a, u, b, v = y, j, x, i
            n = solve(a, u, b, v, k, capacity, grid, joint, margin, s)
            for p in range(n):
                total[i, j] += s.copies[p] * s.pmi[p]
            for p in range(pmi.shape[2]):
                pmi[i, j, s.sample[p]] = s.pmi[s.leader[p]]


def mutual_information(
    ranks_x: Ranks,
    ranks_y: Ranks,
    k: int,
    capacity: tuple[int, ...],
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
    *,
    pointwise: bool = False,
) -> tuple[LongArray, LongArray]:
    """PMI of all pairs of variables: its sum over samples, [x, y], and each sample's.

    Args:

        ranks_x: Twice the mean rank of all samples, [x, N].
        ranks_y: The same along y, [y, N].
        k: Number of neighbors.
        capacity: Any tuple longer than k.
        grid: Of N.
        joint: The terms of the formula for the plane,
        margin: and those for an axis.
        pointwise: Whether to keep each sample's, [x, y, N]; else [x, y, 0].
    """
    x, y = axis_of(ranks_x, grid), axis_of(ranks_y, grid)
    samples = ranks_x.shape[1]
    total = np.zeros((len(ranks_x), len(ranks_y)), np.int64)
    pmi = np.empty((*total.shape, samples if pointwise else 0), np.int64)
    s = scratch_for(samples, k, len(capacity))
    _solve_all(x, y, k, capacity, grid, joint, margin, s, total, pmi)
    return total, pmi
