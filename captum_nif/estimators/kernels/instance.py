"""Instance workload: a few queries against N samples, for all pairs of variables.

Here the sixteen lanes are sixteen variables of x. For one query and one variable of y,
samples are visited in the order of their distance from the query along y, on both
sides at once; each visit reads one row of distances along x, contiguous in memory, and
updates the k nearest of all sixteen pairs. It ends when the next sample is further
along y than the k-th neighbour of every lane.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captum_nif._compile import Int, kernel
from captum_nif.estimators.kernels import lanes
from captum_nif.estimators.kernels.around import around_query, term_at
from captum_nif.estimators.kernels.grid import (
    Grid,
    IntArray,
    LongArray,
    Ranks,
    cumulated,
)
from captum_nif.estimators.kernels.lanes import Lanes
from captum_nif.estimators.kernels.scan import NOWHERE

Bools = NDArray[np.bool_]

STEPS = 4
"""Visits on each side between two looks at whether they may end."""


class Approach(NamedTuple):
    """How to visit samples in the order of their distance from queries along y.

    Attributes:
        cumulative: Number of samples up to each doubled rank, [y, 2 N + 2].
        ranks: Doubled rank of each query on the grid of N + 1, [queries, y].
        order: Samples in ascending order, [y, N + 2 STEPS], padded on both sides.
        distance: Their distance from each query, [queries, y, N + 2 STEPS], padded
            with distances larger than any.
        start: Position of the first sample not below a query, [queries, y].
    """

    cumulative: Ranks
    ranks: IntArray
    order: IntArray
    distance: IntArray
    start: IntArray


@kernel
def approach(ranks: Ranks, queries: IntArray, grid: Grid) -> Approach:
    """Measure the way from queries [queries, y] to all samples [y, N] along y."""
    size, samples = ranks.shape
    cumulative = cumulated(ranks, grid)
    scores = grid.scores
    order = np.zeros((size, samples + 2 * STEPS), np.int32)
    distance = np.full((len(queries), size, samples + 2 * STEPS), NOWHERE, np.int32)
    start = np.empty((len(queries), size), np.int32)
    place = np.empty(2 * samples + 2, np.int32)
    ordered = np.empty(samples, np.int32)
    for v in range(size):
        place[0] = place[1] = STEPS
        for h in range(2, 2 * samples + 2):
            place[h] = STEPS + cumulative[v, h - 1]
        for i in range(samples):
            own = np.uintp(ranks[v, i])
            order[v, np.uintp(place[own])] = i
            ordered[np.uintp(place[own] - STEPS)] = own
            place[own] += 1
        for q in range(len(queries)):
            rank = queries[q, v]
            below = cumulative[v, rank - 2]
            upto = cumulative[v, rank - 1]
            start[q, v] = STEPS + below
            score, way = scores[rank], distance[q, v, STEPS : STEPS + samples]
            for p in range(below):
                way[p] = score - scores[np.uintp(ordered[p])]
            for p in range(below, upto):
                way[p] = 0
            for p in range(upto, samples):
                way[p] = scores[np.uintp(ordered[p] + 2)] - score
    return Approach(cumulative, queries, order, distance, start)


@kernel
def pointwise(
    ranks: Ranks,
    untied: Bools,
    start: Int,
    stop: Int,
    queries: IntArray,
    way: Approach,
    k: Int,
    capacity: tuple[int, ...],
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
) -> LongArray:
    """PMI of queries for variables start, ..., stop - 1 of x, [queries, x, y].

    Args:

        ranks: Twice the mean rank of all samples, [N, x].
        untied: Whether all samples of a variable differ, [x].
        start: First variable,
        stop: and the one after the last.
        queries: Twice the ranks of queries, as sample N + 1, [queries, x].
        way: The same along y, from :func:`approach`.
        k: Number of neighbours.
        capacity: Any tuple longer than k.
        grid: Of N + 1.
        joint: The terms of the formula for the plane, row after row,
        margin: and those for an axis.
    """
    samples = len(ranks)
    pmi = np.empty((len(queries), stop - start, len(way.order)), np.int64)
    own = np.zeros(samples * lanes.WIDTH, ranks.dtype)
    cumulative = np.empty((2 * samples + 2) * lanes.WIDTH, grid.before.dtype)
    distance = np.empty(samples * lanes.WIDTH, np.int32)
    query = np.full(lanes.WIDTH, 2, np.int32)
    for first in range(start, stop, lanes.WIDTH):
        end = min(first + lanes.WIDTH, stop)
        _take(ranks, first, end, own)
        _cumulate(own, untied[first:end], cumulative)
        for q in range(len(queries)):
            for v in range(first, end):
                query[v - first] = queries[q, v]
            rank = lanes.load(query, 0)
            _measure(own, rank, grid.scores, distance)
            _explain(
                distance,
                cumulative,
                rank,
                way,
                q,
                k,
                capacity,
                grid,
                joint,
                margin,
                pmi[q, first - start : end - start],
            )
    return pmi


@kernel
def _take(ranks: Ranks, start: Int, stop: Int, own: Ranks) -> None:
    """Copy the ranks of up to sixteen variables, one sample after the other."""
    size = ranks.shape[1]
    everything = ranks.reshape(-1)
    for i in range(len(ranks)):
        if stop - start == lanes.WIDTH:
            row = lanes.load(everything, i * size + start)
            lanes.store(own, i * lanes.WIDTH, row)
        else:
            for v in range(start, stop):
                own[i * lanes.WIDTH + v - start] = ranks[i, v]


@kernel
def _cumulate(own: Ranks, untied: Bools, cumulative: Ranks) -> None:
    """Number of samples up to each doubled rank, for up to sixteen variables."""
    if np.all(untied):
        for h in range(len(cumulative) // lanes.WIDTH):
            lanes.store(cumulative, h * lanes.WIDTH, lanes.splat(np.int32(h // 2)))
        return
    cumulative[:] = 0
    for i in range(0, len(own), lanes.WIDTH):
        for v in range(lanes.WIDTH):
            cumulative[np.uintp(own[i + v]) * lanes.WIDTH + np.uintp(v)] += 1
    total = lanes.splat(np.int32(0))
    for i in range(0, len(cumulative), lanes.WIDTH):
        total = lanes.add(total, lanes.load(cumulative, i))
        lanes.store(cumulative, i, total)


@kernel
def _measure(own: Ranks, query: Lanes, scores: IntArray, distance: IntArray) -> None:
    """Distances from a query to all samples along sixteen variables.

    Among N + 1 samples, ranks above the query's are two more than they were among N,
    and those of equal values, one less than the query's until now, are one more.
    """
    equal = lanes.subtract(query, lanes.splat(np.int32(1)))
    centre = lanes.gather(scores, query)
    for i in range(0, len(own), lanes.WIDTH):
        before = lanes.load(own, i)
        rank = lanes.tally(lanes.tally(before, equal, before), query, before)
        lanes.store(distance, i, lanes.distance(lanes.gather(scores, rank), centre))


@kernel
def _explain(
    distance: IntArray,
    cumulative: Ranks,
    rank: Lanes,
    way: Approach,
    q: Int,
    k: Int,
    capacity: tuple[int, ...],
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
    pmi: LongArray,
) -> None:
    """PMI of query q for sixteen variables of x and all of y."""
    scores, before, origin, shift = grid.scores, grid.before, grid.origin, grid.shift
    nowhere = lanes.smallest(capacity, len(capacity) - k - 1, NOWHERE)
    zero, terms = lanes.splat(np.int32(0)), len(margin) // 2
    by_lane, k_samples = lanes.splat(np.int32(4)), lanes.splat(np.int32(k))
    term, term_x, term_y = np.empty((3, lanes.WIDTH), np.int32)
    for j in range(len(way.order)):
        samples, along_y = way.order[j], way.distance[q, j]
        nearest = nowhere
        up, down = way.start[q, j], way.start[q, j] - 1
        while True:
            for _ in range(STEPS):
                row = lanes.load(distance, samples[up] * lanes.WIDTH)
                nearest = lanes.insert(
                    nearest, lanes.maximum(row, lanes.splat(along_y[up]))
                )
                row = lanes.load(distance, samples[down] * lanes.WIDTH)
                nearest = lanes.insert(
                    nearest, lanes.maximum(row, lanes.splat(along_y[down]))
                )
                up += 1
                down -= 1
            up = min(up, len(samples) - STEPS)
            down = max(down, STEPS - 1)
            next_one = min(along_y[up], along_y[down])
            if lanes.mask_at_most(lanes.splat(next_one), nearest[-2]) == 0:
                break
        rho, count = nearest[-2], k_samples
        if lanes.mask_at_most(nearest[-1], rho) != 0:
            # More samples than k may be that near: count those visited.
            count = zero
            for p in range(down + 1, up):
                row = lanes.load(distance, samples[p] * lanes.WIDTH)
                d = lanes.maximum(row, lanes.splat(along_y[p]))
                count = lanes.tally(count, d, rho)
        closed_x, inside_x = around_query(
            scores,
            before,
            origin,
            shift,
            cumulative,
            by_lane,
            lanes.numbered(),
            rank,
            rho,
        )
        closed_y, inside_y = around_query(
            scores,
            before,
            origin,
            shift,
            way.cumulative[j],
            zero,
            zero,
            lanes.splat(way.ranks[q, j]),
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
