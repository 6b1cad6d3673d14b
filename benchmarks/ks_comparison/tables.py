"""Measures of agreement with raw mutual information, and the tables made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.faithfulness.sanity import rank_correlation
from benchmarks.intervals import Interval, interval
from benchmarks.ks_comparison.distance import (
    asymptotic_p,
    ks_distance,
    permutation_p,
    top_agreement,
    unit_sum,
)
from benchmarks.ks_comparison.forms import FORMS, LABELS, Scores
from benchmarks.report import Row

PRINTED = {"NIF": (1.0, 0.011), "SHAP": (0.75, 0.107), "IG": (0.25, 0.996)}
"""Table 1 of Davis et al. (2020): the statistic and its p-value."""

OWN = tuple(name for name, form in FORMS.items() if form.kind == "NIF")
RIVALS = tuple(name for name, form in FORMS.items() if form.kind == "rival")
LEVEL = 0.05
"""At which tests reject, and which intervals leave out."""


class Cell(NamedTuple):
    """How alike a form and a yardstick are, for one class of one trained network."""

    dataset: str
    network: str
    training: int
    form: str
    label: int
    features: int
    raw_distance: float
    raw_p: float
    distance: float
    p: float
    correlation: float
    top: float

    @property
    def place(self) -> str:
        """The data set and the network, as a column's heading."""
        return f"{self.dataset}, {self.network}"


def compare(scores: Scores, yardstick: Scores) -> list[Cell]:
    r"""
    Every measure of one form against a yardstick.

    Args:

        scores (Scores): What the form says.
        yardstick (Scores): The mutual information of the same network and training.

    Returns:

        list[Cell]: One for each class. ``raw_distance`` and ``raw_p``, asymptotic, are
        the paper's; ``distance`` and ``p``, by permutation, are those of unit sums.
    """
    correlations = rank_correlation(scores.values, yardstick.values).tolist()
    pairs = zip(scores.values.numpy(), yardstick.values.numpy(), strict=True)
    cells = []
    for label, (a, b) in enumerate(pairs):
        raw = float(ks_distance(a, b))
        shares = unit_sum(a), unit_sum(b)
        cells.append(
            Cell(
                *scores[:4],
                label,
                len(a),
                raw,
                asymptotic_p(raw, len(a), len(b)),
                float(ks_distance(*shares)),
                permutation_p(*shares, seed=scores.training),
                correlations[label],
                top_agreement(a, b),
            )
        )
    return cells


def compare_all(scores: Sequence[Scores], yardstick: str) -> list[Cell]:
    """All forms but yardsticks of labels, each beside the yardstick of its network."""
    of = {found[:3]: found for found in scores if found.form == yardstick}
    return [
        cell
        for found in scores
        if found.form not in (LABELS, yardstick)
        for cell in compare(found, of[found[:3]])
    ]


def grouped(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """The cells of each form and network, all trainings and classes together."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.form, cell.place), []).append(cell)
    return groups


def by_training(cells: Sequence[Cell], measure: str) -> dict[int, float]:
    """The mean over classes, for each training."""
    groups: dict[int, list[float]] = {}
    for cell in cells:
        groups.setdefault(cell.training, []).append(getattr(cell, measure))
    return {training: float(np.mean(group)) for training, group in groups.items()}


def over_trainings(cells: Sequence[Cell], measure: str) -> Interval:
    """The mean over trainings of the mean over classes, with its interval."""
    return interval(list(by_training(cells, measure).values()))


def advantage(
    cells: Sequence[Cell], own: str, rival: str, measure: str
) -> dict[str, Interval]:
    r"""
    A form's measure less a rival's, paired by training.

    Args:

        cells (Sequence[Cell]): The cells of all networks.
        own (str): The form.
        rival (str): The other form.
        measure (str): A field of :class:`Cell`.

    Returns:

        dict[str, Interval]: For each network, over the trainings that both have.
    """
    groups = grouped(cells)
    found = {}
    for place in dict.fromkeys(cell.place for cell in cells):
        mine, other = (
            by_training(groups[form, place], measure) for form in (own, rival)
        )
        found[place] = interval([mine[t] - other[t] for t in mine if t in other])
    return found


def pivot(cells: Sequence[Cell], text: Callable[[Sequence[Cell]], str]) -> list[Row]:
    """A row for each form and a column for each network."""
    groups = grouped(cells)
    forms = dict.fromkeys(form for form, _ in groups)
    places = dict.fromkeys(place for _, place in groups)
    return [
        {"form": form, **{place: text(groups[form, place]) for place in places}}
        for form in forms
    ]


def mean_of(measure: str) -> Callable[[Sequence[Cell]], str]:
    """Writes the mean of a measure over trainings, with its interval."""
    return lambda cells: str(over_trainings(cells, measure))


def with_rejections(measure: str, p: str) -> Callable[[Sequence[Cell]], str]:
    """The same, and the share of tests that reject."""

    def text(cells: Sequence[Cell]) -> str:
        rejected = np.mean([getattr(cell, p) < LEVEL for cell in cells])
        return f"{over_trainings(cells, measure)} ({rejected:.0%})"

    return text


def table_1() -> list[Row]:
    """The paper's table, where its p-values come from, and what they say."""
    rows: list[Row] = []
    for method, (distance, printed) in PRINTED.items():
        # Four values against the same, moved by a number of places.
        places = np.arange(4.0)
        moved = places + 4 * distance - 0.5
        exact = stats.ks_2samp(places, moved, method="exact").pvalue
        p = asymptotic_p(distance, 4, 4)
        rows.append(
            {
                "method": method,
                "D": distance,
                "p, printed": printed,
                "p, asymptotic, n = m = 4": p,
                "p, exact, n = m = 4": float(exact),
                "as printed, at 5 %": "rejected" if p < LEVEL else "not rejected",
                "closest to raw MI": "yes" if distance == 0.25 else "no",
            }
        )
    return rows


def four_features(cells: Sequence[Cell]) -> list[Row]:
    """D and asymptotic p of raw values for each class, first training of each set."""
    first = min(cell.training for cell in cells)
    small = [c for c in cells if c.training == first and c.features == 4]
    return [
        {
            "form": form,
            **{
                f"{c.dataset}, class {c.label}": f"{c.raw_distance:.2f} ({c.raw_p:.3f})"
                for c in small
                if c.form == form
            },
        }
        for form in dict.fromkeys(cell.form for cell in small)
    ]


def head_to_head(cells: Sequence[Cell], measure: str) -> list[Row]:
    """NIF's forms less the rivals, with a star where the interval leaves out 0."""
    rows: list[Row] = []
    for own, rival in itertools.product(OWN, RIVALS):
        found = advantage(cells, own, rival, measure)
        rows.append(
            {
                "difference": f"{own} less {rival}",
                **{
                    place: f"{gap.mean:+.3f}{_half(gap)}{'*' * _is_clear(gap)}"
                    for place, gap in found.items()
                },
            }
        )
    return rows


def _half(gap: Interval) -> str:
    return "" if np.isnan(gap.half) else f" ± {gap.half:.3f}"


def _is_clear(gap: Interval) -> bool:
    """Whether 0 is outside the interval; never for a single training."""
    return abs(gap.mean) > gap.half


def verdict(cells: Sequence[Cell]) -> list[Row]:
    r"""
    On how many networks each form of NIF is ahead of each rival.

    Args:

        cells (Sequence[Cell]): The cells of all networks.

    Returns:

        list[Row]: A row for each form of NIF, a column for each measure and rival.
    """
    measures = (("distance", "scaled D", -1), ("correlation", "ranks", 1))
    return [
        {
            "form": own,
            **{
                f"{what}: than {rival}": _counted(
                    [sign * gap.mean for gap in gaps], [_is_clear(gap) for gap in gaps]
                )
                for measure, what, sign in measures
                for rival in RIVALS
                for gaps in [list(advantage(cells, own, rival, measure).values())]
            },
        }
        for own in OWN
    ]


def _counted(leads: Sequence[float], clear: Sequence[bool]) -> str:
    ahead = [is_clear for lead, is_clear in zip(leads, clear, strict=True) if lead > 0]
    behind = [is_clear for lead, is_clear in zip(leads, clear, strict=True) if lead < 0]
    return (
        f"closer on {len(ahead)} ({sum(ahead)}), farther on {len(behind)} "
        f"({sum(behind)}) of {len(leads)}"
    )


def networks(scores: Sequence[Scores]) -> list[Row]:
    """What was trained."""
    groups: dict[tuple[str, str], list[Scores]] = {}
    for found in scores:
        if found.form == LABELS:
            groups.setdefault(found[:2], []).append(found)
    return [
        {
            "data": dataset,
            "network": network,
            "features": group[0].values.shape[1],
            "classes": len(group[0].values),
            "trainings": len(group),
            "test accuracy": str(interval([found.test_accuracy for found in group])),
            "mean raw MI, nats": float(np.mean([f.values.mean() for f in group])),
        }
        for (dataset, network), group in groups.items()
    ]
