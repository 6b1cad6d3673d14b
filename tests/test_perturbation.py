"""Deletion and insertion against loops over samples, donors, steps and features."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.data.models import cnn, mlp
from benchmarks.faithfulness.perturbation import draw_others, perturbation_curves, ranks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_curves(model, inputs, targets, attributions, donors, steps, draws, seed):
    drawing = generator(seed)
    drawn = draw_others(inputs, donors, draws, drawing)
    features = inputs[0].numel()
    n_steps = min(steps, features)
    deletion, insertion = [], []
    for i, (x, c, a) in enumerate(zip(inputs, targets, attributions, strict=True)):
        order = sorted(range(features), key=lambda j: -a.flatten()[j].item())
        deleted, inserted = [], []
        for step in range(n_steps + 1):
            top = order[: round(features * step / n_steps)]
            without, only = [], []
            for donor in drawn[i]:
                lost, kept = x.flatten().clone(), donor.flatten().clone()
                for j in top:
                    lost[j], kept[j] = donor.flatten()[j], x.flatten()[j]
                for made, into in ((lost, without), (kept, only)):
                    logits = model(made.reshape(1, *x.shape))[0].double()
                    into.append((logits.exp() / logits.exp().sum())[c].item())
            deleted.append(sum(without) / draws)
            inserted.append(sum(only) / draws)
        deletion.append(deleted)
        insertion.append(inserted)
    return torch.tensor(deletion).double(), torch.tensor(insertion).double()


@pytest.mark.parametrize(
    ("model", "shape", "steps"),
    [(mlp(5, 3, seed=1), (5,), 16), (cnn((2, 4, 4), 3, (3,), 6), (2, 4, 4), 6)],
    ids=["table", "images"],
)
@torch.no_grad()
def test_curves_are_those_of_plain_loops(model, shape, steps):
    inputs, donors = torch.randn(4, *shape), torch.randn(7, *shape)
    attributions, targets = torch.randn(4, *shape), torch.tensor([0, 2, 1, 1])
    arguments = (model, inputs, targets, attributions, donors, steps, 3, 5)
    curves = perturbation_curves(*arguments)
    deletion, insertion = slow_curves(*arguments)
    torch.testing.assert_close(curves.deletion, deletion, atol=1e-6, rtol=0)
    torch.testing.assert_close(curves.insertion, insertion, atol=1e-6, rtol=0)
    shares = curves.shares.tolist()
    for curve, area in (
        (curves.deletion, curves.deletion_area),
        (curves.insertion, curves.insertion_area),
    ):
        for values, found in zip(curve.tolist(), area.tolist(), strict=True):
            steps_of = itertools.pairwise(zip(shares, values, strict=True))
            plain = sum((y - x) * (p + q) / 2 for (x, p), (y, q) in steps_of)
            assert found == pytest.approx(plain)
    torch.testing.assert_close(curves.gap, curves.insertion_area - curves.deletion_area)


@torch.no_grad()
def test_over_all_orders_the_gap_is_zero():
    model, x = mlp(4, 3, seed=2), torch.randn(1, 4)
    donors, target = torch.randn(9, 4), torch.tensor([1])
    orders = torch.tensor(list(itertools.permutations(range(4)))).float()
    gaps = torch.stack(
        [
            perturbation_curves(model, x, target, order[None], donors, seed=3).gap
            for order in orders
        ]
    )
    assert gaps.abs().max() > 1e-3
    assert abs(gaps.mean().item()) < 1e-12


@torch.no_grad()
def test_the_true_order_of_an_additive_model_beats_every_other():
    logit = torch.tensor([2.0, 1.0, 0.5, -1.0])
    model = nn.Linear(4, 2, bias=False)
    model.weight.copy_(torch.stack([-logit, logit]) / 2)
    x, donors, target = torch.ones(1, 4), torch.zeros(8, 4), torch.tensor([1])
    gaps = {
        order: perturbation_curves(
            model, x, target, torch.tensor([order]).float(), donors
        ).gap.item()
        for order in itertools.permutations(range(4))
    }
    assert max(gaps, key=gaps.get) == (3, 2, 1, 0)
    assert min(gaps, key=gaps.get) == (0, 1, 2, 3)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12))
def test_ranks_sort(values):
    attributions = torch.tensor([values])
    places = ranks(attributions, generator())[0]
    assert sorted(places.tolist()) == list(range(len(values)))
    in_order = attributions[0][places.argsort()]
    assert torch.equal(in_order, in_order.sort(descending=True).values)


def test_equal_attributions_are_ranked_by_chance():
    places = ranks(torch.zeros(4000, 2, 3), generator()).double()
    assert places.shape == (4000, 2, 3)
    # places are uniform on 0..5: standard deviation 1.71, of the mean 0.027
    assert (places.mean(dim=0) - 2.5).abs().max() < 0.14


def test_donors_are_others_and_each_is_drawn_once():
    donors = torch.arange(6.0).view(6, 1)
    drawn = draw_others(donors, donors, 5, generator())
    for own, others in enumerate(drawn.flatten(1).tolist()):
        assert sorted(others) == [i for i in range(6) if i != own]
    with pytest.raises(ValueError, match=r"6 draws .* but one has 5"):
        draw_others(donors, donors, 6, generator())


@torch.no_grad()
def test_calls_repeat_and_leave_random_state_and_inputs_alone(rng_untouched):
    model, inputs = mlp(6, 2), torch.randn(5, 6)
    before, donors = inputs.clone(), torch.randn(20, 6)
    targets, attributions = torch.zeros(5, dtype=torch.int64), torch.randn(5, 6)
    with rng_untouched():
        first, again, other = (
            perturbation_curves(model, inputs, targets, attributions, donors, seed=s)
            for s in (0, 0, 1)
        )
    assert torch.equal(first.deletion, again.deletion)
    assert not torch.equal(first.deletion, other.deletion)
    assert torch.equal(inputs, before)
    # Methods are compared in pairs: nothing removed and all removed are the same.
    reverse = perturbation_curves(model, inputs, targets, -attributions, donors)
    assert torch.equal(first.deletion[:, [0, -1]], reverse.deletion[:, [0, -1]])
