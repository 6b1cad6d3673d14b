"""How much can be pruned by information flow, beside magnitude and chance?

The paper's two networks (Davis et al., 2020, Fig. 2 and 3), with one hidden layer and
with two, each on Banknote, which its text names, and on Iris, which its captions name;
and a small CNN on 8x8 digits. More and more connections or neurons are zeroed, without
training in between.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from benchmarks.data.datasets import Dataset, load_dataset
from benchmarks.data.models import accuracy, cnn, mlp, train
from benchmarks.report import Report, Row, argument_parser
from captum_nif import NIFAttribution
from captum_nif.pruning import CurveRow, plot_pruning_curve, pruning_curve
from captum_nif.pruning.masking import Level

LEVELS: tuple[Level, ...] = ("link", "node")
TOLERATED = 0.01
"""Loss of accuracy up to which pruning counts as free."""

BACKGROUND = 1000
"""Training samples that a flow graph is estimated from, at most."""


class Network(NamedTuple):
    """A network to prune: what it is called, its data, and how it is made."""

    title: str
    dataset: str
    build: Callable[[int], nn.Module]
    epochs: int


NETWORKS = (
    Network("perceptron 4-10-2", "banknote", lambda seed: mlp(4, 2, (10,), seed), 30),
    Network("MLP 4-10-5-2", "banknote", lambda seed: mlp(4, 2, (10, 5), seed), 30),
    Network("perceptron 4-10-3", "iris", lambda seed: mlp(4, 3, (10,), seed), 100),
    Network("MLP 4-10-5-3", "iris", lambda seed: mlp(4, 3, (10, 5), seed), 100),
    Network("CNN 8-16-32-10", "digits", lambda seed: cnn((1, 8, 8), 10, seed=seed), 30),
)


class Point(CurveRow):
    """A point of a pruning curve, with the training seed of its network."""

    training: int


Run = list[tuple[int, float]]


class Result(TypedDict):
    """What a method achieves on all trainings of a network, at one level."""

    network: str
    data: str
    level: str
    method: str
    mean: float
    sd: float
    free: float
    better: int
    worse: int


def curves(
    network: Network, dataset: Dataset, seeds: Sequence[int], progress: bool = True
) -> tuple[list[float], dict[Level, list[Point]]]:
    r"""
    Train a network from several seeds and prune it at both levels.

    Args:

        network (Network): What to train.
        dataset (Dataset): The flow is estimated from its training part, and accuracy
            is that on its test part.
        seeds (Sequence[int]): Each draws weights and the order of the samples.
        progress (bool, optional): Shows a progress bar. Default: ``True``

    Returns:

        tuple: The test accuracy for each seed, and for each level the curves.
    """
    accuracies = []
    points: dict[Level, list[Point]] = {level: [] for level in LEVELS}
    label = f"{network.title}, {network.dataset}"
    for seed in tqdm(seeds, desc=label, disable=not progress):
        model = network.build(seed)
        train(model, dataset, seed, network.epochs, learning_rate=0.005)
        accuracies.append(accuracy(model, dataset.x_test, dataset.y_test))
        graph = NIFAttribution(model).fit(dataset.x_train[:BACKGROUND]).flow()
        for level in LEVELS:
            data = dataset.x_test, dataset.y_test
            rows = pruning_curve(model, graph, data, level)
            points[level] += [Point(training=seed, **row) for row in rows]
    return accuracies, points


def summary(network: Network, level: Level, points: Sequence[Point]) -> list[Result]:
    r"""
    One row for each method.

    Args:

        network (Network): What was pruned.
        level (str): At which level.
        points (Sequence[Point]): Its curves.

    Returns:

        list[Result]: ``mean`` and ``sd``, over trainings, of the accuracy, itself the
        mean over the number of zeroed weights, from none to all; ``free``, the largest
        share of them before accuracy falls by more than :data:`TOLERATED`; and in how
        many trainings the mean accuracy is ``better`` and ``worse`` than with
        magnitude.

    Examples::

        >>> curves = {"NIF": [1.0, 0.995, 0.5], "magnitude": [1.0, 0.9, 0.5]}
        >>> points = [
        ...     Point(
        ...         method=method,
        ...         seed=0,
        ...         pruned=n,
        ...         zeroed=2 * n,
        ...         accuracy=accuracy,
        ...         training=0,
        ...     )
        ...     for method, curve in curves.items()
        ...     for n, accuracy in enumerate(curve)
        ... ]
        >>> nif, magnitude = summary(NETWORKS[0], "link", points)
        >>> nif["mean"], nif["free"], nif["better"], magnitude["free"]
        (0.8725, 0.5, 1, 0.0)
        >>> print(verdict([nif, magnitude]).splitlines()[2])
        - NIF is better than magnitude: perceptron 4-10-2 on banknote, links (+0.048).
    """
    seeds = sorted({point["training"] for point in points})
    methods = list(dict.fromkeys(point["method"] for point in points))
    runs = {
        method: [_runs(points, method, seed) for seed in seeds] for method in methods
    }
    means = {
        method: [
            statistics.mean(map(_mean_accuracy, orders)) for orders in runs[method]
        ]
        for method in methods
    }
    return [
        Result(
            network=network.title,
            data=network.dataset,
            level=level,
            method=method,
            mean=statistics.mean(means[method]),
            sd=statistics.pstdev(means[method]),
            free=statistics.mean(map(_free_share, itertools.chain(*runs[method]))),
            better=sum(map(float.__gt__, means[method], means["magnitude"])),
            worse=sum(map(float.__lt__, means[method], means["magnitude"])),
        )
        for method in methods
    ]


def _runs(points: Sequence[Point], method: str, training: int) -> list[Run]:
    """Zeroed weights and accuracy, once for each order of one training."""
    runs: dict[int, Run] = {}
    for point in points:
        if (point["method"], point["training"]) == (method, training):
            place = point["zeroed"], point["accuracy"]
            runs.setdefault(point["seed"], []).append(place)
    return [sorted(run) for run in runs.values()]


def _mean_accuracy(run: Run) -> float:
    """The mean over the number of zeroed weights, by the trapezoidal rule."""
    area = sum((x - w) * (b + a) / 2 for (w, a), (x, b) in itertools.pairwise(run))
    return area / run[-1][0]


def _free_share(run: Run) -> float:
    whole = run[0][1]
    good = itertools.takewhile(lambda place: place[1] >= whole - TOLERATED, run)
    return max(zeroed for zeroed, _ in good) / run[-1][0]


def verdict(results: Sequence[Result]) -> str:
    r"""
    Where NIF does better than magnitude and than chance, and where worse, in words.

    Args:

        results (Sequence[Result]): All rows of all networks.

    Returns:

        str: A Markdown list.
    """
    lines = ["By mean accuracy (difference):", ""]
    for rival, (word, sign) in itertools.product(
        ("magnitude", "random"), (("better", 1), ("worse", -1))
    ):
        gaps = [
            (nif, nif["mean"] - other["mean"])
            for nif, other in itertools.product(results, results)
            if (nif["method"], other["method"]) == ("NIF", rival)
            and all(nif[key] == other[key] for key in ("network", "data", "level"))
        ]
        found = [
            f"{nif['network']} on {nif['data']}, {nif['level']}s ({gap:+.3f})"
            for nif, gap in gaps
            if gap * sign > 0
        ]
        lines.append(f"- NIF is {word} than {rival}: {'; '.join(found) or 'nowhere'}.")
    return "\n".join(lines)


def drawn(titled: Mapping[str, Mapping[Level, Sequence[Point]]]) -> Figure:
    r"""
    A row for each network, connections on the left and nodes on the right.

    Args:

        titled (Mapping): The curves by the title of the network, then by level.

    Returns:

        matplotlib.figure.Figure: The figure.
    """
    figure = Figure(figsize=(9.6, 3.2 * len(titled)))
    figure.set_layout_engine("constrained", h_pad=0.1)
    axes = figure.subplots(len(titled), len(LEVELS), squeeze=False, sharey=True)
    for (title, points), line in zip(titled.items(), axes, strict=True):
        for level, axis in zip(LEVELS, line, strict=True):
            plot_pruning_curve(points[level], ax=axis)
            axis.set_title(f"{title}: {level}s", fontsize=10)
    for axis in axes[:, 1]:
        axis.set_ylabel("")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, prunes, prints where the page is and writes it."""
    names = list(dict.fromkeys(network.dataset for network in NETWORKS))
    parser = argument_parser("pruning", __doc__ or "", ["all", *names])
    parser.add_argument(
        "--trainings", type=int, default=5, help="trainings of each network"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the networks are too small for more
    seeds = range(options.seed, options.seed + options.trainings)

    titled: dict[str, dict[Level, list[Point]]] = {}
    trained: list[Row] = []
    results: list[Result] = []
    for network in NETWORKS:
        if options.dataset not in ("all", network.dataset):
            continue
        dataset = load_dataset(network.dataset, options.data_dir, options.seed)
        accuracies, points = curves(network, dataset, seeds)
        titled[f"{network.title}, {network.dataset}"] = points
        trained.append(
            {
                "network": network.title,
                "data": network.dataset,
                "lowest test accuracy": min(accuracies),
                "mean": statistics.mean(accuracies),
            }
        )
        for level in LEVELS:
            results += summary(network, level, points[level])

    report = Report("pruning", "Accuracy against zeroed weights", options.seed)
    report.table(trained, "networks", f"Networks, each trained {len(seeds)} times:")
    report.table(
        results,
        caption="*mean* and *sd*, over trainings, of test accuracy, itself the mean "
        "over the number of zeroed weights; *free*: share zeroed before accuracy falls "
        f"by more than {TOLERATED:.0%}; *better*, *worse*: trainings in which *mean* "
        "is above and below that of magnitude. Random: five orders each.",
    )
    report.text(verdict(results))
    report.figure(
        drawn(titled),
        caption="Lines are means, bands run from the lowest to the highest of all "
        "trainings and random orders. There is no training in between.",
    )
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
