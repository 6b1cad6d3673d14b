"""Mixed KSG written out from its definition, one number at a time: the tests' oracle.

A point is never ranked or scaled in advance: each one is put together with the samples
it is compared with, and only then are all of them ranked or scaled, which is what
"a query is sample N + 1" means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import digamma, ndtri

Vector = Sequence[float]
"""The values of one sample."""


def pmi(
    x: Sequence[Vector],
    y: Sequence[Vector],
    k: int,
    formula: str = "corrected",
    marginals: str = "normal",
    eps: float = 2.0**-52,
) -> list[float]:
    """PMI of every sample against the others; x and y are lists of vectors."""
    return [
        pmi_of_query(
            [*x[:i], *x[i + 1 :]],
            [*y[:i], *y[i + 1 :]],
            (x[i], y[i]),
            k,
            formula,
            marginals,
            eps,
        )
        for i in range(len(x))
    ]


def pmi_of_query(
    x: Sequence[Vector],
    y: Sequence[Vector],
    query: tuple[Vector, Vector],
    k: int,
    formula: str = "corrected",
    marginals: str = "normal",
    eps: float = 2.0**-52,
) -> float:
    """PMI of one query against the samples."""
    *xs, qx = on_scale([*x, query[0]], marginals)
    *ys, qy = on_scale([*y, query[1]], marginals)
    distance_x = [chebyshev(v, qx) for v in xs]
    distance_y = [chebyshev(v, qy) for v in ys]
    plane = [max(pair) for pair in zip(distance_x, distance_y, strict=True)]
    rho = sorted(plane)[k - 1]

    # Each axis has rounding errors of its own. Rho is as uncertain as the axis along
    # which it is the distance of some sample; the other axis must allow for that too.
    error_x, error_y = (
        0.0 if marginals == "normal" else 8 * eps * (max(abs(v) for v in q) + rho)
        for q in (qx, qy)
    )
    near = [
        pair for pair in zip(distance_x, distance_y, strict=True) if max(pair) == rho
    ]
    from_x, from_y = (any(pair[axis] == rho for pair in near) for axis in (0, 1))
    near_x = error_x if from_x else error_x + error_y
    near_y = error_y if from_y else error_x + error_y
    zero = all(
        rho <= error
        for error, attains in ((error_x, from_x), (error_y, from_y))
        if attains
    )

    n = len(x) + 1
    c_joint = sum(
        dx <= rho + near_x and dy <= rho + near_y
        for dx, dy in zip(distance_x, distance_y, strict=True)
    )
    c_x = sum(d <= rho + near_x for d in distance_x)
    c_y = sum(d <= rho + near_y for d in distance_y)
    # Equal values are strictly inside, whatever the errors of others.
    s_x = sum(d < rho - near_x or d == 0 for d in distance_x)
    s_y = sum(d < rho - near_y or d == 0 for d in distance_y)
    if formula == "paper":
        near = digamma(c_joint if zero else k)
        return float(near + math.log(n) - math.log(c_x + 1) - math.log(c_y + 1))
    if zero:
        terms = digamma(c_joint + 1), digamma(c_x + 1), digamma(c_y + 1)
    else:
        terms = digamma(c_joint), digamma(max(c_x, s_x + 1)), digamma(max(c_y, s_y + 1))
    return float(terms[0] + digamma(n) - terms[1] - terms[2])


def chebyshev(a: Vector, b: Vector) -> float:
    return max(abs(u - v) for u, v in zip(a, b, strict=True))


def on_scale(vectors: Sequence[Vector], marginals: str) -> list[Vector]:
    """Every component on the scale that distances are measured on."""
    scale = {"normal": normal_scores, "standard": standardized, "raw": list}[marginals]
    return list(zip(*map(scale, zip(*vectors, strict=True)), strict=True))


def normal_scores(values: Vector) -> list[float]:
    return [score(mean_rank(values, v), len(values)) for v in values]


def mean_rank(values: Vector, value: float) -> float:
    below = sum(v < value for v in values)
    return below + (sum(v == value for v in values) + 1) / 2


def score(rank: float, n: int) -> float:
    """Normal score, an exactly antisymmetric function of rank on a grid of 2^-26."""
    if rank > (n + 1) / 2:
        return -score(n + 1 - rank, n)
    return round(float(ndtri((rank - 0.5) / n)) * 2**26) / 2**26


def standardized(values: Vector) -> list[float]:
    if min(values) == max(values):
        return list(values)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    return [v / math.sqrt(variance) for v in values]
