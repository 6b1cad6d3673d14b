"""Feature groups: means and members, against loops."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_nif import Layer
from captum_nif.flow.feature_groups import FeatureGroups, feature_groups

INPUT = Layer("input", 6, "input", shape=(1, 2, 3))


@given(st.lists(st.integers(-2, 3), min_size=1, max_size=8), st.integers(1, 3))
def test_means_and_members(numbers, n):
    layer = Layer("input", len(numbers), "input")
    groups = feature_groups(torch.tensor(numbers), [layer])["input"]
    names = sorted(set(numbers))
    values = torch.arange(n * len(numbers)).view(n, -1).sin()
    expected = [
        [
            sum(v for v, g in zip(row, numbers, strict=True) if g == name)
            / numbers.count(name)
            for name in names
        ]
        for row in values.double().tolist()
    ]
    means = groups.means(values)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, torch.tensor(expected))
    spread = groups.spread(means)
    assert spread.shape == values.shape
    for element, number in enumerate(numbers):
        assert torch.equal(spread[:, element], means[:, names.index(number)])


def test_groups_of_one_keep_every_bit():
    for dtype in (torch.float32, torch.float64):
        values = torch.randn(5, 4, dtype=dtype)
        groups = FeatureGroups(torch.arange(4), 4)
        assert torch.equal(groups.means(values), values)


@given(st.permutations(range(6)))
def test_a_mean_does_not_depend_on_the_order_of_members(order):
    values = torch.tensor([[0.1, 0.7, 1e-3, 3.3, 1e3, -0.2]])
    together = FeatureGroups(torch.zeros(6, dtype=torch.int64), 1)
    permuted = values[:, list(order)]
    assert torch.equal(together.means(permuted), together.means(values))


def test_half_precision_is_widened():
    values = torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16)
    mean = FeatureGroups(torch.tensor([0, 0]), 1).means(values)
    assert (mean.dtype, mean.item()) == (torch.float32, 1.00390625)


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([0, 1, 2]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([[[0, 1, 2], [0, 1, 2]]]),
        torch.tensor([[[[0, 1, 2], [0, 1, 2]]]], dtype=torch.uint8),
    ],
)
def test_masks_broadcast_to_a_sample(mask):
    groups = feature_groups(mask, [INPUT])["input"]
    assert groups.members.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("error", "mask", "words"),
    [
        (TypeError, torch.zeros(3), "integer tensors, got torch.float32 for 'input'"),
        (TypeError, 3, "integer tensors, got int"),
        (TypeError, [torch.zeros(3).int()], "is a list: use a tuple"),
        (ValueError, torch.zeros(4).int(), "(4,) does not broadcast to (1, 1, 2, 3)"),
        (ValueError, torch.zeros(2, 1, 2, 3).int(), "does not broadcast"),
        (ValueError, (torch.zeros(3).int(),) * 2, "2 masks for 1 input:"),
    ],
    ids=str,
)
def test_refused(error, mask, words):
    with pytest.raises(error, match=re.escape(words)):
        feature_groups(mask, [INPUT])


def test_a_group_lies_in_one_input():
    inputs = [Layer("input0", 2, "input"), Layer("input1", 2, "input")]
    masks = (torch.tensor([0, 1]), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"Group 1 .*'input0' and in 'input1'"):
        feature_groups(masks, inputs)
