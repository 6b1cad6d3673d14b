"""How many samples lie around points along an axis, for sixteen lanes at a time.

See :mod:`~.grid` for the look-up.
"""

from __future__ import annotations

import numpy as np

from captum_nif._compile import Int, routine
from captum_nif.estimators.kernels import lanes
from captum_nif.estimators.kernels.grid import IntArray, Ranks
from captum_nif.estimators.kernels.lanes import Lanes


@routine
def entries_up_to(
    scores: IntArray, before: Ranks, origin: Int, shift: Int, score: Lanes
) -> tuple[Lanes, Lanes]:
    """Largest entries of the grid that are below, and at most, each lane's score."""
    first = lanes.splat(np.int32(origin))
    end = lanes.splat(np.int32(scores[len(scores) - 2] + 1))
    score = lanes.minimum(lanes.maximum(score, first), end)
    one, bits = lanes.splat(np.int32(1)), lanes.splat(np.int32(shift))
    bucket = lanes.shift_right(lanes.subtract(score, first), bits)
    entry = lanes.gather(before, bucket)
    following = lanes.gather(scores, lanes.add(entry, one))
    below = lanes.tally(entry, following, lanes.subtract(score, one))
    return below, lanes.tally(entry, following, score)


@routine
def around_sample(
    scores: IntArray,
    before: Ranks,
    origin: Int,
    shift: Int,
    cumulative: Ranks,
    untied: bool,
    center: Lanes,
    rho: Lanes,
) -> tuple[Lanes, Lanes]:
    """Other samples within rho of each lane's sample along one axis.

    Its score on the grid of N samples is ``center``; ``cumulative`` counts samples up
    to each doubled rank. Where all are ``untied``, these are h / 2 up to h, and
    ``cumulative`` is not read.

    Returns:

        How many lie in the closed interval, and strictly inside if rho > 0.
    """
    one, zero = lanes.splat(np.int32(1)), lanes.splat(np.int32(0))
    # Looked up as for queries: passed through a routine, four results take longer.
    low, low_too = entries_up_to(
        scores, before, origin, shift, lanes.subtract(center, rho)
    )
    high, high_too = entries_up_to(
        scores, before, origin, shift, lanes.add(center, rho)
    )
    if untied:
        closed = _halved(high_too, low)
        inside = _halved(high, low_too)
    else:
        closed = _counted(cumulative, high_too, low, zero, zero)
        inside = _counted(cumulative, high, low_too, zero, zero)
    return lanes.subtract(closed, one), lanes.subtract(inside, one)


@routine
def around_query(
    scores: IntArray,
    before: Ranks,
    origin: Int,
    shift: Int,
    cumulative: Ranks,
    untied: bool,
    spread: Lanes,
    offset: Lanes,
    rank: Lanes,
    center: Lanes,
    rho: Lanes,
) -> tuple[Lanes, Lanes]:
    """Samples within rho of each lane's query along one axis.

    The grid is that of N + 1 samples, on which ``rank`` is twice that of the query and
    ``center`` its score; ``cumulative`` counts the N samples by themselves, up to their
    doubled rank h at ``(h << spread) + offset``. These ranks are the same as on the
    grid below the query, one less than its own where they equal it, and two less above
    it. Where all samples are ``untied``, h / 2 of them are up to h, and ``cumulative``
    is not read.

    Returns:

        How many samples lie in the closed interval, and strictly inside.
    """
    one, two = lanes.splat(np.int32(1)), lanes.splat(np.int32(2))
    below, upto = lanes.subtract(rank, two), lanes.subtract(rank, one)
    low, low_too = entries_up_to(
        scores, before, origin, shift, lanes.subtract(center, rho)
    )
    high, high_too = entries_up_to(
        scores, before, origin, shift, lanes.add(center, rho)
    )
    low, low_too = lanes.minimum(low, below), lanes.minimum(low_too, below)
    high = lanes.maximum(lanes.subtract(high, two), upto)
    high_too = lanes.maximum(lanes.subtract(high_too, two), upto)
    if untied:
        return _halved(high_too, low), _halved(high, low_too)
    return (
        _counted(cumulative, high_too, low, spread, offset),
        _counted(cumulative, high, low_too, spread, offset),
    )


@routine
def _halved(high: Lanes, low: Lanes) -> Lanes:
    """Samples between doubled ranks where none are tied."""
    one = lanes.splat(np.int32(1))
    return lanes.subtract(lanes.shift_right(high, one), lanes.shift_right(low, one))


@routine
def _counted(
    cumulative: Ranks, high: Lanes, low: Lanes, spread: Lanes, offset: Lanes
) -> Lanes:
    """Samples between doubled ranks, counted at ``(rank << spread) + offset``."""
    return lanes.subtract(
        lanes.gather(cumulative, lanes.add(lanes.shift_left(high, spread), offset)),
        lanes.gather(cumulative, lanes.add(lanes.shift_left(low, spread), offset)),
    )


@routine
def term_at(closed: Lanes, inside: Lanes, rho: Lanes, terms: Int) -> Lanes:
    """Which of an axis's 2 x ``terms`` terms counts, the samples themselves left out.

    The second row is for those with a sample at just the distance rho > 0.
    """
    zero, row = lanes.splat(np.int32(0)), lanes.splat(np.int32(terms))
    edge = lanes.choose_at_most(closed, inside, closed, lanes.add(closed, row))
    return lanes.choose_at_most(rho, zero, closed, edge)
