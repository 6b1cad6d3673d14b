"""What the faithfulness of several trainings comes to: means, shares, words."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.intervals import Interval, interval
from benchmarks.report import Row

REFERENCE = "IG, mean"
CASCADES = ("cascade", "cascade |a|")
TIMES = ("fit, s", "explanation, s")

Networks = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]
"""Results by data set and network, then by method, one for each training."""


def with_shares(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    r"""
    Adds to each row its share of the reference's advantage over chance.

    Args:

        rows (Sequence[Mapping[str, Any]]): All results; those of the reference method
            among them, for each network and training.

    Returns:

        list[dict[str, Any]]: The rows with ``share``; NaN where the reference has no
        advantage.

    Examples::

        >>> of = {"dataset": "iris", "network": "MLP", "training": 0}
        >>> methods = {"IG, mean": 0.625, "NIF": 0.5}
        >>> rows = [{**of, "method": m, "gap": gap} for m, gap in methods.items()]
        >>> [row["share"] for row in with_shares(rows)]
        [1.0, 0.8]
    """
    where = ("dataset", "network", "training")
    reference = {
        tuple(row[key] for key in where): row["gap"]
        for row in rows
        if row["method"] == REFERENCE
    }
    shared = []
    for row in rows:
        gap = reference[tuple(row[key] for key in where)]
        share = row["gap"] / gap if gap > 0 else math.nan
        shared.append({**row, "share": share})
    return shared


def by_network(rows: Sequence[dict[str, Any]]) -> Networks:
    """Results by data set and network, then by method, one for each training."""
    found: Networks = {}
    for row in rows:
        methods = found.setdefault((row["dataset"], row["network"]), {})
        methods.setdefault(row["method"], []).append(row)
    return found


def summary(
    methods: Mapping[str, Sequence[Mapping[str, Any]]], columns: Sequence[str]
) -> list[Row]:
    r"""
    One row for each method: means over trainings, with intervals but for times.

    Args:

        methods (Mapping): Results by method, one for each training.
        columns (Sequence[str]): The measures; those that are unknown are left out.

    Returns:

        list[Row]: The rows, as text.
    """
    return [
        {
            "method": method,
            **{
                column: f"{found.mean:.2g}" if column in TIMES else str(found)
                for column in columns
                if not math.isnan((found := across(results, column)).mean)
                or column == "share"
            },
        }
        for method, results in methods.items()
    ]


def across(results: Sequence[Mapping[str, Any]], column: str) -> Interval:
    """A measure over trainings."""
    return interval([float(result[column]) for result in results])


def verdict(networks: Networks, method: str) -> Iterator[str]:
    r"""
    What a method is better and worse than, by mean insertion less deletion.

    Args:

        networks (Networks): Results of all methods.
        method (str): The method.

    Yields:

        str: A line of Markdown for each network.
    """
    for (dataset, network), methods in networks.items():
        gaps = {name: across(results, "gap").mean for name, results in methods.items()}
        own = gaps.pop(method)
        better = [name for name, gap in gaps.items() if own > gap]
        worse = [name for name, gap in gaps.items() if own < gap]
        share = across(methods[method], "share")
        yield (
            f"- {dataset}, {network}: share {share}; ahead of "
            f"{'; '.join(better) or 'none'} | behind {'; '.join(worse) or 'none'}"
        )


def cascades(methods: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Row]:
    """Correlations after one more module from the top, signed and absolute."""
    for (method, results), kind in itertools.product(methods.items(), CASCADES):
        depths = zip(*(result[kind] for result in results), strict=True)
        yield {
            "method": method,
            "of": "|a|" if kind.endswith("|a|") else "a",
            **{str(i): f"{statistics.fmean(d):.2f}" for i, d in enumerate(depths, 1)},
        }
