"""Infidelity, sensitivity, random weights and known features, against plain loops."""

import numpy as np
import pytest
import scipy.stats
import torch
from captum.metrics._core.sensitivity import default_perturb_func
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.data.models import mlp, residual_cnn, seeded
from benchmarks.faithfulness.sanity import (
    infidelity,
    learned_modules,
    randomized,
    rank_correlation,
    relevant_auc,
    relevant_mass,
    replace_some,
    sensitivity,
)


@torch.no_grad()
def slow_infidelity(model, inputs, targets, maps, donors, draws, seed):
    perturb = replace_some(donors, torch.Generator().manual_seed(seed))
    sets, changed = perturb(inputs.repeat_interleave(draws, dim=0))
    unexplained = everything = 0.0
    for i, (x, c, a) in enumerate(zip(inputs, targets, maps, strict=True)):
        drops, sums = [], []
        for k in range(i * draws, (i + 1) * draws):
            drops.append((model(x[None])[0, c] - model(changed[k][None])[0, c]).item())
            sums.append((sets[k] * a).sum().item())
        beta = np.dot(sums, drops) / np.dot(sums, sums)
        unexplained += np.mean((beta * np.array(sums) - drops) ** 2)
        everything += np.mean(np.square(drops))
    return unexplained / everything


def test_infidelity_is_that_of_plain_loops():
    model = mlp(5, 3, seed=1)
    inputs, donors, maps = torch.randn(4, 5), torch.randn(9, 5), torch.randn(4, 5)
    targets = torch.tensor([0, 2, 1, 1])
    arguments = (model, inputs, targets, maps, donors, 12, 3)
    assert infidelity(*arguments) == pytest.approx(
        slow_infidelity(*arguments), rel=1e-4
    )
    # neither unit nor sign of a map matters
    assert infidelity(model, inputs, targets, -7 * maps, donors, 12, 3) == (
        pytest.approx(infidelity(*arguments), rel=1e-4)
    )


def test_contributions_of_a_linear_model_leave_nothing_unexplained():
    model = nn.Linear(6, 2)
    inputs, donor, targets = torch.randn(5, 6), torch.randn(1, 6), torch.ones(5).long()
    contributions = (model.weight[1] * (inputs - donor)).detach()
    assert infidelity(model, inputs, targets, contributions, donor) < 1e-6
    zeros = torch.zeros_like(inputs)
    assert infidelity(model, inputs, targets, zeros, donor) == 1


def test_sets_have_all_sizes_and_only_they_are_replaced():
    inputs, donors = torch.ones(3000, 1, 2, 5), torch.zeros(4, 1, 2, 5)
    sets, changed = replace_some(donors, torch.Generator().manual_seed(0))(inputs)
    assert torch.equal(changed, 1 - sets)
    sizes = sets.flatten(1).sum(dim=1).long().bincount(minlength=11)
    # uniform on 0..10: 273 +- 16 of each
    assert (sizes - 3000 / 11).abs().max() < 80


def test_sensitivity_is_the_largest_relative_change():
    def explain(inputs, targets):
        return inputs**3 * (targets + 1.0).unsqueeze(1)

    inputs, targets = torch.randn(3, 4), torch.tensor([0, 1, 2])
    found = sensitivity(explain, inputs, targets, draws=6, radius=0.1, seed=4)
    with seeded(4):
        (moved,) = default_perturb_func(inputs.repeat_interleave(6, dim=0), 0.1)
    worst = []
    for i in range(3):
        own = explain(inputs[i : i + 1], targets[i : i + 1])
        worst.append(
            max(
                ((explain(x[None], targets[i : i + 1]) - own).norm() / own.norm())
                for x in moved[i * 6 : i * 6 + 6]
            )
        )
    assert found == pytest.approx(float(np.mean(worst)), rel=1e-5)
    assert sensitivity(lambda x, t: torch.ones_like(x), inputs, targets) == 0


def test_one_sample_has_as_many_targets_as_near_copies():
    lengths = []

    def explain(inputs, targets):
        lengths.append((len(inputs), len(targets)))
        return inputs

    sensitivity(explain, torch.randn(1, 4), torch.tensor([2]), draws=3)
    assert lengths == [(1, 1), (3, 3)]


def test_modules_start_again_from_the_top(rng_untouched):
    model = residual_cnn((1, 8, 8), 3).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 1, 8, 8))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = learned_modules(model)
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    with rng_untouched():
        every, top, again = (randomized(model, n, seed=5) for n in (None, 3, 3))
    assert not any(copy.training for copy in (every, top))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for name in names:
        own = dict(model.get_submodule(name).named_parameters(recurse=False))
        kept = {
            key: torch.equal(value, top.get_submodule(name).get_parameter(key))
            for key, value in own.items()
        }
        is_norm = isinstance(model.get_submodule(name), nn.BatchNorm2d)
        # norms are untrained here, and start from ones
        assert all(kept.values()) is (name not in names[-3:] or is_norm)
        assert is_norm or not torch.equal(
            own["weight"], every.get_submodule(name).weight
        )
        if is_norm:
            assert every.get_submodule(name).running_mean.abs().max() == 0
    assert torch.equal(top.fc.weight, again.fc.weight)


def test_weights_that_cannot_be_drawn_anew_are_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(2))

    with pytest.raises(TypeError, match=r"'1', a Scale, has no `reset_parameters`"):
        randomized(nn.Sequential(nn.Linear(2, 2), Scale()))


def test_rank_correlation_is_spearmans():
    maps = torch.randn(6, 2, 5).round(decimals=0)
    others = torch.randn(6, 2, 5)
    plain = [
        scipy.stats.spearmanr(a.flatten(), b.flatten()).statistic
        for a, b in zip(maps, others, strict=True)
    ]
    found = rank_correlation(maps, others)
    np.testing.assert_allclose(found, plain, atol=1e-12)
    constant = torch.zeros(1, 4), torch.randn(1, 4)
    assert rank_correlation(*constant).item() == 0


levels = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0])


@given(st.lists(st.tuples(levels, st.booleans()), min_size=2, max_size=9))
def test_relevant_features_are_weighed_as_by_loops(pairs):
    pairs = [*pairs, (1.0, True), (0.5, False)]
    values, known = zip(*pairs, strict=True)
    attributions, relevant = torch.tensor([values]), torch.tensor([known])
    inside = [abs(a) for a, r in pairs if r]
    outside = [abs(a) for a, r in pairs if not r]
    mass = sum(inside) / (sum(inside) + sum(outside))
    won = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert relevant_mass(attributions, relevant).item() == pytest.approx(mass)
    assert relevant_auc(attributions, relevant).item() == pytest.approx(np.mean(won))


def test_a_map_of_zeros_has_no_mass_anywhere():
    zeros, relevant = torch.zeros(1, 4), torch.tensor([[True, False, False, True]])
    assert relevant_mass(zeros, relevant).item() == 0
    assert relevant_auc(zeros, relevant).item() == 0.5
