"""Sorting and ranking variables: radix sort, which ties do not slow down.

Numbers are sorted by their bits, read as unsigned integers: with the sign bit set for
positive numbers, and all bits flipped for negative ones, these sort as the numbers do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from captum_nif._compile import Int, kernel, routine
from captum_nif.estimators.kernels.grid import PANEL, IntArray, Ranks

Bits = NDArray[np.uint32] | NDArray[np.uint64]
"""Floating-point numbers by their bits, or keys that sort as they do."""

Floats = NDArray[np.float32] | NDArray[np.float64]

DIGITS = 256
"""Values of a digit of a key, which has one per byte."""


@kernel
def rank(
    values: Bits,
    ordered: Bits,
    ranks: Ranks,
    untied: NDArray[np.bool_],
    start: Int,
    stop: Int,
) -> None:
    """Rank the variables start, ..., stop - 1.

    Args:
        values: Samples, [N, n].
        ordered: Set to each variable's values in ascending order, [n, N].
        ranks: Set to twice the mean rank of every sample, [N, n].
        untied: Set to whether all samples of a variable differ, [n].
        start: First variable,
        stop: and the one after the last.
    """
    samples = len(values)
    sign = np.uint64(1) << np.uint64(8 * values.itemsize - 1)
    keys = np.empty((PANEL, samples), values.dtype)
    panel = np.empty((PANEL, samples), ranks.dtype)
    order = np.empty(samples, np.int32)
    count = np.empty((values.itemsize, DIGITS), np.int32)
    for first in range(start, stop, PANEL):
        width = min(PANEL, stop - first)
        for i in range(samples):
            for v in range(width):
                bits = np.uint64(values[i, first + v])
                if bits == sign:  # -0.0 ties with 0.0
                    bits = np.uint64(0)
                keys[v, i] = ~bits if bits & sign else bits | sign
        for v in range(width):
            ascending, at = sort(keys[v], order, count)
            own, own_ranks = ordered[first + v], panel[v]
            p = runs = 0
            while p < samples:
                runs += 1
                first_of_run, key = p, np.uint64(ascending[p])
                bits = key ^ sign if key & sign else ~key
                while p < samples and ascending[p] == key:
                    own[p] = bits
                    p += 1
                for q in range(first_of_run, p):
                    own_ranks[np.uintp(at[q])] = first_of_run + p + 1
            untied[first + v] = runs == samples
        for i in range(samples):
            for v in range(width):
                ranks[i, first + v] = panel[v, i]


@kernel
def place(
    ordered: Floats, values: Floats, ranks: IntArray, start: Int, stop: Int
) -> None:
    """Rank values of the variables start, ..., stop - 1 among samples.

    Args:
        ordered: Each variable's samples in ascending order, [n, N].
        values: Values to be ranked, each by itself, [S, n].
        ranks: Set to twice the mean rank of each as sample N + 1, [S, n].
        start: First variable,
        stop: and the one after the last.
    """
    samples = ordered.shape[1]
    for v in range(start, stop):
        for i in range(len(values)):
            value = values[i, v]
            below, end = 0, samples
            while below < end:
                middle = (below + end) >> 1
                if ordered[v, np.uintp(middle)] < value:
                    below = middle + 1
                else:
                    end = middle
            upto, end = below, samples
            while upto < end:
                middle = (upto + end) >> 1
                if ordered[v, np.uintp(middle)] <= value:
                    upto = middle + 1
                else:
                    end = middle
            ranks[i, v] = below + upto + 2


@routine
def sort(keys: Bits, order: IntArray, count: IntArray) -> tuple[Bits, IntArray]:
    """Keys in ascending order and where each came from; overwrites its arguments.

    Digit by digit, from the lowest to the highest; what all keys share is skipped.
    """
    samples = len(keys)
    digits = len(count)
    count[:] = 0
    for i in range(samples):
        order[i] = i
        key = np.uint64(keys[i])
        for d in range(digits):
            count[d, np.uintp((key >> np.uint64(8 * d)) & np.uint64(DIGITS - 1))] += 1
    next_keys, next_order = np.empty_like(keys), np.empty_like(order)
    for d in range(digits):
        shift, place = np.uint64(8 * d), count[d]
        first = np.uintp((np.uint64(keys[0]) >> shift) & np.uint64(DIGITS - 1))
        if place[first] == samples:
            continue
        total = 0
        for digit in range(DIGITS):
            total += place[digit]
            place[digit] = total - place[digit]
        for p in range(samples):
            key = np.uint64(keys[p])
            own = np.uintp((key >> shift) & np.uint64(DIGITS - 1))
            to = np.uintp(place[own])
            place[own] += 1
            next_keys[to], next_order[to] = keys[p], order[p]
        keys, next_keys = next_keys, keys
        order, next_order = next_order, order
    return keys, order
