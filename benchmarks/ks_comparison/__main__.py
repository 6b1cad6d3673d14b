"""Whose scores are like raw mutual information: NIF's, or those of IG and KernelShap?

    python -m benchmarks.ks_comparison --dataset iris digits --trainings 5

Davis et al. (2020, Table 1) compare attributions with the mutual information of each
feature and class by a Kolmogorov-Smirnov test. This does it as they did and as one
should, and says what each says. Without ``--dataset`` it runs on Iris and digits, and
on Banknote and MNIST too where a data folder is named. An interrupted run goes on where
it stopped: scores are kept in ``ks_comparison.json`` of the result folder, and used
again while settings and sources are the same.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from benchmarks.data.datasets import NAMES, Dataset
from benchmarks.data.models import accuracy
from benchmarks.data.trained import load, pairs, trained
from benchmarks.faithfulness.sanity import rank_correlation
from benchmarks.ks_comparison.distance import raw_mi, raw_mi_by_sklearn
from benchmarks.ks_comparison.forms import FORMS, Case, Scores
from benchmarks.ks_comparison.report import build_report
from benchmarks.report import Row, argument_parser
from benchmarks.resume import Finished, digest_of_sources

EMBEDDED = ("iris", "digits")
MEASURED_ON = 1500
"""Training samples that raw mutual information is estimated from, at most."""

WIDE = ("mnist",)
"""Where the slow forms explain the network of the first training only."""


@dataclass(frozen=True)
class Settings:
    """How much is measured; part of what scores depend on."""

    background: int
    per_class: int


def make_case(
    name: str, network: str, training: int, data_dir: str | None, settings: Settings
) -> Case:
    """Trains a network; each training has its own split, weights and background.

    MNIST's split is its own, so there only the drawn training samples differ.
    """
    data, _ = load(name, data_dir, training)
    model = trained(data, network, training)
    x, y = measured_on(data, training)
    return Case(
        model,
        accuracy(model, data.x_test, data.y_test),
        background=x[: settings.background],
        x=x,
        y=y,
        x_other=data.x_test,
        y_other=data.y_test,
        explained=tuple(
            data.x_test[data.y_test == c][: settings.per_class]
            for c in range(len(data.class_names))
        ),
        seed=training,
    )


def measured_on(data: Dataset, training: int) -> tuple[Tensor, Tensor]:
    """Training samples in the order of a training's own draw, and their classes."""
    generator = torch.Generator().manual_seed(training)
    drawn = torch.randperm(len(data.x_train), generator=generator)[:MEASURED_ON]
    return data.x_train[drawn], data.y_train[drawn]


def all_scores(
    datasets: Sequence[str],
    trainings: Sequence[int],
    data_dir: str | None,
    settings: Settings,
    finished: Finished,
) -> Iterator[Scores]:
    """The scores of every form, computed or kept from before, with a progress bar."""
    sources = digest_of_sources()
    cases = [
        (name, network, training)
        for name, network in pairs(datasets, ("MLP", "CNN"))
        for training in trainings
    ]
    get = lru_cache(maxsize=1)(partial(make_case, data_dir=data_dir, settings=settings))
    todo = [
        (case, form)
        for case, form in itertools.product(cases, FORMS)
        if not (FORMS[form].slow and case[0] in WIDE and case[2] != trainings[0])
    ]
    bar = tqdm(todo, desc="ks_comparison")
    for case, form in bar:
        dataset, network, training = case
        bar.set_postfix_str(f"{case[0]}, {case[1]}: {form}")
        key = {
            "case": case,
            "form": form,
            "form is": FORMS[form].described,
            "sources": sources,
            **vars(settings),
        }
        scores, test_accuracy = finished.result(
            key,
            lambda: (FORMS[form](get(*case)).tolist(), get(*case).test_accuracy),  # noqa: B023
        )
        values = torch.tensor(scores, dtype=torch.float64)
        yield Scores(dataset, network, training, form, values, test_accuracy)


def cross_checks(
    datasets: Sequence[str], training: int, data_dir: str | None, finished: Finished
) -> Iterator[Row]:
    """The yardstick beside scikit-learn's estimate of the same, on the same samples."""
    for name in tqdm(datasets, desc="by scikit-learn"):
        data, _ = load(name, data_dir, training)
        x, y = measured_on(data, training)
        classes = len(data.class_names)
        own = raw_mi(x, y, classes)
        other = torch.tensor(
            finished.result(
                {"scikit-learn": name, "training": training, "samples": len(x)},
                lambda: raw_mi_by_sklearn(x, y, classes, training).tolist(),  # noqa: B023
            ),
            dtype=torch.float64,
        )
        yield {
            "data": name,
            "samples": len(x),
            "mean, MixedKSG": own.mean().item(),
            "mean, scikit-learn": other.mean().item(),
            "mean absolute difference": (own - other).abs().mean().item(),
            "largest difference": (own - other).abs().max().item(),
            "rank correlation": rank_correlation(own, other).mean().item(),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes what is not computed yet, and writes the report."""
    parser = argument_parser("ks_comparison", __doc__ or "", NAMES, several=True)
    parser.set_defaults(dataset=None)
    parser.add_argument(
        "--trainings", type=int, default=3, help="trainings of each network"
    )
    parser.add_argument(
        "--background", type=int, default=500, help="training samples methods get"
    )
    parser.add_argument(
        "--per-class", type=int, default=10, help="test samples explained of each class"
    )
    options = parser.parse_args(arguments)
    has_folder = bool(options.data_dir or os.environ.get("CAPTUM_NIF_DATA"))
    datasets = options.dataset or (NAMES if has_folder else EMBEDDED)
    settings = Settings(options.background, options.per_class)
    trainings = range(options.seed, options.seed + options.trainings)
    finished = Finished(options.out / "ks_comparison.json")
    torch.set_num_threads(1)
    with threadpool_limits(1):  # KernelShap's many small systems are slower in two
        scores = list(
            all_scores(datasets, trainings, options.data_dir, settings, finished)
        )
        checks = list(cross_checks(datasets, options.seed, options.data_dir, finished))
    report = build_report(scores, checks, vars(settings), options.seed)
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
