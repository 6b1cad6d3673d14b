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

from captum_nif._compile import Int, kernel
from captum_nif.estimators.kernels import lanes
from captum_nif.estimators.kernels.grid import (
    Grid,
    IntArray,
    LongArray,
    Ranks,
    cumulated,
    entries_around_query,
)
from captum_nif.estimators.kernels.scan import NOWHERE

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
    queries: IntArray,
    way: Approach,
    k: Int,
    capacity: tuple[int, ...],
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
) -> LongArray:
    """PMI of queries for all pairs of variables, [queries, x, y].

    Args:

        ranks: Twice the mean rank of all samples, [x, N].
        queries: Twice that of queries, as sample N + 1, [queries, x].
        way: The same along y, from :func:`approach`.
        k: Number of neighbours.
        capacity: Any tuple longer than k.
        grid: Of N + 1.
        joint: The terms of the formula for the plane,
        margin: and those for an axis.
    """
    size, samples = ranks.shape
    scores = grid.scores
    cumulative = cumulated(ranks, grid)
    pmi = np.empty((len(queries), size, len(way.order)), np.int64)
    # Ranks of samples, and scores of those below and above a query, row by row.
    rows = samples * lanes.WIDTH
    own, lower, upper = np.zeros((3, rows), np.int32)
    distance = np.zeros(rows, np.int32)
    rank_of_query = np.zeros(lanes.WIDTH, np.int32)
    score_of_query = np.zeros(lanes.WIDTH, np.int32)
    for start in range(0, size, lanes.WIDTH):
        end = min(start + lanes.WIDTH, size)
        for v in range(start, end):
            for i in range(samples):
                rank = np.uintp(ranks[v, i])
                at = np.uintp(i * lanes.WIDTH + v - start)
                own[at] = rank
                lower[at] = scores[rank]
                upper[at] = scores[rank + np.uintp(2)]
        for q in range(len(queries)):
            for v in range(start, end):
                rank_of_query[v - start] = queries[q, v]
                score_of_query[v - start] = scores[queries[q, v]]
            _measure(own, lower, upper, rank_of_query, score_of_query, distance)
            _explain(
                distance,
                rank_of_query,
                cumulative[start:end],
                way.cumulative,
                way.ranks[q],
                way.order,
                way.distance[q],
                way.start[q],
                k,
                capacity,
                grid,
                joint,
                margin,
                pmi[q, start:end],
            )
    return pmi


@kernel
def _measure(
    own: IntArray,
    lower: IntArray,
    upper: IntArray,
    rank: IntArray,
    score: IntArray,
    distance: IntArray,
) -> None:
    """Distances from a query to all samples along sixteen variables."""
    query, at = lanes.load(score, 0), lanes.load(rank, 0)
    equal = lanes.subtract(at, lanes.splat(np.int32(1)))
    zero = lanes.splat(np.int32(0))
    for i in range(0, len(own), lanes.WIDTH):
        below = lanes.subtract(query, lanes.load(lower, i))
        above = lanes.subtract(lanes.load(upper, i), query)
        further = lanes.maximum(below, above)
        d = lanes.choose_equal(lanes.load(own, i), equal, zero, further)
        lanes.store(distance, i, d)


@kernel
def _explain(
    distance: IntArray,
    ranks_x: IntArray,
    cumulative_x: Ranks,
    cumulative_y: Ranks,
    ranks_y: IntArray,
    order: IntArray,
    distance_y: IntArray,
    start: IntArray,
    k: Int,
    capacity: tuple[int, ...],
    grid: Grid,
    joint: LongArray,
    margin: LongArray,
    pmi: LongArray,
) -> None:
    """PMI of one query for sixteen variables of x and all of y."""
    scores, before, origin, shift = grid.scores, grid.before, grid.origin, grid.shift
    nowhere = lanes.smallest(capacity, len(capacity) - k - 1, NOWHERE)
    rhos = np.empty(lanes.WIDTH, np.int32)
    beyond = np.empty(lanes.WIDTH, np.int32)
    counts = np.empty(lanes.WIDTH, np.int32)
    width = len(cumulative_x)
    for j in range(len(ranks_y)):
        samples, along_y = order[j], distance_y[j]
        nearest = nowhere
        up, down = start[j], start[j] - 1
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
        rho = nearest[-2]
        lanes.store(rhos, 0, rho)
        lanes.store(beyond, 0, nearest[-1])
        if lanes.mask_at_most(nearest[-1], rho) != 0:
            # More samples than k may be that near: count those visited.
            count = lanes.splat(np.int32(0))
            for p in range(down + 1, up):
                row = lanes.load(distance, samples[p] * lanes.WIDTH)
                d = lanes.maximum(row, lanes.splat(along_y[p]))
                count = lanes.tally(count, d, rho)
            lanes.store(counts, 0, count)
        rank_y = ranks_y[j]
        for v in range(width):
            r = np.int64(rhos[v])
            c_joint = np.uintp(counts[v] if beyond[v] == rhos[v] else k)
            low, high, low_in, high_in = entries_around_query(
                scores, before, origin, shift, ranks_x[v], r
            )
            c_x = cumulative_x[v, high] - cumulative_x[v, low]
            s_x = cumulative_x[v, high_in] - cumulative_x[v, low_in]
            low, high, low_in, high_in = entries_around_query(
                scores, before, origin, shift, rank_y, r
            )
            c_y = cumulative_y[j, high] - cumulative_y[j, low]
            s_y = cumulative_y[j, high_in] - cumulative_y[j, low_in]
            edge_x = np.uintp((c_x > s_x) & (r > 0))
            edge_y = np.uintp((c_y > s_y) & (r > 0))
            pmi[v, j] = (
                joint[np.uintp(r == 0), c_joint]
                - margin[edge_x, np.uintp(c_x)]
                - margin[edge_y, np.uintp(c_y)]
            )
