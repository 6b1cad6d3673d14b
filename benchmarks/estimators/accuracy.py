"""How far estimates of mutual information, and of its single-sample values, are off.

Every method sees the same samples of the pairs of
:mod:`benchmarks.estimators.known_pairs`. What it finds is compared with the truth, over
seeds.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.feature_selection import mutual_info_regression
from torch import Tensor

from benchmarks.estimators.known_pairs import Task
from benchmarks.report import Row
from captum_nif.estimators import EDGE, GaussianCopula, MixedKSG, PMIEstimator
from captum_nif.estimators.mine import MINE

Array = NDArray[np.float64]

_COSTLY = 2
"""How many times fewer seeds methods get that take very long."""

_RESAMPLINGS = 1000


class Method(NamedTuple):
    """An estimator under test.

    Attributes:
        name (str): what to call it.
        of (PMIEstimator or Callable): one of ours, or a function of x and y, [N, 1]
            each, that gives mutual information alone.
        style (dict): how its curves are drawn.
        peer (bool): whether it is what people would use otherwise.
        costly (bool): whether it gets fewer seeds.
    """

    name: str
    of: PMIEstimator | Callable[[Tensor, Tensor], float]
    style: dict[str, str]
    peer: bool = False
    costly: bool = False

    def estimate(self, x: Tensor, y: Tensor) -> Array:
        """PMI of every sample, [N], or mutual information alone, []."""
        if isinstance(self.of, PMIEstimator):
            return self.of.pmi(x, y)[:, 0, 0].numpy()
        return np.array(self.of(x, y))


def by_sklearn(x: Tensor, y: Tensor) -> float:
    """scikit-learn with its default k, told nothing about which values are discrete."""
    return float(
        mutual_info_regression(
            x.numpy(), y[:, 0].numpy(), discrete_features=False, random_state=0
        )[0]
    )


def by_ennemi(x: Tensor, y: Tensor) -> float:
    """Estimate by ennemi with its default k."""
    import ennemi

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a variable is constant
        found = ennemi.estimate_mi(y[:, 0].numpy(), x[:, 0].numpy(), max_threads=1)
    return float(found.item())


def by_npeet(x: Tensor, y: Tensor) -> float:
    """NPEET, as packaged, with its default k. It draws jitter from the global state."""
    import npeet_plus

    return float(npeet_plus.mi(x.numpy(), y.numpy(), base=math.e))


PEERS = (
    ("sklearn", by_sklearn, "black"),
    ("ennemi", by_ennemi, "#ce6dbd"),
    ("npeet_plus", by_npeet, "#8c6d31"),
)
"""By package; those that are not installed are left out."""

PEERS_K = 3
"""The number of neighbors that all of them have by default."""

DEFAULT = "MixedKSG (default)"
"""What mixed KSG is called whose k grows with the samples."""


def methods() -> list[Method]:
    """Our estimators, Eq. 6 of the paper as printed, and the peers installed."""
    default = Method(DEFAULT, MixedKSG(), {"color": "#de2d26", "marker": "D"})
    blues = {3: "#9ecae1", 5: "#6baed6", 10: "#2171b5", 20: "#08306b"}
    ksg = [
        Method(f"MixedKSG k={k}", MixedKSG(k), {"color": c}) for k, c in blues.items()
    ]
    dotted = {"linestyle": ":"}
    return [
        default,
        *ksg,
        Method("EDGE", EDGE(), {"color": "#e6550d"}),
        Method("GaussianCopula", GaussianCopula(), {"color": "#756bb1"}),
        Method("MINE", MINE(), {"color": "#31a354"}, costly=True),
        Method(
            "Eq. 6 as printed",
            MixedKSG(10, "paper"),
            {"color": "#636363", "linestyle": "--"},
            peer=True,
        ),
        *(
            Method(package, function, {"color": color, **dotted}, peer=True)
            for package, function, color in PEERS
            if importlib.util.find_spec(package) is not None
        ),
    ]


# ------------------------------------------------------------------------- measuring


class Errors(NamedTuple):
    """Of one method at one N, [tasks, seeds]; NaN where there is no such thing.

    Attributes:
        information (Array): estimated less true mutual information, in nats.
        correlation (Array): between estimated and true PMI of the samples.
        pointwise (Array): root mean square error of PMI, in nats.
    """

    information: Array
    correlation: Array
    pointwise: Array

    @property
    def bias(self) -> Array:
        """By task."""
        return self.information.mean(1)

    @property
    def deviation(self) -> Array:
        """Over seeds, by task."""
        return self.information.std(1, ddof=1)

    @property
    def rmse(self) -> Array:
        """Root mean square error, by task."""
        return np.sqrt((self.information**2).mean(1))


Found = dict[tuple[int, str], Errors]
"""By N and the name of the method."""


def measure(
    method: Method, kinds: Sequence[Task], n: int, seeds: int, seed: int
) -> Errors:
    """What a method makes of N samples of each task."""
    seeds = max(2, seeds // _COSTLY) if method.costly else seeds
    errors = Errors(*np.full((3, len(kinds), seeds), np.nan))
    for i, task in enumerate(kinds):
        for j in range(seeds):
            known = task.draw(np.random.default_rng((seed, i, j)), n)
            estimate = method.estimate(*torch.from_numpy(known.pair)[:, :, None])
            errors.information[i, j] = estimate.mean() - task.information
            if estimate.ndim:
                errors.correlation[i, j] = _correlation(estimate, known.pmi)
                difference = estimate - known.pmi
                errors.pointwise[i, j] = np.sqrt((difference**2).mean())
    return errors


def _correlation(estimate: Array, truth: Array) -> float:
    if np.ptp(truth) < 1e-9:
        return math.nan
    if np.ptp(estimate) < 1e-9:
        return 0.0
    return float(np.corrcoef(estimate, truth)[0, 1])


# -------------------------------------------------------------------------- telling


def summary_rows(found: Found) -> list[Row]:
    """Means over tasks, by N and method."""
    rows: list[Row] = []
    for (n, name), errors in found.items():
        low, high = _interval_of_mean_rmse(errors.information)
        rows.append(
            {
                "N": n,
                "method": name,
                "seeds": errors.information.shape[1],
                "mean abs. bias": float(np.abs(errors.bias).mean()),
                "mean sd": float(errors.deviation.mean()),
                "mean RMSE": float(errors.rmse.mean()),
                "from": low,
                "to": high,
                "PMI correlation": _mean(errors.correlation),
                "PMI RMSE": _mean(errors.pointwise),
            }
        )
    return rows


def task_rows(found: Found, kinds: Sequence[Task]) -> list[Row]:
    """Everything by N, task and method; the interval of the bias is Student's."""
    rows: list[Row] = []
    for (n, name), errors in found.items():
        seeds = errors.information.shape[1]
        half = student.ppf(0.975, seeds - 1) * errors.deviation / math.sqrt(seeds)
        rows += [
            {
                "N": n,
                "method": name,
                "task": task.name,
                "true": task.information,
                "seeds": seeds,
                "bias": errors.bias[i],
                "+-": half[i],
                "sd": errors.deviation[i],
                "RMSE": errors.rmse[i],
                "PMI correlation": _mean(errors.correlation[i]),
                "PMI RMSE": _mean(errors.pointwise[i]),
            }
            for i, task in enumerate(kinds)
        ]
    return rows


def verdict(found: Found, tried: Sequence[Method], sizes: Sequence[int]) -> str:
    """Whether mixed KSG is as accurate as the best of the peers."""
    alike = f"MixedKSG k={PEERS_K}"
    sentences = []
    for n in sizes:
        rmse = {m.name: float(found[n, m.name].rmse.mean()) for m in tried}
        peer = min((m.name for m in tried if m.peer), key=rmse.__getitem__)
        told = [f"{name}, {rmse[name]:.3f}" for name in (DEFAULT, alike, peer)]
        sentences.append(
            f"N = {n}: {told[0]} ({_than(rmse[DEFAULT], rmse[peer])}); "
            f"{told[1]} ({_than(rmse[alike], rmse[peer])}); best peer {told[2]}."
        )
    return "Mean RMSE in nats beside that of the best peer. " + " ".join(sentences)


def _than(own: float, other: float) -> str:
    return f"{abs(1 - own / other):.0%} {'less' if own < other else 'more'}"


def _mean(values: Array) -> float | str:
    """Of what there is; empty if there is nothing."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else ""


def _interval_of_mean_rmse(information: Array) -> tuple[float, float]:
    """95 % bootstrap interval over seeds, as they come for all tasks."""
    seeds = information.shape[1]
    drawn = np.random.default_rng(0).integers(0, seeds, (_RESAMPLINGS, seeds))
    means = np.sqrt((information**2)[:, drawn].mean(-1)).mean(0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


# -------------------------------------------------------------------------- drawing


def draw_summary(found: Found, times: Sequence[Row], tried: Sequence[Method]) -> Figure:
    """Error, correlation of single samples, and time per pair, against N."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for method in tried:
        errors = {n: e for (n, name), e in found.items() if name == method.name}
        sizes = list(errors)
        style = {"label": method.name, "marker": "o", "markersize": 4, **method.style}
        rmse = np.array([e.rmse.mean() for e in errors.values()])
        limits = [_interval_of_mean_rmse(e.information) for e in errors.values()]
        panels[0].errorbar(
            sizes, rmse, np.abs(np.array(limits).T - rmse), capsize=2, **style
        )
        if isinstance(method.of, PMIEstimator):
            correlation = [_mean(e.correlation) for e in errors.values()]
            panels[1].plot(sizes, correlation, **style)
        own = [row for row in times if row["method"] == method.name]
        panels[2].plot(
            [row["N"] for row in own], [row["us per pair"] for row in own], **style
        )
    titles = (
        "Mutual information:\nRMS error, nats",
        "Single samples: correlation\nof PMI with the truth",
        "Time per pair, one thread:\nmicroseconds",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xscale="log", xlabel="samples N")
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xticks(sizes, labels=map(str, sizes), minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[::2]:
        panel.set_yscale("log")
        panel.yaxis.set_minor_locator(NullLocator())
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return figure


def draw_bias(
    found: Found, tried: Sequence[Method], kinds: Sequence[Task], n: int
) -> Figure:
    """Bias by task and method, in thousandths of a nat."""
    bias = 1000 * np.stack([found[n, method.name].bias for method in tried], axis=1)
    figure = Figure(
        figsize=(2.6 + 0.75 * len(tried), 1.3 + 0.36 * len(kinds)), layout="constrained"
    )
    panel = figure.subplots()
    scale = SymLogNorm(linthresh=10, vmin=-500, vmax=500)
    panel.imshow(bias, cmap="RdBu_r", norm=scale, aspect="auto")
    for (row, column), value in np.ndenumerate(bias.round().astype(int)):
        panel.text(
            column,
            row,
            f"{value:+d}" if value else "0",
            ha="center",
            va="center",
            color="white" if abs(value) > 80 else "black",
            size=8,
        )
    panel.axvline(
        [method.peer for method in tried].index(True) - 0.5, color="white", lw=4
    )
    panel.set_xticks(
        range(len(tried)),
        labels=[method.name for method in tried],
        rotation=35,
        rotation_mode="anchor",
        ha="left",
        size=9,
    )
    panel.xaxis.tick_top()
    panel.set_yticks(
        range(len(kinds)),
        labels=[f"{task.name} ({1000 * task.information:.0f})" for task in kinds],
        size=9,
    )
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return figure
