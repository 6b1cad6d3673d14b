"""Are attributions true to the network, and what do they cost?

    python -m benchmarks.faithfulness --dataset digits iris --trainings 5

NIF beside Captum's methods (:mod:`benchmarks.faithfulness.methods`), each network
trained several times: deletion and insertion, infidelity, sensitivity, randomized
weights, relevant features where they are known, and processor time. An interrupted run
goes on where it stopped: results are kept in ``faithfulness.json`` of the result
folder, and used again while settings and sources are the same.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.data.trained import DATASETS, EMBEDDED, Task, make_task, pairs
from benchmarks.faithfulness.methods import METHODS, Method
from benchmarks.faithfulness.perturbation import perturbation_curves
from benchmarks.faithfulness.report import build_report
from benchmarks.faithfulness.sanity import (
    infidelity,
    learned_modules,
    randomized,
    rank_correlation,
    relevant_auc,
    relevant_mass,
    sensitivity,
)
from benchmarks.report import argument_parser
from benchmarks.resume import Finished, digest_of_sources

OTHER_WEIGHTS = 10_000
"""Keeps random weights apart from those that a training began with."""


@dataclass(frozen=True)
class Settings:
    """How much is measured; part of what a result depends on."""

    samples: int
    few: int
    background: int
    cascade: bool


def measure(task: Task, method: Method, settings: Settings) -> dict[str, Any]:
    r"""
    All measures of one method on one trained network.

    Args:

        task (Task): The network and the samples.
        method (Method): The method.
        settings (Settings): How much is measured.

    Returns:

        dict[str, Any]: Numbers by measure, means over samples; curves as lists. NaN
        where there is nothing to compare with.
    """
    seed, few = task.seed, slice(settings.few)
    # Before anything is timed: what is compiled or loaded on first use.
    method(task.model, task.background, seed)(task.inputs[:1], task.targets[:1])
    start = time.process_time()
    explain = method(task.model, task.background, seed)
    fitted = time.process_time()
    maps = explain(task.inputs, task.targets)
    explained = time.process_time()
    curves = perturbation_curves(
        task.model, task.inputs, task.targets, maps, task.donors, seed=seed
    )
    some = task.inputs[few], task.targets[few]
    forgetful = [
        randomized(task.model, top, seed + OTHER_WEIGHTS)
        for top in _tops(task.model, settings.cascade)
    ]
    # Another seed: methods that draw at random must not agree by drawing the same.
    randomized_maps = [
        method(model, task.background, seed + 1)(*some) for model in forgetful
    ]
    signed = [rank_correlation(maps[few], other) for other in randomized_maps]
    unsigned = [
        rank_correlation(maps[few].abs(), other.abs()) for other in randomized_maps
    ]
    known = task.relevant
    return {
        "test accuracy": task.test_accuracy,
        "deletion": float(curves.deletion_area.mean()),
        "insertion": float(curves.insertion_area.mean()),
        "gap": float(curves.gap.mean()),
        "infidelity": infidelity(
            task.model, task.inputs, task.targets, maps, task.donors, seed=seed
        ),
        "sensitivity": sensitivity(explain, *some, seed=seed),
        "randomized": float(signed[-1].mean()),
        "randomized |a|": float(unsigned[-1].mean()),
        "relevant mass": _mean(known, lambda at: relevant_mass(maps, at)),
        "relevant AUC": _mean(known, lambda at: relevant_auc(maps, at)),
        "fit, s": fitted - start,
        "explanation, s": (explained - fitted) / len(maps),
        "cascade": [float(correlation.mean()) for correlation in signed],
        "cascade |a|": [float(correlation.mean()) for correlation in unsigned],
        "shares": curves.shares.tolist(),
        "deletion curve": curves.deletion.mean(dim=0).tolist(),
        "insertion curve": curves.insertion.mean(dim=0).tolist(),
    }


def _tops(model: nn.Module, cascade: bool) -> Sequence[int]:
    """How many modules from the output are randomized, all of them last."""
    every = len(learned_modules(model))
    return range(1, every + 1) if cascade else [every]


def _mean(relevant: Tensor | None, score: Callable[[Tensor], Tensor]) -> float:
    return math.nan if relevant is None else float(score(relevant).mean())


def results(
    datasets: Sequence[str],
    seeds: Sequence[int],
    data_dir: str | None,
    settings: Settings,
    finished: Finished,
) -> Iterator[dict[str, Any]]:
    """Every result, measured or kept from before, with a progress bar."""
    sources = digest_of_sources()
    cases = list(itertools.product(pairs(datasets), seeds))
    with tqdm(total=len(cases) * len(METHODS), desc="faithfulness") as bar:
        for (name, network), training in cases:
            task = cache(
                partial(
                    make_task,
                    name,
                    network,
                    training,
                    data_dir,
                    settings.samples,
                    settings.background,
                )
            )
            for method_name, method in METHODS.items():
                bar.set_postfix_str(f"{name}, {network}: {method_name}")
                names = {
                    "dataset": name,
                    "network": network,
                    "training": training,
                    "method": method_name,
                }
                key = {**names, **vars(settings), "method is": method.described}
                measured = finished.result(
                    {**key, "sources": sources},
                    lambda: measure(task(), method, settings),  # noqa: B023
                )
                yield {**names, **measured}
                bar.update()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is not measured yet, and writes the report."""
    parser = argument_parser("faithfulness", __doc__ or "", DATASETS, several=True)
    parser.set_defaults(dataset=list(EMBEDDED))
    parser.add_argument(
        "--trainings", type=int, default=3, help="trainings of each network"
    )
    parser.add_argument(
        "--samples", type=int, default=50, help="test samples explained, at most"
    )
    parser.add_argument(
        "--few", type=int, default=10, help="of these, for the costly checks"
    )
    parser.add_argument(
        "--background", type=int, default=500, help="training samples methods get"
    )
    parser.add_argument(
        "--cascade", action="store_true", help="randomize from the top, one by one"
    )
    options = parser.parse_args(arguments)
    settings = Settings(
        options.samples,
        options.few,
        options.background,
        options.cascade,
    )
    torch.set_num_threads(1)
    with threadpool_limits(1):  # KernelShap's many small systems are slower in two
        rows = list(
            results(
                options.dataset,
                range(options.seed, options.seed + options.trainings),
                options.data_dir,
                settings,
                Finished(options.out / "faithfulness.json"),
            )
        )
    report = build_report(rows, vars(settings), options.seed)
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
