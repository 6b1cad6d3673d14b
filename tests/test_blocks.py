"""The memory limit: how it is set, and what it makes of blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import captum_nif
from captum_nif import _blocks
from captum_nif._blocks import block_length, block_side, blocks


@given(st.integers(0, 50), st.integers(1, 60))
def test_blocks_are_consecutive_and_no_longer_than_asked(total, length):
    parts = [list(range(total))[block] for block in blocks(total, length)]
    assert [i for part in parts for i in part] == list(range(total))
    assert all(0 < len(part) <= length for part in parts)
    assert sum(len(part) < length for part in parts) <= 1


@given(
    st.integers(1, 1 << 40),
    st.integers(0, 1 << 20),
    st.none() | st.integers(0, 1 << 20),
    st.booleans(),
)
def test_blocks_take_no_more_than_the_limit_unless_one_item_does(
    limit, each, most, in_cache
):
    before = captum_nif.set_memory_limit(limit)
    try:
        length = block_length(each, most, in_cache=in_cache)
        side = block_side(each, most, in_cache=in_cache)
    finally:
        assert captum_nif.set_memory_limit(before) == limit
    assert length >= 1
    assert side >= 1
    if most is not None:
        assert length <= max(1, most)
        assert side <= max(1, most)
    assert length == 1 or length * each <= limit
    assert side == 1 or side**2 * each <= limit
    if most is None and not in_cache and each:  # nor less
        assert (length + 1) * each > limit


def test_results_and_their_memory_do_not_depend_on_the_limit(monkeypatch):
    x = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    ksg = captum_nif.MixedKSG()
    wanted = ksg.mi(x, x), ksg.pmi(x, x, (x[:5], x[:5]))
    steps: list[int] = []
    monkeypatch.setattr(_blocks, "_limit", 1)
    assert torch.equal(ksg.mi(x, x, progress=steps.append), wanted[0])
    assert torch.equal(ksg.pmi(x, x, (x[:5], x[:5])), wanted[1])
    assert steps == [50] * 81  # a pair at a time


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (0, ValueError, "at least 1 byte, not 0"),
        (1.5, TypeError, "must be an int, in bytes, but is 1.5"),
        (True, TypeError, "must be an int"),
        ("1 GB", TypeError, "must be an int"),
    ],
)
def test_bad_limits(limit, error, message):
    with pytest.raises(error, match=message):
        captum_nif.set_memory_limit(limit)
