"""The page of :mod:`benchmarks.uncertainty`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report import Report
from benchmarks.uncertainty.figure import draw
from benchmarks.uncertainty.links import LINKED, NODES, WIDTH
from benchmarks.uncertainty.tables import (
    Errors,
    Graphs,
    Rates,
    error_rows,
    graph_rows,
    null_rows,
    rate_rows,
)


def build_report(
    rates: Rates,
    graphs: Graphs,
    errors: Errors,
    shown: str,
    settings: Mapping[str, Any],
) -> Report:
    r"""
    Puts tables, figure and what they mean onto one page.

    Args:

        rates (Rates): False positives.
        graphs (Graphs): Discoveries.
        errors (Errors): Standard errors.
        shown (str): The estimator that the figure shows.
        settings (Mapping[str, Any]): The options of the command line.

    Returns:

        Report: Not written yet.
    """
    repeats, level = settings["repeats"], settings["level"]
    report = Report(
        "uncertainty",
        "How far can p-values and standard errors be trusted?",
        settings["seed"],
    )
    report.text(
        "Intervals are of 95 %: by Student's t over repeats, graphs or trainings, "
        "Wilson's for shares of graphs. Each repeat and graph has its own samples and "
        "its own null tables."
    )
    report.figure(
        draw(rates, graphs, errors, shown, level),
        caption=f"{shown}. Above: share of independent links taken for dependent "
        "ones, divided by the level. Below: links found, and false ones, at a false "
        f"discovery rate of {level:g}; standard errors by the scatter there is.",
    )
    report.table(
        list(rate_rows(rates)),
        "false_positives",
        "## Independent links\n\nShare of links with a p-value up to a level, divided "
        f"by the level: 1 is as it should be, more is too many. {repeats} repeats of "
        f"{WIDTH * WIDTH} links.",
    )
    report.table(
        list(null_rows(graphs)),
        "empty_graphs",
        f"## Graphs without any link\n\nShare of graphs of {NODES * NODES} independent "
        f"pairs in which something is found at a false discovery rate of {level:g}.",
    )
    report.table(
        list(graph_rows(graphs)),
        "discoveries",
        f"## Graphs with known links\n\n{LINKED} of {NODES * NODES} pairs are linked, "
        "with the correlation given (before layers get their zeros). Found: share of "
        "those; false: share of all that was found, mean over graphs.",
    )
    report.table(
        list(error_rows(errors)),
        "standard_errors",
        "## Standard errors\n\nOf `standard_error`, over fresh backgrounds of "
        f"{settings['background']} samples that share none. Ratio: root mean square "
        "standard error by standard deviation over backgrounds. Covered: share of "
        "intervals of 95 % that hold the mean over other backgrounds. Off: by how much "
        "of itself a single standard error scatters. Clear: share of attributions "
        "beyond two standard errors from 0. Features that never vary are left out.",
    )
    return report
