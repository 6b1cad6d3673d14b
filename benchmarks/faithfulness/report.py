"""What :mod:`benchmarks.faithfulness` measured, as a page with figures."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from benchmarks.faithfulness.methods import METHODS
from benchmarks.faithfulness.summary import (
    CASCADES,
    REFERENCE,
    TIMES,
    Networks,
    across,
    by_network,
    cascades,
    summary,
    verdict,
    with_shares,
)
from benchmarks.intervals import interval
from benchmarks.report import Report, markdown_table

CURVES = ("deletion curve", "insertion curve")
CHECKS = ("randomized", "randomized |a|", "relevant mass", "relevant AUC")
QUALITY = ("deletion", "insertion", "share", "infidelity", "sensitivity")
NIF_COLOURS = ("#b2182b", "#f4a05f", "#e31a8c", "#fdd000")
OTHER_COLOURS = ("#92c5de", "#2166ac", "#1b7837", "#762a83", "#8c6d31")
GREY = "#7f7f7f"

MEANING = f"""
- **deletion**, **insertion**: area under the curve of the class's probability as
  features are replaced by those of other samples, in order of signed attribution, and
  as they come back; 16 steps (fewer with fewer features), 8 donors for each sample, all
  features of a replacement from one donor, another test sample. Lower deletion and
  higher insertion are better.
- **share** of the advantage that {REFERENCE} has over chance: (insertion - deletion) of
  the method over the same of {REFERENCE}, in each training. For a random order it is 0
  in expectation, since both ways replace the same sets.
- **infidelity** (`captum.metrics.infidelity`, normalized): the part of the changes of
  the class's logit, when random sets of features take a donor's values, that the sums
  of their attributions leave unexplained; 0 is best, 1 is as good as zeros.
- **sensitivity** (`captum.metrics.sensitivity_max`, radius 0.02, 5 draws): the largest
  relative change of a map as its sample moves a little; lower is steadier.
- **randomized**, **randomized |a|**: Spearman's correlation of maps, and of their
  absolute values, before and after all weights are drawn anew and the method made
  anew; 0 is best, 1 means that a map does not depend on what was learned.
- **relevant mass**, **relevant AUC**, where the relevant features are known: their
  share of absolute attribution, and the chance that one of them outranks another
  feature. Higher is better.
- Times are processor time in one thread: of a fit, and of one explanation in a batch.
""".strip()


def style(method: str) -> dict[str, Any]:
    """A color and a line: warm and thick for NIF, cool for others, dots for chance."""
    own, chance = method.startswith("NIF"), method == "random"
    alike = [name for name in METHODS if name.startswith("NIF") == own]
    colors = NIF_COLOURS if own else OTHER_COLOURS
    return {
        "color": GREY if chance else colors[alike.index(method) % len(colors)],
        "linewidth": 2.4 if own else 1.3,
        "linestyle": ":" if chance else "-",
        "zorder": 2 if own else 3,  # or thick lines would hide thin ones
    }


def draw_curves(networks: Networks) -> Figure:
    r"""
    Deletion and insertion curves, two panels for each network.

    Args:

        networks (Networks): Results of all methods.

    Returns:

        matplotlib.figure.Figure: Means over trainings, bands from the lowest to the
        highest.
    """
    figure = Figure(layout="constrained")
    lines = math.ceil(len(networks) / 2)
    columns = 4 if len(networks) > 1 else 2
    figure.set_size_inches(2.9 * columns, 2.5 * lines + 0.7)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    panels = itertools.product(networks.items(), CURVES)
    for axis, (((dataset, network), methods), curve) in zip(
        axes.flat, panels, strict=False
    ):
        for method, results in methods.items():
            _draw_band(axis, results, curve, style(method))
        way = curve.split()[0]
        axis.set_title(f"{dataset}, {network}: {way}", fontsize=9)
        axis.set_xlabel("put back" if way == "insertion" else "replaced", fontsize=9)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[2 * len(networks) :]:
        axis.set_axis_off()
    figure.supylabel("probability of the class", fontsize=10)
    _legend(figure, next(iter(networks.values())), marked=False)
    return figure


def _draw_band(
    axis: Axes,
    results: Sequence[Mapping[str, Any]],
    curve: str,
    look: Mapping[str, Any],
) -> None:
    """The mean over trainings, within the lowest and the highest."""
    shares = results[0]["shares"]
    steps = list(zip(*(result[curve] for result in results), strict=True))
    axis.plot(shares, list(map(statistics.fmean, steps)), **look)
    low, high = list(map(min, steps)), list(map(max, steps))
    axis.fill_between(shares, low, high, color=look["color"], alpha=0.12, linewidth=0)


def draw_costs(networks: Networks) -> Figure:
    r"""
    Share of the reference's advantage against the time of an explanation.

    Args:

        networks (Networks): Results of all methods.

    Returns:

        matplotlib.figure.Figure: A panel for each network; bars are intervals over
        trainings. A random order is left out: it takes no time.
    """
    columns = min(3, len(networks))
    lines = math.ceil(len(networks) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.7 * lines + 0.7), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axis in axes.flat[len(networks) :]:
        axis.set_axis_off()
    for ((dataset, network), methods), axis in zip(
        networks.items(), axes.flat, strict=False
    ):
        axis.axhline(0, color=GREY, linestyle=":", linewidth=1)
        axis.axhline(1, color=style(REFERENCE)["color"], linewidth=0.6)
        for method, results in methods.items():
            if method == "random":
                continue
            share, look = across(results, "share"), style(method)
            axis.errorbar(
                across(results, "explanation, s").mean,
                share.mean,
                yerr=None if math.isnan(share.half) else share.half,
                marker=_marker(method),
                markersize=6,
                capsize=2,
                linewidth=1,
                color=look["color"],
                zorder=look["zorder"],
            )
        axis.set_xscale("log")
        axis.set_title(f"{dataset}, {network}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[: len(networks)][-columns:]:  # nothing is below them
        axis.tick_params(labelbottom=True)
    figure.supxlabel("processor time of an explanation, s", fontsize=10)
    figure.supylabel(f"share of {REFERENCE}'s advantage", fontsize=10)
    shown = [name for name in next(iter(networks.values())) if name != "random"]
    _legend(figure, shown, marked=True)
    return figure


def _marker(method: str) -> str:
    return "D" if method.startswith("NIF") else "o"


def _legend(figure: Figure, methods: Collection[str], marked: bool) -> None:
    """The methods above all panels, by their markers or by their lines."""
    handles = [Line2D([], [], label=name, **style(name)) for name in methods]
    for handle, name in zip(handles, methods, strict=True):
        if marked:
            handle.set(linestyle="", marker=_marker(name))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9
    )


def build_report(
    rows: Sequence[dict[str, Any]], settings: Mapping[str, Any], seed: int
) -> Report:
    r"""
    The whole report.

    Args:

        rows (Sequence[dict[str, Any]]): All results.
        settings (Mapping[str, Any]): How they were measured.
        seed (int): That of the first training.

    Returns:

        Report: Not yet written.
    """
    networks = by_network(with_shares(rows))
    report = Report("faithfulness", "Are attributions true to the network?", seed)
    report.text(
        "\n".join(f"- {name}: {method.described}" for name, method in METHODS.items())
    )
    report.text(MEANING)
    trainings = len({row["training"] for row in rows})
    report.text(
        f"Up to {settings['samples']} test samples are explained, each for the class "
        f"that is predicted; sensitivity and randomized weights take the first "
        f"{settings['few']}. Methods get {settings['background']} training samples. "
        f"Means over {trainings} trainings of each network (weights, order of samples, "
        "split of the data but for MNIST, and all draws are their own), ± half the "
        "width of the 95 % interval by Student's t."
    )
    for name in METHODS:
        if name.startswith("NIF"):
            lines = "\n".join(verdict(networks, name))
            report.text(f"**{name}**, by insertion less deletion:\n\n{lines}")
    report.figure(
        draw_curves(networks),
        "curves",
        "Deletion (left, low is good) and insertion (right, high is good); bands run "
        "from the lowest to the highest training.",
    )
    report.figure(
        draw_costs(networks),
        "costs",
        f"Quality against time: 1 is {REFERENCE}, 0 a random order.",
    )
    for (dataset, network), methods in networks.items():
        results = list(itertools.chain(*methods.values()))
        correct = interval([result["test accuracy"] for result in results])
        report.text(
            f"## {dataset}, {network}\n\nTest accuracy {correct.mean:.3f}.\n\n"
            + markdown_table(summary(methods, QUALITY))
            + "\n\n"
            + markdown_table(summary(methods, (*CHECKS, *TIMES)))
        )
        if len(results[0]["cascade"]) > 1:
            report.text(
                "Spearman's correlation as modules are randomized from the top:\n\n"
                + markdown_table(list(cascades(methods)))
            )
    left_out = ("shares", *CURVES, *CASCADES)
    report.table(
        [
            {column: value for column, value in row.items() if column not in left_out}
            for row in with_shares(rows)
        ],
        caption="## Every training",
    )
    return report
