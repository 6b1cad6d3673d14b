"""The score grid that all ranked variables share, with constant-time look-up.

Scores are entries of one table (:func:`~..normal_scores.normal_scores`), so "how many
samples of this variable have a score up to t" takes two steps: which entry of the grid
t reaches, the same for all variables, and the variable's cumulative count there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captum_nif._compile import Int, routine
from captum_nif.estimators.normal_scores import normal_scores

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]
Ranks = NDArray[np.int16] | NDArray[np.int32]
"""Twice mean ranks, and counts of samples: narrow where N allows."""

PANEL = 32
"""Variables of samples row by row, [N, variables], that kernels copy together: whole
cache lines of a row."""


class Grid(NamedTuple):
    """Scores of N samples, indexed by twice the mean rank, cut into equal buckets.

    Buckets are no wider than the smallest step of the grid, so each holds at most one
    entry: the one after ``before[bucket]``.
    """

    scores: IntArray
    before: Ranks
    origin: int
    shift: int


@lru_cache(maxsize=16)
def grid_of(samples: int) -> Grid:
    """The grid of N samples ranked together."""
    scores = normal_scores(samples).numpy()[2:]
    step = int(np.diff(scores).min()) if samples > 1 else 1
    shift = step.bit_length() - 1
    origin, last = int(scores[0]) - 1, int(scores[-1])
    edges = np.arange(origin, last + 2, 1 << shift, dtype=np.int64)
    before = np.searchsorted(scores, edges) + 1
    narrow = 2 * samples + 4 <= np.iinfo(np.int16).max
    # Entries 0 and 1 are below all scores, the one after the last above them.
    padded = np.pad(scores, (2, 1), constant_values=(origin, last + 2))
    return Grid(
        padded.astype(np.int32),
        before.astype(np.int16) if narrow else before.astype(np.int32),
        origin,
        shift,
    )


@routine
def cumulate(ranks: Ranks, cumulative: Ranks) -> None:
    """Count samples up to each doubled rank h, of variables [variables, N].

    Sets ``cumulative``, [variables, 2 N + 2].
    """
    for v in range(len(ranks)):
        for h in range(cumulative.shape[1]):
            cumulative[v, h] = 0
        for i in range(ranks.shape[1]):
            cumulative[v, np.uintp(ranks[v, i])] += 1
        total = 0
        for h in range(cumulative.shape[1]):
            total += cumulative[v, h]
            cumulative[v, h] = total


@routine
def within(
    scores: IntArray,
    before: Ranks,
    origin: Int,
    shift: Int,
    cumulative: Ranks,
    center: Int,
    rho: Int,
) -> tuple[Int, Int]:
    """Samples at most rho from a center along one axis.

    Returns:

        How many samples lie below them, and how many up to the last of them.
    """
    # Unsigned indices: numba would check signed ones for counting from the end.
    last, one = np.int64(scores[len(scores) - 2]), np.uintp(1)
    low = np.uintp((min(max(center - rho, origin), last + 1) - origin) >> shift)
    high = np.uintp((min(max(center + rho, origin), last + 1) - origin) >> shift)
    low, high = np.uintp(before[low]), np.uintp(before[high])
    low += np.uintp(scores[low + one] < center - rho)
    high += np.uintp(scores[high + one] <= center + rho)
    return cumulative[low], cumulative[high]
