"""PMI on GPUs: compiled by Triton, which comes with PyTorch's builds for them.

One program solves one point in the plane of one pair of variables, by brute force. Its
threads hold the distances to all samples, so that memory is read once, and find rho by
bisection: how many samples lie within the middle of an interval? Each answer halves the
interval, and k itself ends the search. That takes a dozen answers where nothing ties,
and 31 at most (63 for floats), whatever k is; taking out the smallest distance again
and again takes up to k rounds.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import triton
import triton.language as tl
from torch import Tensor

from captum_nif.estimators import marginals

Value: TypeAlias = Any
"""In kernels, a number, a row of them, or a pointer: Triton infers which. Quoted, since
Triton evaluates annotations, and takes no global names but its own."""

FAR = tl.constexpr(2**31 - 1)
"""An integer distance out of all reach."""

LEAST_DISTANCE = tl.constexpr(marginals.LEAST_DISTANCE)

_WORDS_PER_WARP = 1024
"""Distances, of 32 bits, that a warp has registers for, along x, y and in the plane."""

_MOST_WARPS = 32


def solve(
    x: tuple[Tensor, Tensor],
    y: tuple[Tensor, Tensor],
    roundoff: tuple[float, float],
    k: int,
    terms: tuple[Tensor, Tensor],
    pmi: Tensor,
) -> None:
    """Find the PMI of some points for all pairs of variables, in units of terms.

    Args:

        x: Distances from points to samples along variables, [points, x, N], int32 if
            they are exact, else float64, and far for what is no other sample; and
            magnitudes of the points' own values, [points, x].
        y: The same along other variables, [points, y, N] and [points, y].
        roundoff: Relative error of a distance along x and along y, 0 if exact.
        k: Number of neighbors.
        terms: The formula's terms for the plane, and those for an axis.
        pmi: Where results go, [points, x, y], int64.
    """
    _, width_x, width_y = pmi.shape
    distances, _ = x
    samples = distances.shape[-1]
    block = triton.next_power_of_2(samples)
    warps = block * distances.element_size() // 4 // _WORDS_PER_WARP
    _solve[(pmi.numel(),)](
        *(tensor.contiguous() for tensor in (*x, *y, *terms)),
        pmi,
        width_x,
        width_y,
        samples,
        terms[0].shape[1],
        k,
        *roundoff,
        block,
        num_warps=min(max(warps, 1), _MOST_WARPS),
        # Fused, a product and a sum would be rounded otherwise than by PyTorch.
        enable_fp_fusion=False,
    )


def _kernel(function: Callable[..., Value]) -> Value:
    """Compile for Triton, once for all k and numbers of variables."""
    sizes = ["width_x", "width_y", "counts", "k"]
    return triton.jit(function, do_not_specialize=sizes)


@_kernel
def _solve(
    distances_x: "Value",
    magnitudes_x: "Value",
    distances_y: "Value",
    magnitudes_y: "Value",
    joint: "Value",
    margin: "Value",
    pmi: "Value",
    width_x: "Value",
    width_y: "Value",
    samples: "Value",
    counts: "Value",
    k: "Value",
    roundoff_x: tl.constexpr,
    roundoff_y: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Find one PMI, that of a point for a pair; both follow from the program's id."""
    result = tl.program_id(0)
    at_x = result // width_y
    at_y = at_x // width_x * width_y + result % width_y
    x = _row(distances_x, at_x, samples, roundoff_x, block)
    y = _row(distances_y, at_y, samples, roundoff_y, block)
    plane = tl.maximum(x, y)
    if roundoff_x == 0:
        rho = _smallest(plane, k)
        near_x, near_y, is_zero = rho * 0, rho * 0, rho == 0
        inside_x, inside_y = rho, rho
    else:
        # The bits of floats that are not negative are in the order of the floats.
        bits = _smallest(plane.to(tl.int64, bitcast=True), k)
        rho = bits.to(tl.float64, bitcast=True)
        # The axis that attains rho has its own error, the other allows for both.
        from_x = tl.max(((x == rho) & (y <= rho)).to(tl.int32), 0) > 0
        from_y = tl.max(((y == rho) & (x <= rho)).to(tl.int32), 0) > 0
        error_x = roundoff_x * (tl.load(magnitudes_x + at_x) + rho)
        error_y = roundoff_y * (tl.load(magnitudes_y + at_y) + rho)
        both = error_x + error_y
        near_x, near_y = (
            tl.where(from_x, error_x, both),
            tl.where(from_y, error_y, both),
        )
        is_zero = ((rho <= error_x) | (from_x == 0)) & (
            (rho <= error_y) | (from_y == 0)
        )
        # Equal values are inside, whatever the errors of others.
        inside_x = tl.maximum(rho - near_x, LEAST_DISTANCE)
        inside_y = tl.maximum(rho - near_y, LEAST_DISTANCE)
    within = (x <= rho + near_x) & (y <= rho + near_y)
    count = tl.sum(within.to(tl.int32), 0)
    value = tl.load(joint + tl.where(is_zero, counts, 0) + count)
    value -= _margin(x, inside_x, rho + near_x, is_zero, margin, counts)
    value -= _margin(y, inside_y, rho + near_y, is_zero, margin, counts)
    tl.store(pmi + result, value)


@_kernel
def _row(
    distances: "Value",
    at: "Value",
    samples: "Value",
    roundoff: tl.constexpr,
    block: tl.constexpr,
) -> "Value":
    """Distances from one point along one variable, and far ones up to ``block``."""
    j = tl.arange(0, block)
    far = FAR if roundoff == 0 else float("inf")
    return tl.load(distances + at * samples + j, mask=j < samples, other=far)


@_kernel
def _smallest(distances: "Value", k: "Value") -> "Value":
    """The k-th smallest of integers that are not negative."""
    low, high = tl.min(distances, 0), tl.max(distances, 0)
    while low < high:
        middle = low + (high - low) // 2
        count = tl.sum((distances <= middle).to(tl.int32), 0)
        high = tl.where(count < k, high, middle)
        # Just k are within the middle: the search ends, for the largest is among them.
        low = tl.where(count < k, middle + 1, tl.where(count == k, middle, low))
    return tl.max(tl.where(distances <= high, distances, 0), 0)


@_kernel
def _margin(
    along: "Value",
    inside: "Value",
    reach: "Value",
    is_zero: "Value",
    margin: "Value",
    counts: "Value",
) -> "Value":
    """The term of one axis."""
    strict = tl.sum((along < inside).to(tl.int32), 0)
    closed = tl.sum((along <= reach).to(tl.int32), 0)
    edge = (strict < closed) & (is_zero == 0)
    return tl.load(margin + tl.where(edge, counts, 0) + closed)
