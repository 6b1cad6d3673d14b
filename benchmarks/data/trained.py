"""The networks that benchmarks compare methods on, and the data they are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data.datasets import Dataset, load_dataset, load_mnist
from benchmarks.data.models import accuracy, cnn, mlp, residual_cnn, train
from benchmarks.data.planted import planted_patch, planted_table

EMBEDDED = ("iris", "digits", "table", "patch")
"""Data sets that come with a package, or are drawn: nothing is downloaded."""

DATASETS = (*EMBEDDED, "banknote", "mnist")
IMAGES = ("digits", "patch", "mnist")
MNIST_SAMPLES = 6000

Build = Callable[[Sequence[int], int, int], nn.Module]
"""Makes a network from a sample's shape, the number of classes and a seed."""


def _mlp(shape: Sequence[int], n_classes: int, seed: int) -> nn.Module:
    hidden = (32, 16) if len(shape) == 3 else (10, 10)
    return mlp(math.prod(shape), n_classes, hidden, seed)


def _cnn(shape: Sequence[int], n_classes: int, seed: int) -> nn.Module:
    return cnn(shape, n_classes, channels=(16, 32), seed=seed)


def _residual(shape: Sequence[int], n_classes: int, seed: int) -> nn.Module:
    return residual_cnn(shape, n_classes, seed=seed)


NETWORKS: dict[str, Build] = {"MLP": _mlp, "CNN": _cnn, "residual CNN": _residual}


def pairs(
    datasets: Iterable[str], networks: Iterable[str] = tuple(NETWORKS)
) -> list[tuple[str, str]]:
    r"""
    Data sets with the networks that are trained on them: convolutions see images only.

    Args:

        datasets (Iterable[str]): Some of :data:`DATASETS`.
        networks (Iterable[str], optional): Some of :data:`NETWORKS`.
            Default: all

    Returns:

        list[tuple[str, str]]: The pairs, all of a data set together.

    Examples::

        >>> pairs(["iris", "digits"], ["MLP", "CNN"])
        [('iris', 'MLP'), ('digits', 'MLP'), ('digits', 'CNN')]
    """
    networks = tuple(networks)
    return [
        (name, network)
        for name in datasets
        for network in networks
        if name in IMAGES or network == "MLP"
    ]


@cache
def load(name: str, data_dir: str | None, seed: int) -> tuple[Dataset, Tensor | None]:
    """A data set, and which features of its test samples decide, where it is known."""
    if name in ("table", "patch"):
        return (planted_table if name == "table" else planted_patch)(seed)
    if name != "mnist":
        return load_dataset(name, data_dir, seed), None
    mnist = load_mnist(data_dir, n_train=MNIST_SAMPLES, n_test=1000)
    halved = [F.avg_pool2d(x, 2) for x in (mnist.x_train, mnist.x_test)]
    return replace(mnist, x_train=halved[0], x_test=halved[1]), None


def trained(data: Dataset, network: str, training: int) -> nn.Module:
    r"""
    Makes a network for a data set and trains it.

    Args:

        data (Dataset): The data.
        network (str): One of :data:`NETWORKS`.
        training (int): Seed of its weights and of the order of samples.

    Returns:

        torch.nn.Module: The network, in evaluation mode.
    """
    shape, classes = data.x_train.shape[1:], len(data.class_names)
    model = NETWORKS[network](shape, classes, training)
    # About 2000 steps whatever the data set, which is where accuracy levels off.
    epochs = math.ceil(2000 * 32 / len(data.x_train))
    return train(model, data, training, epochs, learning_rate=2e-3)


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network, what methods get to know, and what they explain.

    The seed of its training draws all that measures and methods draw, too: intervals
    over trainings tell of that chance as well.
    """

    seed: int
    model: nn.Module
    test_accuracy: float
    background: Tensor
    inputs: Tensor
    targets: Tensor
    donors: Tensor
    relevant: Tensor | None


def make_task(
    name: str,
    network: str,
    training: int,
    data_dir: str | None,
    samples: int,
    background: int,
) -> Task:
    """Trains a network; explains the class it predicts for the first test samples.

    Each training has a split of its own (MNIST's is fixed), and planted data are drawn
    anew. Donors are the test part, which no method has seen.
    """
    data, relevant = load(name, data_dir, training)
    model = trained(data, network, training)
    inputs = data.x_test[:samples]
    with torch.no_grad():
        targets = model(inputs).argmax(dim=1)
    return Task(
        training,
        model,
        accuracy(model, data.x_test, data.y_test),
        data.x_train[:background],
        inputs,
        targets,
        data.x_test,
        None if relevant is None else relevant[: len(inputs)],
    )
