"""The figure of :mod:`benchmarks.uncertainty`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from benchmarks.intervals import interval
from benchmarks.uncertainty.links import LEVELS, Array
from benchmarks.uncertainty.tables import (
    Errors,
    Graphs,
    Rates,
    false_row,
    half,
    null_rows,
    over,
    ratio,
)

COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#7f0000", "#009e73", "#56b4e9", "#cc79a7")
STYLES: dict[str, Any] = {
    "continuous": {"linestyle": "-", "marker": "o"},
    "50 % zeros": {"linestyle": "--", "marker": "s"},
    "90 % zeros": {"linestyle": ":", "marker": "^"},
}
BLUES = ("#9ecae1", "#4292c6", "#08306b")


def draw(
    rates: Rates, graphs: Graphs, errors: Errors, shown: str, level: float
) -> Figure:
    r"""
    Calibration for each N, power, false discoveries, and standard errors.

    Args:

        rates (Rates): False positives.
        graphs (Graphs): Discoveries.
        errors (Errors): Standard errors.
        shown (str): The estimator.
        level (float): The false discovery rate.

    Returns:

        matplotlib.figure.Figure: The figure.
    """
    sizes = list(dict.fromkeys(n for _, n, _ in rates))
    columns = max(3, len(sizes))
    figure = Figure(figsize=(3.6 * columns, 7.0), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.08, 1))
    top = np.atleast_1d(upper.subplots(1, len(sizes), sharey=True))
    for axis, n in zip(top, sizes, strict=True):
        _draw_rates(
            axis, {k: s for (e, m, k), s in rates.items() if (e, m) == (shown, n)}
        )
        axis.set_title(f"Independent links, N = {n}", fontsize=10, loc="left")
    top[0].set_ylabel("observed / nominal rate")
    handles, labels = top[0].get_legend_handles_labels()
    upper.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    power, false, ratios = lower.subplots(1, 3)
    _draw_power(power, graphs, shown)
    _draw_false(false, graphs, shown, level)
    _draw_errors(ratios, errors)
    for axis in (*top, power, false, ratios):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
        axis.set_axisbelow(True)
    return figure


def _draw_rates(axis: Axes, kinds: Mapping[str, Array]) -> None:
    """Observed by nominal rate against the level; constants, never taken, left out."""
    axis.axhline(1, color="0.3", linewidth=0.9)
    drawn = {kind: shares for kind, shares in kinds.items() if shares.any()}
    shift = np.linspace(-0.035, 0.035, max(1, len(drawn)))
    for (kind, shares), color, away in zip(drawn.items(), COLOURS, shift, strict=False):
        told = [ratio(shares, level) for level in LEVELS]
        axis.errorbar(
            np.array(LEVELS) * 10**away,
            [found.mean for found in told],
            [found.half for found in told],
            color=color,
            label=kind,
            marker="o",
            markersize=3,
            linewidth=1.1,
            elinewidth=0.7,
        )
    axis.set(xscale="log", xlabel="level of the p-value", ylim=(0, 1.8))
    axis.set_xticks([0.001, 0.01, 0.1], labels=["0.001", "0.01", "0.1"])
    axis.grid(axis="y", color="0.92")


def _draw_power(axis: Axes, graphs: Graphs, shown: str) -> None:
    """Links found against the correlation."""
    cells = {key[1:]: f for key, f in graphs.items() if key[0] == shown and key[3]}
    sizes = list(dict.fromkeys(n for n, _, _ in cells))
    layers = list(dict.fromkeys(made for _, made, _ in cells))
    colors = dict(zip(sizes, BLUES[-len(sizes) :], strict=False))
    for n, made in ((n, made) for n in sizes for made in layers):
        told = {
            r: interval(found.power.tolist())
            for (m, of, r), found in cells.items()
            if (m, of) == (n, made)
        }
        axis.errorbar(
            list(told),
            [found.mean for found in told.values()],
            [half(found) for found in told.values()],
            color=colors[n],
            linewidth=1.1,
            elinewidth=0.7,
            markersize=3,
            **STYLES[made],
        )
    axis.set(ylim=(-0.02, 1.02), xlabel="correlation of linked nodes")
    axis.set_ylabel("share found of the links there are")
    axis.set_title("Links found", fontsize=10, loc="left")
    axis.grid(axis="y", color="0.92")
    axis.legend(
        handles=[
            *(Line2D([], [], color=colors[n], label=f"N = {n}") for n in sizes),
            *(
                Line2D([], [], color="0.3", markersize=4, label=made, **STYLES[made])
                for made in layers
            ),
        ],
        fontsize=7.5,
        frameon=False,
        loc="upper left",
        borderaxespad=0.1,
    )


def _draw_false(axis: Axes, graphs: Graphs, shown: str, level: float) -> None:
    """False discoveries in graphs with links and without."""
    sizes = list(dict.fromkeys(n for name, n, _, _ in graphs if name == shown))
    layers = list(dict.fromkeys(made for _, _, made, _ in graphs))
    empty = {
        (row["N"], row["layers"]): row
        for row in null_rows(graphs)
        if row["estimator"] == shown
    }
    colors = dict(zip(sizes, BLUES[-len(sizes) :], strict=False))
    axis.axhline(level, color="0.3", linewidth=0.9)
    for place, (n, made) in enumerate((n, made) for made in layers for n in sizes):
        told, none = false_row(graphs, shown, n, made), empty[n, made]
        low, share, high = (float(str(none[key])) for key in ("from", "share", "to"))
        style: dict[str, Any] = {
            "color": colors[n],
            "marker": STYLES[made]["marker"],
            "markersize": 5,
            "elinewidth": 0.9,
        }
        axis.errorbar(place - 0.15, told.mean, half(told), **style)
        axis.errorbar(
            place + 0.15,
            share,
            [[share - low], [high - share]],
            markerfacecolor="white",
            **style,
        )
    axis.set_xticks(
        [len(sizes) * (i + 0.5) - 0.5 for i in range(len(layers))], labels=layers
    )
    axis.tick_params(axis="x", length=0)
    # Linear up to twice the level, so that what is far beyond can be shown as well.
    axis.set_yscale("symlog", linthresh=2 * level, linscale=2)
    axis.set_ylim(-0.05 * level, 1)
    axis.set_yticks([0, level, 2 * level, 0.5, 1])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylabel("share false of the links found")
    axis.set_title(f"False discoveries at a rate of {level:g}", fontsize=10, loc="left")
    axis.grid(axis="y", color="0.92")
    plain: dict[str, Any] = {
        "color": "0.3",
        "marker": "o",
        "linestyle": "",
        "markersize": 5,
    }
    axis.legend(
        handles=[
            Line2D([], [], label="graphs with links", **plain),
            Line2D([], [], markerfacecolor="white", label="graphs without", **plain),
        ],
        fontsize=7.5,
        frameon=False,
        loc="upper left",
        borderaxespad=0.1,
    )


def _draw_errors(axis: Axes, errors: Errors) -> None:
    """Standard errors by the scatter there is, one line for each comparison."""
    rows = list(errors)
    presets = list(dict.fromkeys(preset for _, preset, _ in rows))
    for y, row in enumerate(rows):
        found = over(errors[row], "ratio")
        axis.errorbar(
            found.mean,
            y,
            xerr=half(found),
            fmt="o",
            markersize=4,
            capsize=2,
            color=COLOURS[2 * presets.index(row[1])],
        )
    axis.axvline(1, color="0.3", linewidth=0.9)
    axis.set_yticks(
        range(len(rows)), labels=[f"{case}, {of}" for case, _, of in rows], fontsize=8
    )
    handles = [
        Line2D([], [], color=COLOURS[2 * i], marker="o", markersize=4, label=preset)
        for i, preset in enumerate(presets)
    ]
    axis.legend(handles=handles, fontsize=7.5, frameon=False, loc="best")
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("standard error / scatter over backgrounds")
    axis.set_title("Standard errors", fontsize=10, loc="left")
    axis.grid(axis="x", color="0.92")
