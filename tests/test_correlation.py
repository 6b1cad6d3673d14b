"""Links on the scale of correlation, against one pair at a time."""

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

from captum_nif import EDGE, GaussianCopula, MixedKSG
from captum_nif.flow.linfoot import signed_linfoot

ESTIMATORS = [MixedKSG(), EDGE(), GaussianCopula(), GaussianCopula("standard")]


def samples(a, b, count=80):
    """Source and target nodes that depend on each other, and a dead one each."""
    x = torch.randn(count, a)
    y = x @ torch.randn(a, b) + 0.3 * torch.randn(count, b)
    x[:, -1], y[:, 0] = 2.0, -1.0
    return x, y.relu_()


def one_pair(estimator, x, y):
    """Linfoot's correlation of two lists of numbers, with the sign of Pearson's."""
    information = float(estimator.mi(x[:, None], y[:, None]))
    size = math.sqrt(1 - math.exp(-2 * max(information, 0.0)))
    covariance = np.cov(x.double().numpy(), y.double().numpy())[0, 1]
    return size if covariance > 0 else -size if covariance < 0 else 0.0


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_every_pair_as_on_its_own(estimator):
    x, y = samples(4, 3)
    found = signed_linfoot(estimator, x, y)
    wanted = [[one_pair(estimator, u, v) for v in y.T] for u in x.T]
    assert found.dtype == torch.float64
    torch.testing.assert_close(  # the copula rounds values to whole numbers, of 23 bits
        found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-7, atol=1e-7
    )
    assert (found[-1] == 0).all(), "a constant shares nothing"
    assert (found.abs() > 0.3).any()
    assert found.min() < 0 < found.max()


def test_closed_form_of_gaussian_values():
    # I = -log(1 - r^2) / 2 less its bias, so that 1 - w^2 = (1 - r^2) exp(2 bias)
    x, y = torch.randn(500, 5).double(), torch.randn(500, 4).double()
    y[:, :3] += x[:, :3]
    r = np.corrcoef(x.T, y.T)[:5, 5:]
    bias = (digamma(499 / 2) - digamma(498 / 2)) / 2
    wanted = np.sign(r) * np.sqrt(
        np.maximum(1 - (1 - r**2) * np.exp(2 * bias), 0),
    )
    found = signed_linfoot(GaussianCopula("standard"), x, y)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("density", [0.0, 0.2, 0.8, 1.0])
def test_fields_choose_among_all_pairs(estimator, density):
    places, others, channels, kinds = 4, 3, 2, 2
    x, y = samples(channels * places, kinds * others, count=40)
    generator = torch.Generator().manual_seed(int(10 * density))
    field = torch.rand(places, others, generator=generator) < density
    found = signed_linfoot(estimator, x, y, field)
    everything = signed_linfoot(estimator, x, y)
    assert found.shape == everything.shape
    found = found.to_tensor()
    assert found.is_sparse == (field.double().mean() <= 0.5)
    assert found.shape == everything.shape
    wanted = torch.zeros_like(everything)
    for i in range(len(wanted)):
        for j in range(wanted.shape[1]):
            if field[i % places, j % others]:  # by channel, then by place
                wanted[i, j] = everything[i, j]
    torch.testing.assert_close(found.to_dense(), wanted, rtol=1e-12, atol=1e-12)
    if found.is_sparse:
        assert found.is_coalesced()
        assert torch.equal(found.indices(), found.clone().coalesce().indices())
        flat = found.indices()[0] * wanted.shape[1] + found.indices()[1]
        assert (flat.diff() > 0).all()


def test_places_that_nothing_reaches_have_no_link():
    x, y = samples(4, 4)
    field = torch.tensor([[True, False], [False, False]])
    found = signed_linfoot(GaussianCopula(), x, y, field).to_tensor()
    rows, columns = found.indices()
    assert set(rows.tolist()) == {0, 2}
    assert set(columns.tolist()) == {0, 2}


def test_global_random_states_stay(rng_untouched):
    x, y = samples(3, 2)
    with rng_untouched():
        first = signed_linfoot(MixedKSG(), x, y)
        assert torch.equal(first, signed_linfoot(MixedKSG(), x, y))
