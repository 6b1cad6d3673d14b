"""The figures of :mod:`benchmarks.ks_comparison.report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.intervals import Interval
from benchmarks.ks_comparison.distance import Values, ks_distance, unit_sum
from benchmarks.ks_comparison.forms import FORMS, LABELS

COLOURS = {"NIF": "#0072b2", "rival": "#d55e00", "baseline": "#8c8c8c"}
MOST_BARS = 24

Panels = Mapping[str, Mapping[str, Values]]
"""For each network the scores of one class by form, :data:`LABELS` among them."""

Draw = Callable[[Axes, str, Values, Values], None]
"""Draws the scores of a form, beside those of the yardstick."""


def draw_distributions(panels: Panels, scaled: bool) -> Figure:
    r"""
    What a KS test compares: both empirical distribution functions, and their gap.

    Args:

        panels (Panels): A row of the figure for each network.
        scaled (bool): Whether scores are divided by the sum of their absolute values.

    Returns:

        matplotlib.figure.Figure: A panel for each network and form.
    """

    def draw(axis: Axes, form: str, values: Values, yardstick: Values) -> None:
        a, b = (unit_sum(v) if scaled else v for v in (values, yardstick))
        low, high = (f([a.min(), b.min(), a.max(), b.max()]) for f in (min, max))
        margin = 0.05 * (high - low) or 1.0
        for shown, color, width in ((b, "black", 1.1), (a, _color(form), 1.8)):
            x = np.concatenate([[low - margin], np.sort(shown), [high + margin]])
            height = np.arange(len(shown) + 1) / len(shown)
            axis.step(x, [*height, 1], where="post", color=color, linewidth=width)
        at, bottom, top = widest_gap(a, b)
        axis.plot([at, at], [bottom, top], color="#cc3377", linewidth=2.2, alpha=0.8)
        axis.text(
            0.97,
            0.06,
            f"D = {ks_distance(a, b):.2f}",
            transform=axis.transAxes,
            ha="right",
            fontsize=8,
            color="#a01858",
        )
        axis.set_xlim(low - margin, high + margin)
        axis.set_yticks([0, 0.5, 1])
        axis.locator_params(axis="x", nbins=4)

    figure = _grid(panels, draw, "share of features", height=1.55)
    unit = "share of the sum" if scaled else "raw score"
    figure.supxlabel(f"{unit}, at most", fontsize=9)
    figure.legend(
        handles=[
            Line2D([], [], color="black", label="raw MI"),
            Line2D([], [], color=COLOURS["NIF"], label="a form of NIF"),
            Line2D([], [], color=COLOURS["rival"], label="another method"),
            Line2D([], [], color="#cc3377", linewidth=2.2, label="largest gap, D"),
        ],
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure


def draw_ranked(panels: Panels) -> Figure:
    r"""
    Scores as shares, features in the order of raw mutual information.

    Args:

        panels (Panels): A row of the figure for each network.

    Returns:

        matplotlib.figure.Figure: A panel for each network and form, with the
        :data:`MOST_BARS` features of most information at most.
    """

    def draw(axis: Axes, form: str, values: Values, yardstick: Values) -> None:
        order = (-yardstick).argsort(kind="stable")[:MOST_BARS]
        places = np.arange(len(order))
        axis.bar(places, unit_sum(values)[order], color=_color(form), width=0.85)
        axis.plot(
            places, unit_sum(yardstick)[order], "o", color="black", markersize=2.4
        )
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xticks([])
        axis.locator_params(axis="y", nbins=4)

    figure = _grid(panels, draw, "share", height=1.55)
    figure.supxlabel("features, those of most raw MI first", fontsize=9)
    figure.legend(
        handles=[
            Line2D([], [], color="black", marker="o", linewidth=0, label="raw MI"),
            Patch(color=COLOURS["NIF"], label="a form of NIF"),
            Patch(color=COLOURS["rival"], label="another method"),
        ],
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


def draw_closeness(
    measures: Mapping[str, Mapping[tuple[str, str], Interval]],
) -> Figure:
    r"""
    Every form's means over trainings, with their intervals.

    Args:

        measures (Mapping): For each measure, the interval for each form and network.

    Returns:

        matplotlib.figure.Figure: A row for each measure, a panel for each network.
    """
    keys = list(next(iter(measures.values())))
    places = list(dict.fromkeys(place for _, place in keys))
    forms = list(dict.fromkeys(form for form, _ in keys))[::-1]
    figure = Figure(
        figsize=(1.2 + 1.75 * len(places), 3.0 * len(measures)), layout="constrained"
    )
    grid = figure.subplots(
        len(measures), len(places), squeeze=False, sharey=True, sharex="row"
    )
    for line, (measure, found) in zip(grid, measures.items(), strict=True):
        for axis, place in zip(line, places, strict=True):
            for y, form in enumerate(forms):
                if (form, place) in found:
                    mean, half = found[form, place]
                    error = None if np.isnan(half) else half
                    axis.errorbar(
                        mean, y, xerr=error, fmt="o", color=_color(form), markersize=4
                    )
            axis.grid(axis="x", color="#dddddd")
            axis.tick_params(labelsize=8)
            axis.set_axisbelow(True)
            axis.set_title(place, fontsize=9)
        line[0].set_yticks(range(len(forms)), forms, fontsize=8)
        line[len(line) // 2].set_xlabel(measure, fontsize=9)
    return figure


def widest_gap(a: Values, b: Values) -> tuple[float, float, float]:
    r"""
    Where two empirical distribution functions differ most.

    Args:

        a (ndarray): Scores.
        b (ndarray): Scores.

    Returns:

        tuple[float, float, float]: The place, and the heights of the lower and of the
        upper function there; their difference is D.

    Examples::

        >>> widest_gap(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
        (1.0, 0.0, 0.5)
    """
    places = np.unique(np.concatenate([a, b]))
    heights = np.stack(
        [np.searchsorted(np.sort(s), places, side="right") / len(s) for s in (a, b)]
    )
    widest = int(np.abs(heights[0] - heights[1]).argmax())
    low, high = sorted(heights[:, widest].tolist())
    return float(places[widest]), low, high


def _grid(panels: Panels, draw: Draw, label: str, height: float) -> Figure:
    """A row for each network and a column for each form, drawn panel by panel."""
    forms = [form for form in next(iter(panels.values())) if form != LABELS]
    figure = Figure(
        figsize=(1.0 + 1.75 * len(forms), 0.9 + height * len(panels)),
        layout="constrained",
    )
    grid = figure.subplots(len(panels), len(forms), squeeze=False)
    for line, (place, scores) in zip(grid, panels.items(), strict=True):
        for axis, form in zip(line, forms, strict=True):
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
            draw(axis, form, scores[form], scores[LABELS])
        line[0].set_ylabel(f"{place}\n{label}", fontsize=8)
    for axis, form in zip(grid[0], forms, strict=True):
        axis.set_title(form, fontsize=9)
    return figure


def _color(form: str) -> str:
    return COLOURS[FORMS[form].kind]
