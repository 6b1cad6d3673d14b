"""Coordinates of samples around each query, as whole numbers, and their sums.

One pass over the samples for each query, where torch operations take a dozen. All
results are whole numbers below 2^53, so that the order of sums does not matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from captum_nif._compile import Int, kernel
from captum_nif.estimators.kernels.grid import IntArray, Ranks

Floats = NDArray[np.float64]


@kernel
def of_ranks(
    ranks: Ranks,
    first: Int,
    query: IntArray,
    scores: Floats,
    values: Floats,
    total: Floats,
    squares: Floats,
) -> None:
    """Scores of samples and of a query, ranked together.

    Args:
        ranks: Twice the mean rank of all samples among themselves, [N, variables].
        first: The first of n variables.
        query: Twice that of queries, each as sample N + 1, [S, n].
        scores: By twice the rank among N + 1.
        values: Set to the scores, the query's own last, [S, N + 1, n].
        total: Increased by their sums, [S, n],
        squares: and by those of their squares.
    """
    samples = len(ranks)
    for q in range(len(query)):
        for i in range(samples):
            for v in range(query.shape[1]):
                own, rank = query[q, v], np.int32(ranks[i, first + v])
                # It pushes samples above it up by a rank, those equal to it by a half.
                rank += 2 * np.int32(rank >= own) + np.int32(rank == own - 1)
                value = scores[np.uintp(rank)]
                values[q, i, v] = value
                total[q, v] += value
                squares[q, v] += value * value
        for v in range(query.shape[1]):
            value = scores[np.uintp(query[q, v])]
            values[q, samples, v] = value
            total[q, v] += value
            squares[q, v] += value * value


@kernel
def of_values(
    samples: NDArray[np.float32] | Floats,
    first: Int,
    query: Floats,
    low: Floats,
    high: Floats,
    unit: float,
    values: Floats,
    total: Floats,
    squares: Floats,
) -> None:
    """Positions of samples and of a query between their least and largest value.

    Args:
        samples: All samples, [N, variables].
        first: The first of n variables.
        query: The queries, [S, n].
        low: The least of each variable's samples, [n],
        high: and the largest.
        unit: Of coordinates, as a share of that span.
        values: See :func:`of_ranks`,
        total: also,
        squares: also.
    """
    count = len(samples)
    least, span = np.empty_like(low), np.empty_like(low)
    for q in range(len(query)):
        for v in range(query.shape[1]):
            own = query[q, v]
            least[v] = min(low[v], own)
            span[v] = max(high[v], own) - least[v]
            if span[v] == 0:
                span[v] = 1
        for i in range(count + 1):
            for v in range(query.shape[1]):
                own = np.float64(samples[i, first + v] if i < count else query[q, v])
                value = np.rint((own - least[v]) / span[v] / unit)
                values[q, i, v] = value
                total[q, v] += value
                squares[q, v] += value * value
