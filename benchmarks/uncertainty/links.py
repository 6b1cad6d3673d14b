"""Are p-values of links what they say? Links whose dependence is known tell.

Every repeat draws its own samples, and its own null tables; so intervals over repeats
tell of the chance in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_nif.estimators import PMIEstimator
from captum_nif.flow.permutation_test import link_pvalues
from captum_nif.graph.false_discovery import false_discovery

Array = NDArray[np.float64]
Map = Callable[[Tensor], Tensor]

LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
WIDTH = 32
"""Independent variables on each side, so 1024 links in a repeat."""

NODES = 40
"""On each side of a graph, so 1600 links, of which :data:`LINKED` exist."""

LINKED = 2 * NODES


class Kind(NamedTuple):
    """Two sides of independent links: what each makes of Gaussian variables, [N, a]."""

    x: Map
    y: Map


def zeros(low: float, high: float | None = None) -> Map:
    r"""
    ReLUs with a given share of zeros, or with shares from one to another.

    Args:

        low (float): The share, of the first variable.
        high (float, optional): The share of the last one. Default: the same

    Returns:

        Callable: What makes such variables of Gaussian ones.

    Examples::

        >>> z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> [f"{share:.1f}" for share in (zeros(0.1, 0.9)(z) == 0).float().mean(0)]
        ['0.1', '0.9']
    """

    def relu(z: Tensor) -> Tensor:
        shares = torch.linspace(low, low if high is None else high, z.shape[1])
        cut: Tensor = torch.special.ndtri(shares.to(z.dtype))
        return (z - cut).relu()

    return relu


def _identity(z: Tensor) -> Tensor:
    return z


def _binary(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


def _rounded(z: Tensor) -> Tensor:
    return (10 * z).round() / 10


KINDS: dict[str, Kind] = {
    "continuous": Kind(_identity, _identity),
    "50 % zeros": Kind(zeros(0.5), zeros(0.5)),
    "90 % zeros": Kind(zeros(0.9), zeros(0.9)),
    "97 % zeros": Kind(zeros(0.97), zeros(0.97)),
    "continuous, 20 to 95 % zeros": Kind(_identity, zeros(0.2, 0.95)),
    "binary": Kind(_binary, _binary),
    "rounded to 0.1": Kind(_rounded, _rounded),
    "constant, continuous": Kind(torch.zeros_like, _identity),
}
"""What nodes of networks are like, and worse."""

LAYERS: dict[str, Map] = {
    "continuous": _identity,
    "50 % zeros": zeros(0.5),
    "90 % zeros": zeros(0.9),
}
"""What both layers of a graph with known links are made of."""


def false_positives(
    estimator: PMIEstimator, kind: str, n: int, repeats: int, seed: int
) -> Array:
    r"""
    Share of independent links whose p-value reaches a level.

    Args:

        estimator (PMIEstimator): The estimator.
        kind (str): One of :data:`KINDS`.
        n (int): Samples.
        repeats (int): How often :data:`WIDTH` squared links are tested.
        seed (int): Draws everything.

    Returns:

        ndarray: The shares, [repeats, levels].
    """
    of_x, of_y = KINDS[kind]
    place = list(KINDS).index(kind)
    shares = np.empty((repeats, len(LEVELS)))
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, n, place, repeat))
        x, y = torch.from_numpy(generator.standard_normal((2, n, WIDTH)))
        pvalues = link_pvalues(estimator, of_x(x), of_y(y), seed=_table(generator))
        for i, level in enumerate(LEVELS):
            shares[repeat, i] = (pvalues <= level).double().mean()
    return shares


class Discoveries(NamedTuple):
    """What was found in each of some graphs, [graphs] each.

    Attributes:
        true (Array): Links found that exist, of :data:`LINKED`.
        false (Array): Links found that do not.
    """

    true: Array
    false: Array

    @property
    def power(self) -> Array:
        """Share found of the links that exist."""
        return self.true / LINKED

    @property
    def false_share(self) -> Array:
        """Share of what was found that does not exist; 0 where nothing was found."""
        return self.false / np.maximum(1, self.true + self.false)


def linked_layers(
    generator: np.random.Generator, n: int, correlation: float
) -> tuple[Tensor, Tensor]:
    r"""
    Two layers of Gaussian nodes: each of the second depends on two of the first alike.

    Args:

        generator (numpy.random.Generator): Draws the samples.
        n (int): Samples.
        correlation (float): Of the nodes that are linked, at most 0.7.

    Returns:

        tuple[Tensor, Tensor]: Values of both layers, [N, :data:`NODES`]. The second's
        node j depends on the first's j and j + 1, the last one on the last and first.
    """
    x, noise = torch.from_numpy(generator.standard_normal((2, n, NODES)))
    rest = math.sqrt(1 - 2 * correlation**2)
    return x, correlation * (x + x.roll(-1, dims=1)) + rest * noise


def existing() -> Tensor:
    """Which links of :func:`linked_layers` exist, [NODES, NODES]."""
    diagonal = torch.eye(NODES, dtype=torch.bool)
    return diagonal | diagonal.roll(1, dims=0)


def discoveries(
    estimator: PMIEstimator,
    layers: str,
    n: int,
    correlation: float,
    graphs: int,
    level: float,
    seed: int,
) -> Discoveries:
    r"""
    Links kept at a false discovery rate, in graphs of :func:`linked_layers`.

    Args:

        estimator (PMIEstimator): The estimator.
        layers (str): One of :data:`LAYERS`.
        n (int): Samples.
        correlation (float): Of linked nodes, before they become what the layers are
            made of; 0 leaves no link that exists.
        graphs (int): How many are drawn.
        level (float): The false discovery rate.
        seed (int): Draws everything.

    Returns:

        Discoveries: What was found.
    """
    made = LAYERS[layers]
    exists = existing() if correlation else torch.zeros_like(existing())
    place = list(LAYERS).index(layers), round(1000 * correlation)
    found = np.empty((2, graphs))
    for graph in range(graphs):
        generator = np.random.default_rng((seed, n, *place, graph))
        x, y = linked_layers(generator, n, correlation)
        pvalues = link_pvalues(estimator, made(x), made(y), seed=_table(generator))
        kept = false_discovery([pvalues])[0] <= level
        found[:, graph] = int((kept & exists).sum()), int((kept & ~exists).sum())
    return Discoveries(*found)


def _table(generator: np.random.Generator) -> int:
    """A seed for null tables."""
    return int(generator.integers(2**31))
