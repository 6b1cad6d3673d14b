"""Every method is called alike, and on linear models gives what is known."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.data.models import chain, mlp
from benchmarks.faithfulness.methods import METHODS, chance, gradient_shap, nif
from captum_nif import NIFAttribution

BY_BASELINE = {
    "IG, zero": (0, 1e-5),
    "InputXGradient": (0, 1e-6),
    "IG, mean": (1, 1e-5),
    "KernelShap": (1, 1e-3),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_explain_batches_and_leave_everything_as_it_was(name, rng_untouched):
    model, inputs = mlp(6, 3).eval(), torch.randn(4, 1, 2, 3)
    background, targets = torch.randn(60, 1, 2, 3), torch.tensor([0, 1, 2, 1])
    before = copy.deepcopy((model.state_dict(), inputs, background))
    with rng_untouched():
        found = METHODS[name](model, background, 7)(inputs, targets)
        again = METHODS[name](model, background, 7)(inputs, targets)
    assert found.shape == inputs.shape
    assert found.dtype == inputs.dtype
    assert not found.requires_grad
    assert found.abs().sum() > 0
    assert torch.equal(found, again)
    torch.testing.assert_close(
        (model.state_dict(), inputs, background), before, rtol=0, atol=0
    )
    assert not inputs.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", BY_BASELINE)
def test_a_linear_model_is_taken_apart_exactly(name):
    model = nn.Linear(5, 3)
    inputs, background = torch.randn(4, 5), torch.randn(30, 5) + 1
    targets = torch.tensor([2, 0, 1, 1])
    found = METHODS[name](model, background, 0)(inputs, targets)
    uses_mean, tolerance = BY_BASELINE[name]
    away = inputs - uses_mean * background.mean(dim=0)
    expected = (model.weight[targets] * away).detach()
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_expected_gradients_average_over_the_background():
    model = nn.Linear(3, 2)
    inputs, background = torch.randn(2, 3), torch.randn(30, 3) + 1
    found = gradient_shap(20_000)(model, background)(inputs, torch.tensor([1, 1]))
    expected = (model.weight[1] * (inputs - background.mean(dim=0))).detach()
    # 20,000 draws: a standard error below 1 / 141 for unit weights and deviations
    torch.testing.assert_close(found, expected, atol=0.04, rtol=0)


def test_nif_is_the_class_with_the_given_options():
    model = chain(fc1=nn.Linear(4, 5), relu=nn.ReLU(), fc2=nn.Linear(5, 2)).eval()
    inputs, background = torch.randn(3, 4), torch.randn(80, 4)
    targets = torch.tensor([0, 1, 1])
    for options in ({}, {"preset": "paper"}, {"normalize": "node"}):
        fitted = NIFAttribution(model, **options).fit(background)
        found = nif(**options)(model, background)(inputs, targets)
        assert torch.equal(found, fitted.attribute(inputs, target=targets))
    assert nif().described == "NIFAttribution(model).fit(background)"


def test_chance_depends_on_the_seed_alone():
    inputs, targets = torch.zeros(500, 4), torch.zeros(500).long()
    first, other = (chance()(mlp(4, 2), inputs, s)(inputs, targets) for s in (0, 1))
    correlation = torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))
    assert abs(correlation[0, 1]) < 0.12  # standard deviation 0.022
