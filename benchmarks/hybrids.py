"""Which population of hybrids does a sample's flow need? The choices behind a preset.

    python -m benchmarks.hybrids --dataset digits mnist --trainings 3

``preset="faithful"`` averages slopes over hybrids of each sample and the background.
How many, whether they are coalitions of features or interpolations, and at which layers
slopes are averaged was chosen on digits and MNIST; other data sets tell what the choice
is worth. Each share is of what Integrated Gradients with a mean baseline gains over
chance by deletion and insertion; agreement is the correlation of the maps of two seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.ablation import measure
from benchmarks.data.trained import DATASETS, Task, make_task, pairs
from benchmarks.faithfulness.methods import METHODS, Explain, Method, gradient_shap
from benchmarks.faithfulness.summary import REFERENCE, across, by_network, with_shares
from benchmarks.report import Report, argument_parser
from benchmarks.resume import Finished, digest_of_sources
from captum_nif.flow.backdrop import summarize_background
from captum_nif.flow.batches import batches_of
from captum_nif.flow.hybrid_flow import HybridFlow, HybridQuery
from captum_nif.flow.hybrids import Hybrids, draw_hybrids
from captum_nif.flow.options import Options


class _Variant(HybridFlow):
    """A flow over hybrids of another make."""

    coalitions: float = 0.5

    @property
    def hybrids(self) -> Hybrids:  # type: ignore[override]
        """As the study wants them."""
        rows = self.backdrop.rows[0]
        features = torch.arange(rows[0].numel()).view(rows.shape[1:])
        return draw_hybrids(
            self.options.hybrids,
            len(rows),
            [features],
            self.options.seed,
            self.coalitions,
        )


def hybrids(count: int, coalitions: float, averaged: bool = True) -> Method:
    r"""
    Flow over a sample's own population, made in some way.

    Args:

        count (int): Hybrids of each sample.
        coalitions (float): Share of them that take features or leave them; the others
            interpolate.
        averaged (bool, optional): Average slopes at every layer, and not only at the
            input, which would be expected gradients over the same hybrids.
            Default: True

    Returns:

        Method: The method; its seed is that of the hybrids.
    """

    def make(model: nn.Module, background: Tensor, seed: int) -> Explain:
        backdrop = summarize_background(model, batches_of(model, background))
        if not averaged:
            backdrop = replace(backdrop, made={}, results={})
        options = Options(sampling="hybrid", hybrids=count, seed=seed)
        flow = _Variant(model, options, backdrop)
        flow.coalitions = coalitions
        end = backdrop.structure.output.name

        def explain(inputs: Tensor, targets: Tensor) -> Tensor:
            query = HybridQuery((inputs,), (), 512)
            (maps,) = flow.attributions(query, end, targets).values()
            return maps.view(inputs.shape).to(inputs.dtype)

        return explain

    where = "at every layer" if averaged else "at the input alone"
    return Method(
        make, f"{count} hybrids, {coalitions:.0%} coalitions, averaged {where}"
    )


VARIANTS: dict[str, Method] = {
    **{
        f"{name}, m = {count}": hybrids(count, share)
        for name, share in (
            ("coalitions", 1.0),
            ("half and half", 0.5),
            ("interpolations", 0.0),
        )
        for count in (4, 8, 16, 32)
    },
    "half and half, m = 16, averaged at the input": hybrids(16, 0.5, averaged=False),
    "GradientShap, 8 draws": gradient_shap(8),
    "GradientShap, 200 draws": gradient_shap(200),
    REFERENCE: METHODS[REFERENCE],
    "random": METHODS["random"],
}


def agreement(task: Task, method: Method) -> float:
    """Correlation of the maps of two seeds."""
    maps = [
        method(task.model, task.background, seed)(task.inputs, task.targets).flatten()
        for seed in (0, 1)
    ]
    return float(torch.corrcoef(torch.stack(maps))[0, 1])


def results(
    datasets: Sequence[str],
    seeds: Sequence[int],
    data_dir: str | None,
    settings: Mapping[str, int],
    finished: Finished,
) -> Iterator[dict[str, Any]]:
    """Every result, measured or kept from before, with a progress bar."""
    sources = digest_of_sources()
    tasks = cache(partial(make_task, data_dir=data_dir, **settings))

    def measured(names: Mapping[str, Any], method: Method) -> dict[str, Any]:
        task = tasks(*names.values())
        return {**measure(task, method), "agreement": agreement(task, method)}

    cases = [
        (name, network, training, variant)
        for name, network in pairs(datasets)
        for training in seeds
        for variant in VARIANTS
    ]
    for name, network, training, variant in tqdm(cases, desc="hybrids"):
        names = {"dataset": name, "network": network, "training": training}
        method = VARIANTS[variant]
        key = {**names, **settings, "method": method.described, "sources": sources}
        found = finished.result(key, partial(measured, names, method))
        yield {**names, "method": variant, **found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not measured yet, and writes the report."""
    parser = argument_parser("hybrids", __doc__ or "", DATASETS, several=True)
    parser.set_defaults(dataset=["digits"])
    parser.add_argument("--trainings", type=int, default=3, help="of each network")
    parser.add_argument("--samples", type=int, default=50, help="explained, at most")
    parser.add_argument("--background", type=int, default=500, help="samples")
    options = parser.parse_args(arguments)
    settings = {"samples": options.samples, "background": options.background}
    seeds = range(options.seed, options.seed + options.trainings)
    finished = Finished(options.out / "hybrids.json")
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = with_shares(
            list(results(options.dataset, seeds, options.data_dir, settings, finished))
        )
    report = Report("hybrids", "Which population of hybrids?", options.seed)
    report.text((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2])
    for (dataset, network), methods in by_network(rows).items():
        report.table(
            [
                {
                    "variant": name,
                    "share": str(across(found, "share")),
                    "deletion": str(across(found, "deletion")),
                    "insertion": str(across(found, "insertion")),
                    "agreement": str(across(found, "agreement")),
                    "explanation, s": f"{across(found, 'explanation, s').mean:.2g}",
                }
                for name, found in methods.items()
            ],
            f"{dataset}_{network.replace(' ', '_')}",
            f"## {dataset}, {network}\n\nMeans over {options.trainings} trainings, "
            "with 95 % intervals by Student's t.",
        )
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
