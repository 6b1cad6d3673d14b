from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma, ndtri
from scipy.stats import multivariate_normal, norm, rankdata
from test_mixed_ksg import samples
from torch import Tensor

from captum_nif.estimators.gaussian import GaussianCopula

both_marginals = pytest.mark.parametrize("marginals", ["normal", "standard"])
copulas = st.builds(GaussianCopula, marginals=st.sampled_from(["normal", "standard"]))


def scores(values: np.ndarray, marginals: str) -> np.ndarray:
    """Standardized scores of one variable; 0 if it is constant."""
    n = len(values)
    bits = (53 - math.ceil(math.log2(n))) // 2
    values = values.astype(float)
    if marginals == "normal":
        values = np.round(ndtri((rankdata(values) - 0.5) / n) * 2**26) / 2**26
    elif np.ptp(values) > 0:
        values = (values - values.min()) / np.ptp(values)
    values = np.round(values * 2**bits) / 2**bits
    values = values - values.mean()
    return values / values.std() if np.ptp(values) > 0 else np.zeros(n)


def estimate(x: np.ndarray, y: np.ndarray, marginals: str) -> np.ndarray:
    """PMI of all samples of a vector x, [N, a], and a variable y, [N].

    By the densities of a normal y and of y given x, and least squares.
    """
    n = len(y)
    u = np.stack([scores(v, marginals) for v in x.T], axis=1)
    v = scores(y, marginals)
    rank = np.linalg.matrix_rank(u, tol=1e-5 * math.sqrt(n))
    if rank == 0 or not v.any():
        return np.zeros(n)
    predicted = u @ np.linalg.lstsq(u, v, rcond=1e-5)[0]
    share = np.mean((v - predicted) ** 2)
    freedom = np.array([n - 1, n - 1 - rank]) / 2
    bias = -np.diff(digamma(freedom))[0] / 2
    if share < n**-2:  # as if the samples were correlated a little less
        surplus = share * v**2 - (v - predicted) ** 2
        return math.log(n) - bias + surplus / 2 * n**2
    density = norm.logpdf(v, predicted, math.sqrt(share))
    return density - norm.logpdf(v) - bias


def expected(x: Tensor, y: Tensor, copula: GaussianCopula) -> Tensor:
    """PMI of all pairs, [N, a, b]."""
    pairs = [
        [estimate(one[:, None], other, copula.marginals) for other in y.numpy().T]
        for one in x.numpy().T
    ]
    return torch.tensor(np.array(pairs)).permute(2, 0, 1)


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-7)


@given(samples(least=3), copulas)
def test_pmi_is_the_definition_on_every_tie_pattern(xy, copula):
    x, y = xy
    wanted = expected(x, y, copula)
    close(copula.pmi(x, y), wanted)
    close(copula.mi(x, y), wanted.mean(0))


@given(samples(least=4), copulas)
def test_a_query_is_one_more_sample(xy, copula):
    x, y = xy
    pmi = copula.pmi(x[:-1], y[:-1], query=(x[-1:], y[-1:]))
    close(pmi[0], expected(x, y, copula)[-1])


@given(samples(least=7, sizes=(3, 1)), copulas)
def test_joint_is_the_definition_for_vectors(xy, copula):
    x, y = xy
    wanted = estimate(x.numpy(), y[:, 0].numpy(), copula.marginals)
    close(copula.joint(x, y)[:, 0], torch.tensor(wanted))


@given(samples(least=3))
def test_monotone_maps_of_normal_scores(xy):
    x, y = (v.double() for v in xy)
    copula = GaussianCopula()
    value = copula.pmi(x, y)
    for stretched in (1000 * x, x.exp(), x**3 + x, -x, -x.exp()):
        assert torch.equal(copula.pmi(stretched, y), value)


def gaussian(generator: np.random.Generator, rho: float, n: int) -> np.ndarray:
    z = generator.standard_normal((2, n))
    return np.stack([z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]])


@both_marginals
@pytest.mark.parametrize("n", [10, 100])
def test_independent_variables_average_zero(marginals, n):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, 300, generator=generator)
    mi = GaussianCopula(marginals).mi(x, y)
    assert abs(mi.mean()) < 5 * mi.std() / math.sqrt(300 * 300)
    lowest = (digamma((n - 2) / 2) - digamma((n - 1) / 2)) / 2
    assert abs(mi.min() - lowest) < 1e-3 / n


@both_marginals
@pytest.mark.parametrize("rho", [-0.9, 0.3, 0.6, 0.9])
def test_gaussian_truths(marginals, rho):
    estimates = []
    for seed in range(20):
        x, y = torch.tensor(gaussian(np.random.default_rng(seed), rho, 500))
        copula = GaussianCopula(marginals)
        estimates.append(copula.mi(x[:, None], y[:, None]).item())
    # the standard deviation of r is (1 - rho^2) / sqrt(N), that of I rho / sqrt(N)
    spread = abs(rho) / math.sqrt(500 * 20)
    allowed = 3 * spread + 0.02 * rho**2  # scores of few samples have thin tails
    assert abs(np.mean(estimates) + math.log(1 - rho**2) / 2) < allowed


def test_single_samples_follow_the_true_pmi():
    rho = 0.8
    pair = gaussian(np.random.default_rng(0), rho, 1000)
    together = multivariate_normal([0, 0], [[1, rho], [rho, 1]])
    truth = together.logpdf(pair.T) - norm.logpdf(pair).sum(0)
    x, y = torch.tensor(pair)[:, :, None]
    pmi = GaussianCopula().pmi(x, y).flatten().numpy()
    assert np.corrcoef(pmi, truth)[0, 1] > 0.97


def test_joint_truth_and_null():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2000, 10, generator=generator)
    y = torch.cat([x.mean(1, keepdim=True) + noise[:, :1], noise[:, 1:]], dim=1)
    found = GaussianCopula().joint(x, y).mean(0)
    truth = math.log(1 + 0.1) / 2  # the variance of x's mean is 1/10
    assert abs(found[0] - truth) < 3 * math.sqrt(0.1 / 2000)
    deviation = math.sqrt(10 / (2 * 2000 * 1990))
    assert abs(found[1:].mean()) < 3 * deviation / 3
    redundant = torch.cat([x, x[:, :3], torch.ones(2000, 1), -2 * x[:, 5:]], dim=1)
    close(
        GaussianCopula("standard").joint(redundant, y).mean(0),
        GaussianCopula("standard").joint(x, y).mean(0),
    )


def test_joint_refuses_to_predict_anything_from_everything():
    x = torch.randn(20, 19)
    with pytest.raises(ValueError, match="19 components that vary and 20 samples"):
        GaussianCopula().joint(x, x)
    with pytest.raises(ValueError, match="give at least 21 samples"):
        GaussianCopula("standard").joint(x[:-1], x[:-1], query=(x[-1:], x[-1:]))
    x[:, 0] = 1
    assert GaussianCopula().joint(x, x).isfinite().all()


@both_marginals
def test_a_copy_shows_the_most_that_so_many_samples_can(marginals):
    x = torch.randn(50, 1)
    bias = (digamma(49 / 2) - digamma(48 / 2)) / 2
    copula = GaussianCopula(marginals)
    for copied in (x, -2 * x):
        assert abs(copula.mi(x, copied).item() - math.log(50) + bias) < 1e-6
    assert copula.pmi(x, x, query=(x[:1], -x[:1])).isfinite().all()


def test_parabola_is_not_seen():
    x = torch.linspace(-1, 1, 1001)[:, None]
    assert abs(GaussianCopula().mi(x, x**2).item()) < 1e-3


def test_outliers_and_extremes_stay_finite():
    x = torch.randn(100, 2, dtype=torch.float64)
    x[0] *= 1e290
    x[:, 1] *= 1e-300
    copula = GaussianCopula("standard")
    for value in (copula.mi(x, x), copula.pmi(x, x), copula.joint(x, x)):
        assert value.isfinite().all()
    with pytest.raises(ValueError, match="overflow"):
        copula.mi(x * 1e15, x)


def test_bad_options():
    with pytest.raises(ValueError, match="'normal', 'standard', not 'raw'"):
        GaussianCopula("raw")
