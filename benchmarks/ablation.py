"""Which choices make attributions true to the network? One step at a time.

    python -m benchmarks.ablation --dataset digits --trainings 3

From Eq. 4 on pointwise mutual information to ``preset="gradient_free"``, and from there
with one choice taken back at a time: deletion and insertion, as a share of what
Integrated Gradients with a mean baseline gains over chance
(:mod:`benchmarks.faithfulness`). The preset was chosen on digits; other data sets tell
what the choice is worth.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.data.trained import DATASETS, Task, make_task, pairs
from benchmarks.faithfulness.methods import METHODS, Explain, Method, nif
from benchmarks.faithfulness.perturbation import perturbation_curves
from benchmarks.faithfulness.summary import (
    REFERENCE,
    across,
    by_network,
    with_shares,
)
from benchmarks.intervals import interval
from benchmarks.report import Report, argument_parser
from benchmarks.resume import Finished, digest_of_sources
from captum_nif import EDGE, GaussianCopula, MixedKSG, NIFAttribution
from captum_nif.tracing.tracer import find_layers

FAITHFUL: dict[str, Any] = {
    "estimator": GaussianCopula(marginals="standard"),
    "scale": "correlation",
    "nodes": "neuron",
    "sampling": "independent",
}


def without_gains() -> Method:
    r"""
    The preset without gains: one attribution matrix times each sample's deviations.

    Returns:

        Method: The method. It looks at the network's population only.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        matrix = NIFAttribution(model, preset="gradient_free").fit(background)
        weights = matrix.attribution_matrix()
        mean, deviation = background.mean(0), background.std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, torch.inf)

        def explain(inputs: Tensor, targets: Tensor) -> Tensor:
            of_class = weights[:, targets].T.reshape(inputs.shape)
            return (of_class * (inputs - mean) / scale).to(inputs.dtype)

        return explain

    return Method(make, "preset 'gradient_free' with all gains 1")


def single_link() -> Method:
    r"""
    One link from each feature to the class, over the whole network.

    Returns:

        Method: The method: what a graph without hidden nodes says.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        last = list(find_layers(model).values())[-1]
        options = FAITHFUL | {"layers": [last]}
        return nif(**options)(model, background, seed)

    return Method(make, "preset 'gradient_free' with the last layer as the only one")


VARIANTS: dict[str, Method] = {
    "Eq. 4 in nats": nif(),
    "  Eq. 6 as printed, beta = 5e-4": nif(preset="paper"),
    "  beta = 5e-4": nif(beta=5e-4),
    "  beta = 5e-3": nif(beta=5e-3),
    "  beta = 5e-2": nif(beta=5e-2),
    "  k = 25": nif(estimator=MixedKSG(k=25)),
    "  EDGE": nif(estimator=EDGE()),
    "  Gaussian copula": nif(estimator=GaussianCopula()),
    "  independent inputs": nif(sampling="independent"),
    "  correlation scale": nif(scale="correlation"),
    "gradient free": nif(preset="gradient_free"),
    "  of nats": nif(**FAITHFUL | {"scale": "nats"}),
    "  observed inputs": nif(**FAITHFUL | {"sampling": "observed"}),
    "  channels": nif(**FAITHFUL | {"nodes": "channel"}),
    "  normal scores": nif(**FAITHFUL | {"estimator": GaussianCopula()}),
    "  EDGE, correlation": nif(**FAITHFUL | {"estimator": EDGE()}),
    "  without gains": without_gains(),
    "single link": single_link(),
    REFERENCE: METHODS[REFERENCE],
    "GradientShap": METHODS["GradientShap"],
}
"""The variants by name; what is indented differs from the one above in one thing."""

BETAS = ("Eq. 4 in nats", "  beta = 5e-4", "  beta = 5e-3", "  beta = 5e-2")
CROSS_VALIDATED = "  beta by cross-validation"

SKIPPED = {
    ("  EDGE, correlation", "CNN"),
    ("  EDGE, correlation", "residual CNN"),
    ("  of nats", "residual CNN"),
}
"""Too slow: millions of pairs of neurons, and of samples for each of them."""


def measure(task: Task, method: Method) -> dict[str, Any]:
    """Deletion and insertion of one variant on one trained network, and its cost."""
    start = time.process_time()
    explain = method(task.model, task.background, task.seed)
    fitted = time.process_time()
    maps = explain(task.inputs, task.targets)
    explained = time.process_time()
    curves = perturbation_curves(
        task.model, task.inputs, task.targets, maps, task.donors, seed=task.seed
    )
    return {
        "test accuracy": task.test_accuracy,
        "deletion": float(curves.deletion_area.mean()),
        "insertion": float(curves.insertion_area.mean()),
        "gap": float(curves.gap.mean()),
        "fit, s": fitted - start,
        "explanation, s": (explained - fitted) / len(maps),
    }


def results(
    datasets: Sequence[str],
    seeds: Sequence[int],
    data_dir: str | None,
    settings: Mapping[str, int],
    finished: Finished,
) -> Iterator[dict[str, Any]]:
    """Every result, measured or kept from before, with a progress bar."""
    sources = digest_of_sources()
    cases = [
        (name, network, training, variant)
        for name, network in pairs(datasets)
        for training in seeds
        for variant in VARIANTS
        if (variant, network) not in SKIPPED
    ]
    tasks = cache(partial(make_task, data_dir=data_dir, **settings))
    with tqdm(cases, desc="ablation") as bar:
        for name, network, training, variant in bar:
            bar.set_postfix_str(f"{name}, {network}: {variant.strip()}")
            names = {"dataset": name, "network": network, "training": training}
            method = VARIANTS[variant]
            key = {**names, **settings, "method": method.described}
            measured = finished.result(
                {**key, "sources": sources},
                lambda: measure(tasks(name, network, training), method),  # noqa: B023
            )
            yield {**names, "method": variant, **measured}


def cross_validated(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    r"""
    Eq. 3's beta as the paper chose it: for each training what is best for the others.

    Args:

        rows (Sequence[dict[str, Any]]): Results, those of :data:`BETAS` among them, of
            two trainings or more of each network.

    Returns:

        list[dict[str, Any]]: A result for each training of each network.
    """
    found = []
    for methods in by_network(list(rows)).values():
        for row in methods[BETAS[0]]:
            gaps = {
                beta: statistics.fmean(
                    other["gap"]
                    for other in methods[beta]
                    if other["training"] != row["training"]
                )
                for beta in BETAS
            }
            best = max(BETAS, key=gaps.__getitem__)
            chosen = next(r for r in methods[best] if r["training"] == row["training"])
            found.append({**chosen, "method": CROSS_VALIDATED})
    return found


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """The share of each variant, a row of points for each network."""
    networks = by_network(list(rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(
        1,
        len(networks),
        figsize=(2.6 + 2.4 * len(networks), 0.32 * len(names) + 1.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, ((dataset, network), methods) in zip(
        axes[0], networks.items(), strict=True
    ):
        for y, name in enumerate(names):
            if name not in methods:
                continue
            found = across(methods[name], "share")
            half = 0.0 if math.isnan(found.half) else found.half
            color = "#c0392b" if name == "gradient free" else "#34495e"
            ax.errorbar(
                found.mean, y, xerr=half, fmt="o", color=color, ms=5, capsize=2, lw=1
            )
        ax.axvline(1, color="0.6", lw=0.8)
        ax.axvline(0, color="0.6", lw=0.8, ls=":")
        ax.set_title(f"{dataset}, {network}", fontsize=10)
        ax.set_yticks(range(len(names)), [n.replace("  ", "     ") for n in names])
        ax.grid(axis="x", color="0.92")
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    for label in axes[0][0].get_yticklabels():
        label.set_horizontalalignment("left")
    axes[0][0].tick_params(axis="y", pad=185)
    figure.supxlabel("share of the advantage of IG (mean baseline) over chance")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not measured yet, and writes the report."""
    parser = argument_parser("ablation", __doc__ or "", DATASETS, several=True)
    parser.set_defaults(dataset=["digits"])
    parser.add_argument("--trainings", type=int, default=3, help="of each network")
    parser.add_argument("--samples", type=int, default=50, help="explained, at most")
    parser.add_argument("--background", type=int, default=500, help="samples")
    options = parser.parse_args(arguments)
    settings = {"samples": options.samples, "background": options.background}
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = list(
            results(
                options.dataset,
                range(options.seed, options.seed + options.trainings),
                options.data_dir,
                settings,
                Finished(options.out / "ablation.json"),
            )
        )
    if options.trainings > 1:
        rows += cross_validated(rows)
    order = list(VARIANTS)
    order.insert(order.index(BETAS[-1]) + 1, CROSS_VALIDATED)
    rows = with_shares(sorted(rows, key=lambda row: order.index(row["method"])))
    report = Report(
        "ablation", "Which choices make attributions faithful?", options.seed
    )
    report.text((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2])
    for (dataset, network), methods in by_network(rows).items():
        report.table(
            [
                {
                    "variant": name.replace("  ", "&nbsp;&nbsp;"),
                    "share": str(across(found, "share")),
                    "deletion": str(across(found, "deletion")),
                    "insertion": str(across(found, "insertion")),
                    "fit, s": f"{interval([r['fit, s'] for r in found]).mean:.2g}",
                    "explanation, s": f"{across(found, 'explanation, s').mean:.2g}",
                }
                for name, found in methods.items()
            ],
            f"{dataset}_{network.replace(' ', '_')}",
            f"## {dataset}, {network}\n\nMeans over {options.trainings} trainings, "
            "with 95 % intervals by Student's t.",
        )
    report.figure(draw(rows))
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
