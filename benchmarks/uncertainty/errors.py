"""Are standard errors the scatter over fresh backgrounds? Those that there are tell.

A network is trained once and kept. The same samples are explained against several
backgrounds that share no sample, and each time their standard errors are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from benchmarks.data.planted import planted_table
from benchmarks.data.trained import load, trained
from captum_nif import NIFAttribution
from captum_nif.flow.jackknife import GROUPS

CASES: dict[str, tuple[str, str]] = {
    "table": ("table", "MLP"),
    "digits": ("digits", "MLP"),
    "digits-cnn": ("digits", "CNN"),
}
"""Data set and network by the name of the case."""

PRESETS: dict[str, str | None] = {
    "default": None,
    '"faithful"': "faithful",
    '"gradient_free"': "gradient_free",
}
SLOW = (("digits-cnn", '"gradient_free"'),)
"""Of these the attribution matrix is left out: it takes as long again as samples."""

EXPLAINED = 20
FRESH = 10_000
"""Seed of the first background that is drawn anew; no training has such a seed."""


class Case(NamedTuple):
    """A trained network, samples to explain, and backgrounds that share no sample."""

    model: nn.Module
    inputs: Tensor
    backgrounds: tuple[Tensor, ...]


def make_case(name: str, training: int, backgrounds: int, size: int) -> Case:
    r"""
    Trains a network, and draws backgrounds from what it was trained for.

    Args:

        name (str): One of :data:`CASES`.
        training (int): Seed of data and weights.
        backgrounds (int): How many; of digits as many as all 1797 give at most.
        size (int): Samples of a background.

    Returns:

        Case: The case.
    """
    dataset, network = CASES[name]
    data, _ = load(dataset, None, training)
    model = trained(data, network, training)
    if dataset == "table":
        first = FRESH + backgrounds * training
        drawn = [
            planted_table(first + i).dataset.x_train[:size] for i in range(backgrounds)
        ]
        return Case(model, data.x_test[:EXPLAINED], tuple(drawn))
    generator = torch.Generator().manual_seed(training)
    pool = torch.cat([data.x_train, data.x_test[EXPLAINED:]])
    pool = pool[torch.randperm(len(pool), generator=generator)]
    whole = [part for part in pool.split(size) if len(part) == size]
    return Case(model, data.x_test[:EXPLAINED], tuple(whole[:backgrounds]))


class Repeated(NamedTuple):
    """Attributions and their standard errors, [backgrounds, ...] each."""

    values: Tensor
    errors: Tensor


def explain(case: Case, preset: str | None, matrix: bool) -> dict[str, Repeated]:
    r"""
    Explains samples of the case, or the population too, against each background.

    Args:

        case (Case): The case.
        preset (str or None): Preset of the attributions.
        matrix (bool): Whether the population is explained as well.

    Returns:

        dict[str, Repeated]: Of ``"samples"``, the attributions to the classes that
        they are given; of ``"matrix"``, the attribution matrix.
    """
    with torch.no_grad():
        targets = case.model(case.inputs).argmax(dim=1)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for seed, background in enumerate(case.backgrounds):
        # Its independent inputs are drawn by a chance of its own: that counts as well.
        nif = NIFAttribution(case.model, preset=preset, seed=seed).fit(background)
        values = nif.attribute(case.inputs, target=targets)
        errors = nif.standard_error(case.inputs, target=targets)
        found.setdefault("samples", []).append((values, errors))
        if matrix:
            whole = nif.attribution_matrix(), nif.standard_error()
            found.setdefault("matrix", []).append(whole)
    return {
        of: Repeated(
            *(torch.stack(parts).double() for parts in zip(*pairs, strict=True))
        )
        for of, pairs in found.items()
    }


def compare(repeated: Repeated) -> Mapping[str, float]:
    r"""
    Standard errors beside the standard deviation over backgrounds.

    Features that never vary, such as pixels that are always black, are left out.

    Args:

        repeated (Repeated): Of two backgrounds or more.

    Returns:

        Mapping[str, float]: ``ratio``, root mean square standard error by root mean
        variance; ``off``, by how much of itself a single standard error is off (its
        standard deviation over backgrounds by its root mean square); ``covered``, the
        share of intervals of 95 % that hold the mean over the other backgrounds;
        ``clear``, the share of attributions beyond two standard errors from 0.
    """
    values, errors = (x.flatten(1) for x in repeated)
    varies = (values.std(0) > 0) & (errors > 0).all(0)
    values, errors = values[:, varies], errors[:, varies]
    count = len(values)
    off_mean = (values - values.mean(0)).abs() * count / (count - 1)
    # The mean of the others scatters as well; that is not the interval's fault.
    noise = math.sqrt(1 + 1 / (count - 1))
    reach = float(student.ppf(0.975, GROUPS - 1)) * noise
    squares = errors.square().mean()
    return {
        "ratio": float((squares / values.var(0).mean()).sqrt()),
        "off": float((errors.var(0).mean() / squares).sqrt()),
        "covered": float((off_mean <= reach * errors).double().mean()),
        "clear": float((values.abs() > 2 * errors).double().mean()),
    }
