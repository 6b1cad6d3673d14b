r"""Pairs of variables whose mutual information is known, and that of each sample.

Each :class:`Task` draws samples with their true PMI,
:math:`\log p(x, y) / (p(x)\, p(y))` with respect to whatever measure the pair has:
densities, probabilities of atoms, or both. Its mutual information is in closed form or
an integral of the same PMI by Gauss-Legendre quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, roots_legendre
from scipy.stats import multivariate_normal, norm

Array = NDArray[np.float64]


class Known(NamedTuple):
    """Samples of a pair, [2, N], and the PMI of each in nats, [N]."""

    pair: Array
    pmi: Array


class Task(NamedTuple):
    """A kind of pair.

    Attributes:
        name (str): what to call it.
        draw (Callable): N samples from a generator.
        information (float): the mutual information, in nats.
    """

    name: str
    draw: Callable[[np.random.Generator, int], Known]
    information: float


def tasks() -> list[Task]:
    """One of each kind that estimators meet in networks, and some that they dread."""
    return [
        gaussian("independent", 0.0),
        gaussian("Gaussian 0.3", 0.3),
        gaussian("Gaussian 0.6", 0.6),
        gaussian("Gaussian 0.9", 0.9),
        gaussian("heavy tails 0.6", 0.6, scale=lambda z: np.sinh(3 * z)),
        wave("wave", 0.3),
        discrete_and_uniform("discrete + uniform", 5),
        mixture("half discrete", 0.9),
        inflated_poisson("zero-inflated Poisson", 0.15),
        censored("ReLU, independent", 0.0, 0.0),
        censored("ReLU 0.9", 0.9, 0.0),
        censored("90 % zeros 0.9", 0.9, float(norm.ppf(0.9))),
        rounded("rounded to 0.1", 0.6),
        constant("constant"),
    ]


# ------------------------------------------------------------------ kinds of pairs


def gaussian(
    name: str, rho: float, scale: Callable[[Array], Array] = lambda z: z
) -> Task:
    """A Gaussian pair of correlation rho, each value then mapped by the scale."""

    def draw(generator: np.random.Generator, n: int) -> Known:
        z = _gaussian(generator, n, rho)
        return Known(scale(z), _gaussian_pmi(z, rho))

    return Task(name, draw, _gaussian_information(rho))


def wave(name: str, noise: float) -> Task:
    """Two periods of a sine with noise: dependent, and hardly correlated."""
    phases = np.linspace(0, 2 * math.pi, 96, endpoint=False)

    def pmi(phase: Array, y: Array) -> Array:
        marginal = norm.pdf(y[..., None], np.sin(phases), noise).mean(-1)
        return norm.logpdf(y, np.sin(phase), noise) - np.log(marginal)

    def draw(generator: np.random.Generator, n: int) -> Known:
        x = generator.uniform(-math.pi, math.pi, n)
        y = np.sin(2 * x) + noise * generator.standard_normal(n)
        return Known(np.stack([x, y]), pmi(2 * x, y))

    errors, weights = _nodes(-8, 8)
    some = phases[:, None]
    inner = pmi(some, np.sin(some) + noise * errors) @ (weights * norm.pdf(errors))
    return Task(name, draw, float(inner.mean()))


def discrete_and_uniform(name: str, values: int) -> Task:
    """One of some integers, and a uniform on the two units above it (Gao et al.)."""

    def draw(generator: np.random.Generator, n: int) -> Known:
        x = generator.integers(0, values, n)
        y = x + 2 * generator.random(n)
        alone = (y < 1) | (y >= values)  # where intervals do not overlap
        pmi = math.log(values) - np.where(alone, 0, math.log(2))
        return Known(np.stack([x, y]), pmi)

    return Task(name, draw, math.log(values) - (values - 1) / values * math.log(2))


def mixture(name: str, rho: float) -> Task:
    """Half a Gaussian pair, half signs that mostly agree (Gao et al.)."""
    agree = np.array([0.1, 0.9])

    def draw(generator: np.random.Generator, n: int) -> Known:
        z = _gaussian(generator, n, rho)
        sign, same = generator.choice([-1.0, 1.0], n), generator.random(n) < agree[1]
        signs = np.stack([sign, np.where(same, sign, -sign)])
        continuous = generator.random(n) < 0.5
        of_signs = np.log(4 * agree)[same.astype(int)]
        return Known(
            np.where(continuous, z, signs),
            np.where(continuous, math.log(2) + _gaussian_pmi(z, rho), of_signs),
        )

    of_gaussian = math.log(2) + _gaussian_information(rho)
    return Task(name, draw, (of_gaussian + float(agree @ np.log(4 * agree))) / 2)


def inflated_poisson(name: str, share: float) -> Task:
    """An exponential rate and a Poisson count of it, or in a share of cases 0."""

    def log_marginal(count: Array) -> Array:
        return _log_inflated(share, count, -(count + 1) * math.log(2))

    def pmi(rate: Array, count: Array) -> Array:
        poisson = count * np.log(rate) - rate - gammaln(count + 1)
        return _log_inflated(share, count, poisson) - log_marginal(count)

    def draw(generator: np.random.Generator, n: int) -> Known:
        rate = generator.exponential(size=n)
        count = np.where(generator.random(n) < share, 0, generator.poisson(rate))
        return Known(np.stack([rate, count]), pmi(rate, count.astype(float)))

    (rate, weights), count = _nodes(0, 50), np.arange(150.0)
    values = pmi(rate[:, None], count)
    given = np.exp(values + log_marginal(count))
    information = (weights * np.exp(-rate)) @ (given * values).sum(1)
    return Task(name, draw, float(information))


def censored(name: str, rho: float, threshold: float) -> Task:
    """A Gaussian pair, where values below a threshold all become the threshold."""
    deviation, below = math.sqrt(1 - rho**2), float(ndtr(threshold))
    both = multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([threshold] * 2)

    def pmi(z: Array) -> Array:
        first, second = z <= threshold
        other = np.where(first, z[1], z[0])
        one = np.log(ndtr((threshold - rho * other) / deviation) / below)
        atom = math.log(both / below**2)
        return np.where(
            first & second, atom, np.where(first | second, one, _gaussian_pmi(z, rho))
        )

    def draw(generator: np.random.Generator, n: int) -> Known:
        z = _gaussian(generator, n, rho)
        return Known(z.clip(threshold), pmi(z))

    halves = _nodes(-9, threshold), _nodes(threshold, 9)
    nodes, weights = np.concatenate(halves, axis=1)
    z = np.stack(np.meshgrid(nodes, nodes))
    density = norm.pdf(z).prod(0) * np.exp(_gaussian_pmi(z, rho))
    return Task(name, draw, float(weights @ (density * pmi(z)) @ weights))


def rounded(name: str, rho: float, per_unit: int = 10) -> Task:
    """A Gaussian pair rounded to a lattice, far wider than precision."""
    reach = 8 * per_unit
    steps = np.arange(-reach, reach + 1)[:, None]
    offset, weights = _nodes(-0.5, 0.5, 8)
    z, weights = (steps + offset) / per_unit, weights / per_unit
    deviation = math.sqrt(1 - rho**2)
    edges = (np.append(steps, reach + 1) - 0.5) / per_unit
    above = ndtr((edges[:, None, None] - rho * z) / deviation)
    joint = (np.diff(above, axis=0) * (norm.pdf(z) * weights)).sum(-1)
    joint = (joint + joint.T).clip(1e-300) / 2
    table = np.log(joint) - np.log(joint.sum(0)) - np.log(joint.sum(1))[:, None]

    def draw(generator: np.random.Generator, n: int) -> Known:
        lattice = np.round(per_unit * _gaussian(generator, n, rho))
        first, second = lattice.astype(int) + reach
        return Known(lattice / per_unit, table[first, second])

    return Task(name, draw, float((joint * table).sum()))


def constant(name: str) -> Task:
    """Always the same value, and a Gaussian."""

    def draw(generator: np.random.Generator, n: int) -> Known:
        pair = np.stack([np.full(n, 0.1), generator.standard_normal(n)])
        return Known(pair, np.zeros(n))

    return Task(name, draw, 0.0)


# ---------------------------------------------------------------------------- shared


def _gaussian(generator: np.random.Generator, n: int, rho: float) -> Array:
    x, noise = generator.standard_normal((2, n))
    return np.stack([x, rho * x + math.sqrt(1 - rho**2) * noise])


def _gaussian_pmi(z: Array, rho: float) -> Array:
    exponent = rho * z[0] * z[1] - rho**2 * (z**2).sum(0) / 2
    return _gaussian_information(rho) + exponent / (1 - rho**2)


def _gaussian_information(rho: float) -> float:
    return -math.log1p(-(rho**2)) / 2


def _log_inflated(share: float, count: Array, log_probability: Array) -> Array:
    """Log probability of a count that, in a share of cases, is 0 instead."""
    zero = np.where(count == 0, math.log(share), -np.inf)
    return np.logaddexp(zero, math.log1p(-share) + log_probability)


def _nodes(low: float, high: float, count: int = 200) -> tuple[Array, Array]:
    """Nodes and weights of Gauss-Legendre quadrature between two limits."""
    nodes, weights = roots_legendre(count)
    half = (high - low) / 2
    return low + half * (1 + nodes), half * weights
