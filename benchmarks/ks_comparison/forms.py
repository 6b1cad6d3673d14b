"""The forms in which methods enter the comparison with raw mutual information.

A form turns a trained network and samples into one score for each class and feature,
[C, features]. To compare another one, add a line to :data:`FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.faithfulness.methods import METHODS, nif
from benchmarks.ks_comparison.distance import raw_mi
from captum_nif import MixedKSG, NIFAttribution

SLOW_BACKGROUND = 250
"""Samples that slow forms are fitted on."""

Kind = Literal["yardstick", "baseline", "NIF", "rival"]


@dataclass(frozen=True, eq=False)
class Case:
    r"""
    A trained network and what forms get to know.

    Args:

        model (nn.Module): The network, in evaluation mode.
        test_accuracy (float): Its accuracy on the test part.
        background (Tensor): Training samples for the methods.
        x (Tensor): Training samples for the yardsticks, the background first.
        y (Tensor): Their classes.
        x_other (Tensor): Samples of the test part.
        y_other (Tensor): Their classes.
        explained (tuple[Tensor, ...]): For each class, samples of it to explain.
        seed (int): For methods that draw.
    """

    model: nn.Module
    test_accuracy: float
    background: Tensor
    x: Tensor
    y: Tensor
    x_other: Tensor
    y_other: Tensor
    explained: tuple[Tensor, ...]
    seed: int


class Form(NamedTuple):
    """How scores are made, what part they play, and what they are, in words."""

    make: Callable[[Case], Tensor]
    kind: Kind
    described: str
    slow: bool = False

    def __call__(self, case: Case) -> Tensor:
        """The scores, float64, [C, features]."""
        if self.slow:
            case = replace(case, background=case.background[:SLOW_BACKGROUND])
        return self.make(case).detach().double()


class Scores(NamedTuple):
    """What a form says of one trained network: values [C, features], float64."""

    dataset: str
    network: str
    training: int
    form: str
    values: Tensor
    test_accuracy: float


def mean_absolute(method: str, kind: Kind, slow: bool = False) -> Form:
    r"""
    Attributions of single samples: the mean of |a| over the samples of each class.

    Args:

        method (str): One of :data:`benchmarks.faithfulness.methods.METHODS`.
        kind (str): What part the form plays.
        slow (bool, optional): Whether to make do with a small background.
            Default: ``False``

    Returns:

        Form: The form.
    """
    chosen = METHODS[method]

    def make(case: Case) -> Tensor:
        explain = chosen(case.model, case.background, case.seed)
        return torch.stack(
            [
                explain(x, torch.full((len(x),), c)).detach().abs().mean(dim=0)
                for c, x in enumerate(case.explained)
            ]
        ).flatten(1)

    said = f"mean absolute attribution of test samples of the class: {chosen.described}"
    return Form(make, kind, said, slow)


def matrix(
    by_class: bool = False, absolute: bool = False, slow: bool = False, **options: Any
) -> Form:
    r"""
    NIF's attribution matrix: Eq. 4 on the graph of the population, or of each class.

    Args:

        by_class (bool, optional): Whether links are averaged over the graphs of the
            background's samples of a class. Default: ``False``
        absolute (bool, optional): Whether signs are dropped: where links are signed
            correlations, they are directions. Default: ``False``
        slow (bool, optional): Whether to make do with a small background.
            Default: ``False``
        **options: Arguments of :class:`captum_nif.NIFAttribution`.

    Returns:

        Form: The form.
    """

    def make(case: Case) -> Tensor:
        fitted = NIFAttribution(case.model, **options).fit(case.background)
        classes = case.y[: len(case.background)] if by_class else None
        found = fitted.attribution_matrix(classes=classes).T
        return found.abs() if absolute else found

    said = "attribution matrix"
    said += " over averages of each class" if by_class else ""
    said += ", its absolute values" if absolute else ", with its signs"
    return Form(make, "NIF", f"{said}: {nif(**options).described}", slow)


def _against_labels(case: Case) -> Tensor:
    return raw_mi(case.x, case.y, len(case.explained))


def _against_logits(case: Case) -> Tensor:
    with torch.no_grad():
        logits = case.model(case.x)
    return MixedKSG().mi(case.x.flatten(1), logits).T


def _on_other_samples(case: Case) -> Tensor:
    return raw_mi(case.x_other, case.y_other, len(case.explained))


def _shuffled(case: Case) -> Tensor:
    scores = _against_labels(case)
    generator = torch.Generator().manual_seed(case.seed)
    return scores[:, torch.randperm(scores.shape[1], generator=generator)]


LABELS, LOGITS = "raw MI", "raw MI, logits"

FORMS: dict[str, Form] = {
    LABELS: Form(
        _against_labels,
        "yardstick",
        "I(feature; 1[y = class]) by MixedKSG() on training samples",
    ),
    LOGITS: Form(
        _against_logits,
        "baseline",
        "I(feature; logit) by MixedKSG() on the same samples: what a single link from "
        "input to class would be. A second yardstick, not a method",
    ),
    "raw MI, test part": Form(
        _on_other_samples,
        "baseline",
        "the yardstick measured on samples of the test part: how well it agrees with "
        "itself",
    ),
    "raw MI, shuffled": Form(
        _shuffled,
        "baseline",
        "the yardstick with its features shuffled: what a KS test cannot tell from it",
    ),
    "random": mean_absolute("random", "baseline"),
    "NIF, matrix": matrix(),
    "NIF, class averages": matrix(by_class=True),
    "NIF neurons, class averages": matrix(by_class=True, nodes="neuron"),
    "NIF, instances": mean_absolute("NIF", "NIF"),
    "NIF paper, matrix": matrix(slow=True, preset="paper"),
    "NIF paper, instances": mean_absolute("NIF, paper", "NIF", slow=True),
    "NIF faithful, matrix": matrix(absolute=True, preset="faithful"),
    "NIF faithful, instances": mean_absolute("NIF, faithful", "NIF"),
    "NIF gradient free, matrix": matrix(absolute=True, preset="gradient_free"),
    "NIF gradient free, instances": mean_absolute("NIF, gradient free", "NIF"),
    "IG": mean_absolute("IG, mean", "rival"),
    "KernelShap": mean_absolute("KernelShap", "rival"),
}
"""What is compared, by name."""
