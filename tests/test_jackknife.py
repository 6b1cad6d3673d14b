import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_nif import MixedKSG
from captum_nif.flow.jackknife import jackknife, leave_groups_out
from tests.tied_variables import variables


@given(st.integers(2, 40), st.data())
def test_every_sample_is_left_out_once(samples, data):
    groups = data.draw(st.integers(2, samples))
    kept = [set(rows.tolist()) for rows in leave_groups_out(samples, groups)]
    out = [set(range(samples)) - rows for rows in kept]
    assert len(kept) == groups
    assert sorted(n for group in out for n in group) == list(range(samples))
    assert max(map(len, out)) - min(map(len, out)) <= 1


def test_groups_are_made_by_chance_from_a_seed():
    def left_out(seed):
        return [rows.tolist() for rows in leave_groups_out(50, 5, seed)]

    assert left_out(0) == left_out(0) != left_out(1)
    assert left_out(0)[0] != list(range(10, 50))


@pytest.mark.parametrize("groups", [0, 1, 11])
def test_groups_that_cannot_be_made_are_refused(groups):
    with pytest.raises(ValueError, match=f"from 2 to .* 10, got {groups}"):
        list(leave_groups_out(10, groups))


def test_the_jackknife_of_means_is_their_standard_error():
    x = variables("untied", 60, 3)
    singly = torch.stack([x[rows].mean(0) for rows in leave_groups_out(60, 60)])
    assert torch.allclose(jackknife(singly), x.std(0) / math.sqrt(60))
    grouped, means = [], []
    for rows in leave_groups_out(60, 6):
        others = torch.ones(60, dtype=torch.bool)
        others[rows] = False
        grouped.append(x[rows].mean(0))
        means.append(x[others].mean(0))
    # Groups of 10 are six samples of a mean of 10.
    wanted = torch.stack(means).std(0) / math.sqrt(6)
    assert torch.allclose(jackknife(torch.stack(grouped)), wanted)


def test_the_jackknife_equals_its_formula():
    values = variables("untied", 7, 4).view(7, 2, 2)
    mean = sum(values) / 7
    wanted = (6 / 7 * sum((value - mean) ** 2 for value in values)).sqrt()
    assert torch.allclose(jackknife(values), wanted)
    with pytest.raises(ValueError, match="at least two values, got 1"):
        jackknife(values[:1])


def test_standard_errors_are_the_scatter_over_independent_backgrounds():
    ksg, samples, query = MixedKSG(k=5), 200, variables("untied", 6, 10, 999)

    def estimates(x):
        pairs = x[:, :5], x[:, 5:]
        return torch.stack(
            [ksg.mi(*pairs), *ksg.pmi(*pairs, (query[:, :5], query[:, 5:]))]
        )

    def background(seed):
        x = variables("untied", samples, 10, seed)
        x[:, 5:] += x[:, :5]
        return x

    truth = torch.stack([estimates(background(seed)) for seed in range(60)]).var(0)
    errors = []
    for seed in range(60, 72):
        x = background(seed)
        parts = [estimates(x[rows]) for rows in leave_groups_out(samples)]
        errors.append(jackknife(torch.stack(parts)))
    found = torch.stack(errors).square().mean(0)
    for part in (slice(0, 1), slice(1, None)):  # of the population, and of samples
        ratio = (found[part].mean() / truth[part].mean()).sqrt()
        assert 0.7 < ratio < 1.5
