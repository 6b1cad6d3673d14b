"""Ranks and sorted values, by the compiled kernel and by torch, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from captum_nif.estimators import ranking
from captum_nif.estimators.ranking import Ranked, ranked


def by_torch(x: Tensor) -> Ranked:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_rank_by_kernel", ranking._rank_by_torch)
        return ranked(x)


def check(found: Ranked, x: Tensor) -> None:
    values = x.numpy()
    assert np.array_equal(found.ordered.numpy(), np.sort(values, axis=0).T)
    wanted = np.array([2 * rankdata(column) for column in values.T]).T
    assert np.array_equal(found.ranks.numpy(), wanted.reshape(values.shape))
    distinct = [len(np.unique(column)) for column in values.T]
    assert found.untied.tolist() == [count == len(x) for count in distinct]


@given(
    n=st.integers(1, 40),
    size=st.sampled_from([1, 31, 32, 33, 70]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    levels=st.sampled_from([1, 2, 7, 10**6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ranks_are_twice_the_mean_ranks(n, size, dtype, levels, seed):
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-30, 30, size)
    x = generator.integers(-levels, levels + 1, (n, size)) * scale
    values = torch.tensor(x, dtype=dtype)
    check(ranked(values), values)
    check(by_torch(values), values)


def test_extreme_values_and_signed_zeros():
    info = torch.finfo(torch.float32)
    column = [0.0, -0.0, info.max, info.min, info.tiny, -info.tiny, 1e-45, -1e-45, 0.0]
    x = torch.tensor(column)[:, None]
    check(ranked(x), x)
    check(ranked(x.double()), x.double())


def test_views_are_ranked_as_their_copies():
    x = torch.randn(50, 90, generator=torch.Generator().manual_seed(0))
    for view in (x[::2, 5:80], x.t()):
        check(ranked(view), view)


def test_ranks_are_wider_where_there_are_many_samples():
    generator = torch.Generator().manual_seed(0)
    few, many = (torch.randn(n, 2, generator=generator) for n in (16_381, 16_382))
    assert ranked(few).ranks.dtype == torch.int16
    assert ranked(many).ranks.dtype == torch.int32
    check(ranked(few), few)
    check(ranked(many), many)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_is_ranked_to_nothing(shape):
    found = ranked(torch.zeros(shape))
    assert found.ranks.shape == shape
    assert found.ordered.shape == shape[::-1]


def test_samples_are_left_alone():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    ranked(x)
    assert torch.equal(x, before)
