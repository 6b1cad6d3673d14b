"""Every form of target that Captum takes, against Captum's own selection."""

import re

import numpy as np
import pytest
import torch
from captum._utils.common import _select_targets
from hypothesis import given
from hypothesis import strategies as st

from captum_nif import Layer
from captum_nif.flow.targets import target_nodes

MAP = Layer("map", 12, "output", shape=(2, 3, 2))
FLAT = Layer("fc", 5, "output")
CONV = Layer("conv", 8, "hidden")


def indices(layer: Layer) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(0, size - 1) for size in layer.shape))


def chosen_by_captum(layer: Layer, target: object, n: int) -> list[int]:
    """Selects from an output whose elements are their own row-major indices."""
    output = torch.arange(layer.size).expand(n, -1).reshape(n, *layer.shape)
    picked = _select_targets(output, target)
    return picked.reshape(-1).tolist()


@given(st.data(), st.integers(2, 4))
def test_forms_pick_what_captum_picks(data, n):
    flat = data.draw(st.lists(indices(FLAT), min_size=n, max_size=n))
    ints = [index[0] for index in flat]
    for target in (ints[0], ints, torch.tensor(ints), torch.tensor(ints[0])):
        found = target_nodes(target, FLAT, n)
        assert found.tolist() == chosen_by_captum(FLAT, target, n)
        assert found.dtype == torch.int64
    tuples = data.draw(st.lists(indices(MAP), min_size=n, max_size=n))
    for target in (tuples[0], tuples):
        found = target_nodes(target, MAP, n).tolist()
        assert found == chosen_by_captum(MAP, target, n)


@given(indices(MAP))
def test_negative_indices_count_from_the_end(index):
    negative = tuple(i - size for i, size in zip(index, MAP.shape, strict=True))
    for target in (negative, [negative] * 2):
        assert torch.equal(target_nodes(target, MAP, 2), target_nodes(index, MAP, 2))


def test_a_single_node_needs_no_target():
    assert target_nodes(None, Layer("y", 1, "output"), 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("one", [np.int64(3), torch.tensor([3]), torch.tensor(3)])
def test_integers_of_other_types(one):
    assert target_nodes(one, FLAT, 2).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("error", "target", "layer", "words"),
    [
        (IndexError, 5, FLAT, "`target` 5 is out of range for layer 'fc'"),
        (IndexError, -6, FLAT, "out of range"),
        (IndexError, [0, 9], FLAT, "`target` 9"),
        (IndexError, (1, 3, 0), MAP, "(2, 3, 2) (12 in all)"),
        (ValueError, None, FLAT, "'fc' has 5 nodes: give `target`"),
        (ValueError, [0, 1, 2], FLAT, "list of 3 entries for 2 samples"),
        (ValueError, torch.zeros(3).long(), FLAT, "shape (3,) for 2 samples"),
        (ValueError, torch.zeros(2, 1).long(), FLAT, "expected shape (2,)"),
        (ValueError, 1, MAP, "has 1 index, but the nodes of layer 'map' have shape"),
        (ValueError, (1, 0), FLAT, "has 2 indices"),
        (ValueError, (1, 0, 0), CONV, "give 1. A channel is one node, its spatial"),
        (ValueError, [0], FLAT, "list of 1 entry for 2 samples"),
        (TypeError, 1.0, FLAT, "`target` is 1.0; expected an int"),
        (TypeError, True, FLAT, "`target` is True"),
        (TypeError, "1", FLAT, "`target` is '1'"),
        (TypeError, [0, "a"], FLAT, "`target` is 'a'"),
        (TypeError, (0, 1.5, 0), MAP, "`target` is (0, 1.5, 0)"),
        (TypeError, torch.tensor([0.0, 1.0]), FLAT, "torch.float32 tensor"),
        (TypeError, torch.tensor([True, False]), FLAT, "torch.bool tensor"),
        (TypeError, [torch.tensor(1.0)] * 2, FLAT, "expected an int"),
    ],
    ids=str,
)
def test_refused(error, target, layer, words):
    with pytest.raises(error, match=re.escape(words)):
        target_nodes(target, layer, 2)
