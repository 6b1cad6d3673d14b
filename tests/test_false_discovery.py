import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_nif import MixedKSG
from captum_nif.flow.permutation_test import link_pvalues
from captum_nif.graph.false_discovery import check_fdr, false_discovery
from tests.tied_variables import variables


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(0, 1), max_size=5), min_size=1, max_size=4))
def test_adjusted_pvalues_are_those_of_benjamini_and_hochberg(parts):
    together = [p for part in parts for p in part]
    if not together:
        return
    tensors = [torch.tensor(part, dtype=torch.float64) for part in parts]
    found = false_discovery(tensors)
    assert [len(part) for part in found] == [len(part) for part in parts]
    # The textbook: the least of m p_j / j over all p_j that are at least as large.
    ordered = sorted(together)
    wanted = [
        min(
            min(1.0, q * len(ordered) / (rank + 1))
            for rank, q in enumerate(ordered)
            if q >= p
        )
        for p in together
    ]
    assert torch.cat(found).tolist() == pytest.approx(wanted)


def test_shapes_and_precision():
    found = false_discovery([torch.tensor([[0.5, 0.01]]), torch.ones(2, 1).bfloat16()])
    assert [tuple(part.shape) for part in found] == [(1, 2), (2, 1)]
    assert {part.dtype for part in found} == {torch.float64}


def test_few_discoveries_are_false_where_nodes_depend_on_each_other():
    rates = []
    for seed in range(30):
        shared = variables("untied", 150, 2, 3 * seed)
        x = (variables("untied", 150, 16, 3 * seed + 1) + shared[:, :1]).relu()
        y = variables("untied", 150, 8, 3 * seed + 2) + shared[:, 1:]
        y[:, 4:] += 2 * shared[:, :1]  # of 128 links 64 exist
        (adjusted,) = false_discovery([link_pvalues(MixedKSG(k=5), x, y, seed=seed)])
        found = adjusted <= 0.1
        rates.append(float(found[:, :4].sum() / max(1, int(found.sum()))))
        assert found[:, 4:].any()
    # The rate holds on average; five standard deviations of that.
    assert np.mean(rates) < 0.1 + 5 * np.std(rates) / math.sqrt(30)


def test_few_graphs_without_links_show_one():
    # All that is found is false, so the rate is the share of graphs where something is.
    # Where nodes are mostly 0, mutual information leaps when their samples coincide.
    shown = 0
    for seed in range(20):
        x, y = (variables("90 % zeros", 100, 16, 2 * seed + n) for n in range(2))
        (adjusted,) = false_discovery([link_pvalues(MixedKSG(), x, y, seed=seed)])
        shown += bool((adjusted <= 0.1).any())
    # Even were the rate twice what it should be, more would come once in a million.
    assert scipy.stats.binom(20, 0.2).sf(shown - 1) > 1e-6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusted_pvalues_are_scipys(pvalues):
    (adjusted,) = false_discovery([torch.tensor(pvalues, dtype=torch.float64)])
    wanted = scipy.stats.false_discovery_control(np.array(pvalues))
    assert adjusted.numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("fdr", [0.0, 1.0, -0.1, math.nan])
def test_rates_lie_between_0_and_1(fdr):
    with pytest.raises(ValueError, match=r"fdr.*must lie between 0 and 1"):
        check_fdr(fdr)


def test_rates_are_numbers():
    with pytest.raises(TypeError, match=r"fdr.*got str"):
        check_fdr("0.05")
