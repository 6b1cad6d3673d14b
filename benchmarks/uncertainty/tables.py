"""What :mod:`benchmarks.uncertainty` comes to: rates, shares and their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from benchmarks.intervals import Interval, interval
from benchmarks.report import Row
from benchmarks.uncertainty.links import LEVELS, Array, Discoveries

Rates = dict[tuple[str, int, str], Array]
"""By estimator, N and kind of links: shares of p-values up to levels, [repeats, .]."""

Graphs = dict[tuple[str, int, str, float], Discoveries]
"""By estimator, N, what layers are made of, and correlation of linked nodes."""

Errors = dict[tuple[str, str, str], list[Mapping[str, float]]]
"""By case, preset and what is explained: the measures of each training."""

TOLD = (0.1, 0.05, 0.01, 0.001)
"""Levels in the table."""


def rate_rows(rates: Rates) -> Iterator[Row]:
    """Observed by nominal rate for the levels told."""
    for (name, n, kind), shares in rates.items():
        yield {
            "estimator": name,
            "N": n,
            "links": kind,
            **{f"at {level:g}": _told(ratio(shares, level)) for level in TOLD},
        }


def ratio(shares: Array, level: float) -> Interval:
    r"""
    Observed by nominal rate of false positives.

    Args:

        shares (ndarray): Of p-values up to levels, [repeats, levels].
        level (float): One of :data:`~benchmarks.uncertainty.links.LEVELS`.

    Returns:

        Interval: The ratio, over repeats.
    """
    return interval((shares[:, LEVELS.index(level)] / level).tolist())


def null_rows(graphs: Graphs) -> Iterator[Row]:
    """Graphs without links: how many of them show one."""
    for (name, n, layers, correlation), found in graphs.items():
        if correlation == 0:
            some, count = int((found.false > 0).sum()), len(found.false)
            low, high = wilson(some, count)
            yield {
                "estimator": name,
                "N": n,
                "layers": layers,
                "graphs": count,
                "share": some / count,
                "from": low,
                "to": high,
            }


def wilson(hits: int, count: int) -> tuple[float, float]:
    r"""
    Wilson's 95 % interval of a share.

    Examples::

        >>> [round(limit, 3) for limit in wilson(0, 100)]
        [0.0, 0.037]
    """
    found = binomtest(hits, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def graph_rows(graphs: Graphs) -> Iterator[Row]:
    """Graphs with links: how many are found, and how much of it is false."""
    for (name, n, layers, correlation), found in graphs.items():
        if correlation:
            yield {
                "estimator": name,
                "N": n,
                "layers": layers,
                "correlation": correlation,
                "graphs": len(found.true),
                "found": _told(interval(found.power.tolist())),
                "false": _told(interval(found.false_share.tolist()), 3),
            }


def false_row(graphs: Graphs, name: str, n: int, layers: str) -> Interval:
    r"""
    False share of what was found, over all graphs of one size that hold links.

    Args:

        graphs (Graphs): All of them.
        name (str): The estimator.
        n (int): Samples.
        layers (str): What the layers are made of.

    Returns:

        Interval: The mean over graphs, of all correlations.
    """
    return interval(
        [
            share
            for (*cell, correlation), found in graphs.items()
            if cell == [name, n, layers] and correlation
            for share in found.false_share.tolist()
        ]
    )


def error_rows(errors: Errors) -> Iterator[Row]:
    """Standard errors beside the scatter there is."""
    for (case, preset, of), told in errors.items():
        yield {
            "network": case,
            "preset": preset,
            "of": of,
            "trainings": len(told),
            **{name: _told(over(told, name)) for name in told[0]},
        }


def over(told: Sequence[Mapping[str, float]], name: str) -> Interval:
    """A measure over trainings."""
    return interval([measures[name] for measures in told])


def half(found: Interval) -> float:
    """Half of an interval, 0 where there is none."""
    return 0.0 if np.isnan(found.half) else found.half


def _told(found: Interval, digits: int = 2) -> str:
    half = "" if np.isnan(found.half) else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"
