"""Instance workload: a few queries against N samples, for all pairs of variables.

Here the sixteen lanes are sixteen variables of x. For one query and one variable of y,
samples are visited in the order of their distance from the query along y; each visit
reads one row of distances along x, contiguous in memory, and updates the k nearest of
all sixteen pairs. It ends when the next sample is further along y than the k-th
neighbor of every lane.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captum_nif._compile import Int, kernel, routine
from captum_nif.estimators.kernels import lanes
from captum_nif.estimators.kernels.around import around_query, term_at
from captum_nif.estimators.kernels.grid import (
    PANEL,
    Grid,
    IntArray,
    LongArray,
    Ranks,
    cumulate,
)
from captum_nif.estimators.kernels.lanes import Lanes
from captum_nif.estimators.kernels.scan import NOWHERE

Bools = NDArray[np.bool_]

STEPS = 4
"""Visits between two looks at whether they may end: as many as lists take at once."""


class VisitOrder(NamedTuple):
    """How to visit samples in the order of their distance from queries along y.

    Attributes:
        ranks: Doubled rank of each query on the grid of N + 1, [queries, y].
        untied: Whether all samples of a variable differ, [y].
        cumulative: Number of samples up to each doubled rank, [y, 2 N + 2].
        samples: In that order for each query, [queries, y, N + STEPS].
        distance: These distances; in the padding, one larger than any.
    """

    ranks: IntArray
    untied: Bools
    cumulative: Ranks
    samples: IntArray
    distance: IntArray


def order_around(
    queries: IntArray, untied: Bools, grid: Grid, samples: int
) -> VisitOrder:
    """Memory for the order around queries [queries, y]; see :func:`fill`."""
    shape = (*queries.shape, samples + STEPS)
    return VisitOrder(
        queries,
        untied,
        np.empty((len(untied), 2 * samples + 2), grid.before.dtype),
        np.empty(shape, np.int32),
        np.empty(shape, np.int32),
    )


@kernel
def fill(order: VisitOrder, ranks: Ranks, start: Int, stop: Int, grid: Grid) -> None:
    """Fill in the variables start, ..., stop - 1 from the ranks of samples [y, N]."""
    samples = ranks.shape[1]
    queries, visits, distance = order.ranks, order.samples, order.distance
    cumulative = order.cumulative
    cumulate(ranks[start:stop], cumulative[start:stop])
    scores = grid.scores
    # In ascending order, and with one entry before the first and after the last.
    ascending, ordered, away = np.empty((3, samples + 2), np.int32)
    away[0] = away[samples + 1] = NOWHERE
    place = np.empty(2 * samples + 2, np.int32)
    for v in range(start, stop):
        place[0] = place[1] = 1
        for h in range(2, 2 * samples + 2):
            place[h] = 1 + cumulative[v, h - 1]
        for i in range(samples):
            own = np.uintp(ranks[v, i])
            at = np.uintp(place[own])
            ascending[at], ordered[at] = i, own
            place[own] += 1
        for q in range(len(queries)):
            rank = queries[q, v]
            score = scores[rank]
            below, upto = cumulative[v, rank - 2], cumulative[v, rank - 1]
            for p in range(1, below + 1):
                away[p] = score - scores[np.uintp(ordered[p])]
            for p in range(below + 1, upto + 1):
                away[p] = 0
            for p in range(upto + 1, samples + 1):
                away[p] = scores[np.uintp(ordered[p] + 2)] - score
            _merge(ascending, away, np.intp(below), visits[q, v], distance[q, v])
            for p in range(samples, samples + STEPS):
                visits[q, v, p], distance[q, v, p] = 0, NOWHERE


@routine
def _merge(
    samples: IntArray, away: IntArray, below: Int, visits: IntArray, distance: IntArray
) -> None:
    """Merge the samples below a query, and the others, by their distance from it.

    Both are in ``samples`` and ``away`` from the second to the last but one entry, in
    ascending order along the axis; outside are distances larger than any. The query
    is above the first ``below``. The result is filled from both ends at once, so that
    the processor has two merges to do instead of waiting for one; among samples at the
    same distance, those above come first.
    """
    count = len(samples) - 2
    down, up = below, below + 1
    lowest, highest = 1, count
    for p in range((count + 1) // 2):
        upwards = away[np.uintp(up)] <= away[np.uintp(down)]
        nearest = np.uintp(up if upwards else down)
        visits[p], distance[p] = samples[nearest], away[nearest]
        up += upwards
        down += upwards - 1
        lower = away[np.uintp(lowest)] >= away[np.uintp(highest)]
        lower &= lowest <= below
        furthest = np.uintp(lowest if lower else highest)
        last = np.uintp(count - 1 - p)
        visits[last], distance[last] = samples[furthest], away[furthest]
        lowest += lower
        highest += lower - 1


@kernel
def pointwise(
    ranks: Ranks,
    untied: Bools,
    start: Int,
    stop: Int,
    queries: IntArray,
    order: VisitOrder,
    k: Int,
    capacity: tuple[int, ...],
    nowhere: IntArray,
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
) -> LongArray:
    """PMI of queries for variables start, ..., stop - 1 of x, [queries, x, y].

    Args:

        ranks: Twice the mean rank of all samples, [N * x], one sample after the other.
        untied: Whether all samples of a variable differ, [x].
        start: First variable,
        stop: and the one after the last.
        queries: Twice the ranks of queries, as sample N + 1, [queries, x].
        order: The same along y, from :func:`fill`.
        k: Number of neighbors.
        capacity: Any tuple longer than k.
        nowhere: See :func:`~.scan.nowhere`, for this capacity.
        grid: Of N + 1.
        joint: The terms of the formula for the plane, row after row,
        margin: and those for an axis.
    """
    size = len(untied)
    samples = len(ranks) // size
    pmi = np.empty((len(queries), stop - start, len(order.untied)), np.int64)
    panel = np.empty((PANEL // lanes.WIDTH, samples * lanes.WIDTH), ranks.dtype)
    cumulative = np.empty((2 * samples + 2) * lanes.WIDTH, grid.before.dtype)
    distance = np.empty(samples * lanes.WIDTH, np.int32)
    query = np.empty(lanes.WIDTH, np.int32)
    for first in range(start, stop, lanes.WIDTH):
        width = min(lanes.WIDTH, stop - first)
        if (first - start) % PANEL == 0:
            _take(ranks, size, first, min(PANEL, stop - first), panel)
        own = panel[(first - start) % PANEL // lanes.WIDTH]
        all_untied = _all(untied[first : first + width])
        if not all_untied:
            _cumulate(own, cumulative)
        for q in range(len(queries)):
            for v in range(lanes.WIDTH):
                query[v] = queries[q, first + min(v, width - 1)]
            rank = lanes.load(query, 0)
            _measure(own, rank, grid.scores, distance)
            _explain(
                distance,
                cumulative,
                all_untied,
                rank,
                order,
                q,
                k,
                capacity,
                nowhere,
                grid,
                joint,
                margin,
                pmi[q, first - start : first - start + width],
            )
    return pmi


@routine
def _all(flags: Bools) -> bool:
    result = True
    for flag in flags:  # np.all takes long to compile
        result = result and flag
    return result


@routine
def _take(ranks: Ranks, size: Int, first: Int, width: Int, panel: Ranks) -> None:
    """Copy the ranks of ``PANEL`` variables, or fewer and more of the last.

    One sample after the other, for sixteen variables and then for the next ones.
    """
    for i in range(panel.shape[1] // lanes.WIDTH):
        at = i * size + first
        for v in range(0, PANEL, lanes.WIDTH):
            own = panel[v // lanes.WIDTH]
            if v + lanes.WIDTH <= width:
                lanes.store(own, i * lanes.WIDTH, lanes.load(ranks, at + v))
            else:
                for lane in range(lanes.WIDTH):
                    rank = ranks[at + min(v + lane, width - 1)]
                    own[i * lanes.WIDTH + lane] = rank


@routine
def _cumulate(own: Ranks, cumulative: Ranks) -> None:
    """Number of samples up to each doubled rank, for sixteen variables."""
    for i in range(len(cumulative)):
        cumulative[i] = 0
    for i in range(0, len(own), lanes.WIDTH):
        for v in range(lanes.WIDTH):
            cumulative[np.uintp(own[i + v]) * lanes.WIDTH + np.uintp(v)] += 1
    total = lanes.splat(np.int32(0))
    for i in range(0, len(cumulative), lanes.WIDTH):
        total = lanes.add(total, lanes.load(cumulative, i))
        lanes.store(cumulative, i, total)


@routine
def _measure(own: Ranks, query: Lanes, scores: IntArray, distance: IntArray) -> None:
    """Distances from a query to all samples along sixteen variables.

    Among N + 1 samples, ranks above the query's are two more than they were among N,
    and those of equal values, one less than the query's until now, are one more.
    """
    equal = lanes.subtract(query, lanes.splat(np.int32(1)))
    center = lanes.gather(scores, query)
    for i in range(0, len(own), lanes.WIDTH):
        before = lanes.load(own, i)
        rank = lanes.tally(lanes.tally(before, equal, before), query, before)
        lanes.store(distance, i, lanes.distance(lanes.gather(scores, rank), center))


@routine
def _explain(
    distance: IntArray,
    cumulative: Ranks,
    untied: bool,
    rank: Lanes,
    order: VisitOrder,
    q: Int,
    k: Int,
    capacity: tuple[int, ...],
    nowhere: IntArray,
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
    pmi: LongArray,
) -> None:
    """PMI of query q for sixteen variables of x and all of y."""
    scores, before, origin, shift = grid.scores, grid.before, grid.origin, grid.shift
    zero, terms = lanes.splat(np.int32(0)), len(margin) // 2
    by_lane, k_samples = lanes.splat(np.int32(4)), lanes.splat(np.int32(k))
    center = lanes.gather(scores, rank)
    term, term_x, term_y = np.empty((3, lanes.WIDTH), np.int32)
    for j in range(len(order.untied)):
        samples, along_y = order.samples[q, j], order.distance[q, j]
        nearest = lanes.load_lists(capacity, nowhere)
        visits = np.intp(0)
        while True:
            nearest = lanes.insert_four(
                nearest,
                _plane(distance, samples, along_y, visits),
                _plane(distance, samples, along_y, visits + 1),
                _plane(distance, samples, along_y, visits + 2),
                _plane(distance, samples, along_y, visits + 3),
            )
            visits += STEPS
            next_one = lanes.splat(along_y[np.uintp(visits)])
            if lanes.mask_at_most(next_one, nearest[-2]) == 0:
                break
        rho = nearest[-2]
        count = k_samples
        if lanes.mask_at_most(nearest[-1], rho) != 0:
            # More samples than k may be that near: count those visited.
            count = zero
            for visit in range(visits):
                d = _plane(distance, samples, along_y, visit)
                count = lanes.tally(count, d, rho)
        closed_x, inside_x = around_query(
            scores,
            before,
            origin,
            shift,
            cumulative,
            untied,
            by_lane,
            lanes.numbered(),
            rank,
            center,
            rho,
        )
        closed_y, inside_y = around_query(
            scores,
            before,
            origin,
            shift,
            order.cumulative[j],
            order.untied[j],
            zero,
            zero,
            lanes.splat(order.ranks[q, j]),
            lanes.splat(scores[np.uintp(order.ranks[q, j])]),
            rho,
        )
        coinciding = lanes.add(count, lanes.splat(np.int32(terms)))
        lanes.store(term, 0, lanes.choose_at_most(rho, zero, coinciding, count))
        lanes.store(term_x, 0, term_at(closed_x, inside_x, rho, terms))
        lanes.store(term_y, 0, term_at(closed_y, inside_y, rho, terms))
        for v in range(len(pmi)):
            pmi[v, j] = (
                joint[np.uintp(term[v])]
                - margin[np.uintp(term_x[v])]
                - margin[np.uintp(term_y[v])]
            )


@routine
def _plane(
    distance: IntArray, samples: IntArray, along_y: IntArray, visit: Int
) -> Lanes:
    """Distances in the plane to the sample of a visit."""
    at = np.uintp(visit)
    along_x = lanes.load(distance, samples[at] * lanes.WIDTH)
    return lanes.maximum(along_x, lanes.splat(along_y[at]))
