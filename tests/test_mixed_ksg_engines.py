"""The fast engine against the plain one, bit for bit, where the oracle is too slow."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from captum_nif._compile import kernel
from captum_nif.estimators import MixedKSG, engine_cpu, marginals
from captum_nif.estimators.kernels import lanes
from captum_nif.estimators.kernels.scan import NOWHERE, nowhere
from captum_nif.estimators.parallel import in_threads


@contextmanager
def plain_engine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_cpu, "takes", lambda *points: False)
        yield


def variables(n: int, generator: np.random.Generator) -> Tensor:
    """One column of each kind that is laid out or walked in a way of its own."""
    gauss = generator.standard_normal((14, n))
    columns = [
        gauss[0],
        0.7 * gauss[0] + gauss[1],
        np.sort(gauss[2]),
        generator.standard_cauchy(n),
        np.maximum(gauss[3], 0),
        np.maximum(gauss[3] + gauss[4], 0),
        np.where(gauss[5] > 1.3, gauss[5], 0),
        np.where(gauss[6] > 2.3, gauss[6], 0),
        gauss[7].round(1),
        (gauss[7] + gauss[8]).round(1),
        generator.integers(0, 50, n) / 255,
        generator.integers(0, 2, n),
        np.full(n, 0.3),
        generator.choice(gauss[9][: n // 2 + 1], n),
    ]
    return torch.tensor(np.stack(columns, axis=1))


@settings(max_examples=40)
@given(
    n=st.one_of(st.integers(2, 40), st.integers(41, 120)),
    k=st.sampled_from([1, 2, 3, 5, 7]),
    formula=st.sampled_from(["corrected", "paper"]),
    scale=st.sampled_from(["normal", "standard", "raw"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_engines_agree_on_all_kinds_of_variables(
    n, k, formula, scale, dtype, seed
):
    x = variables(n, np.random.default_rng(seed)).to(dtype)
    ksg = MixedKSG(min(k, n - 1), formula, scale)
    rest, few = x[: max(n - 3, n // 2)], x[max(n - 3, n // 2) :]
    asked = ksg.with_k(min(k, len(rest))), (few, few)

    def everything() -> tuple[Tensor, ...]:
        other, query = asked
        return ksg.mi(x, x), ksg.pmi(x, x), other.pmi(rest, rest, query)

    quick = everything()
    with plain_engine():
        for one, other in zip(quick, everything(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("k", [10, 20, 31])
def test_engines_agree_for_many_neighbors(k):
    x = variables(200, np.random.default_rng(k))
    ksg = MixedKSG(k)
    quick = ksg.mi(x, x), ksg.pmi(x[5:], x[5:], query=(x[:5], x[:5]))
    with plain_engine():
        assert torch.equal(quick[0], ksg.mi(x, x))
        assert torch.equal(quick[1], ksg.pmi(x[5:], x[5:], query=(x[:5], x[:5])))


@pytest.mark.parametrize("capacity", engine_cpu.CAPACITIES)
def test_lists_keep_the_smallest_in_order(capacity):
    @kernel
    def listed(values, capacity, empty, lists):
        kept = lanes.load_lists(capacity, empty)
        for i in range(0, len(values), 4 * lanes.WIDTH):
            kept = lanes.insert_four(
                kept,
                lanes.load(values, i),
                lanes.load(values, i + lanes.WIDTH),
                lanes.load(values, i + 2 * lanes.WIDTH),
                lanes.load(values, i + 3 * lanes.WIDTH),
            )
        lanes.store(lists, 0, kept[0])
        lanes.store(lists, lanes.WIDTH, kept[-2])
        lanes.store(lists, 2 * lanes.WIDTH, kept[-1])

    generator = np.random.default_rng(capacity)
    for count in (4, 16, 100):
        for largest in (3, 1 << 19):  # with ties and almost without
            values = generator.integers(0, largest, (count, 16), dtype=np.int32)
            found = np.empty((3, 16), np.int32)
            empty = nowhere(capacity - 2, capacity)
            listed(values.reshape(-1), (0,) * capacity, empty, found.reshape(-1))
            far = np.full((capacity, 16), NOWHERE)
            kept = np.sort(np.concatenate([values, far]), axis=0)[: capacity - 1]
            kept = np.concatenate([np.full((1, 16), -1), kept])
            np.testing.assert_array_equal(found, kept[[0, -2, -1]])


def test_the_plain_engine_takes_what_the_fast_one_leaves():
    x = variables(150, np.random.default_rng(0))
    scores = x.argsort(0).argsort(0).double()  # untied, so any k can be compared
    assert torch.equal(MixedKSG(100).mi(scores, x), MixedKSG(100).mi(2 * scores, x))
    ranked = marginals.prepare_variables(x, "normal").leave_one_out()
    raw = marginals.prepare_variables(x, "raw").leave_one_out()
    assert engine_cpu.takes(ranked, ranked, 10)
    assert not engine_cpu.takes(ranked, ranked, 100)
    assert engine_cpu.takes(raw, raw, 100)
    assert not engine_cpu.takes(marginals.JointVariable(raw), raw, 10)


def test_engines_agree_where_ranks_outgrow_16_bits():
    n = 17_000
    generator = np.random.default_rng(0)
    x = torch.tensor(generator.standard_normal((n, 1)))
    y = (x + torch.tensor(generator.standard_normal((n, 1)))).clamp(min=0)
    ksg = MixedKSG(3)
    last, others = (x[-1:], y[-1:]), (x[:-1], y[:-1])
    as_sample = ksg.pmi(x, y)[-1:]
    assert torch.equal(as_sample, ksg.pmi(*others, last))
    with plain_engine():
        assert torch.equal(as_sample, ksg.pmi(*others, last))


def test_sums_over_many_samples_do_not_overflow():
    x = torch.arange(800_000.0)[:, None]
    mean = MixedKSG(3).pmi(x, x).mean().item()
    assert MixedKSG(3).mi(x, x).item() == pytest.approx(mean, abs=1e-9)
    assert mean > 12


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing(two_threads, monkeypatch):
    x = variables(60, np.random.default_rng(0))
    queries = x[:7], x[:7]
    monkeypatch.setattr(engine_cpu, "_SIDE", 3)
    monkeypatch.setattr(
        engine_cpu, "_RESULTS", 100
    )  # so that every kernel has many blocks

    def everything() -> tuple[Tensor, ...]:
        ksg = MixedKSG(5)
        return ksg.mi(x, x), ksg.pmi(x, x), ksg.pmi(x[7:], x[7:], queries)

    threaded = everything()
    torch.set_num_threads(1)
    for one, other in zip(threaded, everything(), strict=True):
        assert torch.equal(one, other)


def test_progress_adds_up():
    x = variables(50, np.random.default_rng(0))
    for marginal in ("normal", "raw"):
        ksg = MixedKSG(3, marginals=marginal)
        for call, total in (
            (lambda report, ksg=ksg: ksg.mi(x, x, progress=report), 50 * 14 * 14),
            (lambda report, ksg=ksg: ksg.pmi(x, x, progress=report), 50 * 14 * 14),
            (
                lambda report, ksg=ksg: ksg.pmi(x, x, (x[:4], x[:4]), progress=report),
                4 * 14 * 14,
            ),
            (lambda report, ksg=ksg: ksg.joint(x, x, progress=report), 50 * 14),
        ):
            steps: list[int] = []
            call(steps.append)
            assert sum(steps) == total


def test_an_interrupt_stops_the_work(two_threads, monkeypatch):
    monkeypatch.setattr(engine_cpu, "_SIDE", 1)
    x = variables(50, np.random.default_rng(0))
    steps: list[int] = []

    def interrupt(done: int) -> None:
        steps.append(done)
        raise KeyboardInterrupt

    before = threading.active_count()  # other libraries keep threads of their own
    with pytest.raises(KeyboardInterrupt):
        MixedKSG(3).mi(x, x, progress=interrupt)
    assert len(steps) == 1
    assert threading.active_count() == before


def test_threads_keep_order_and_pass_errors_on(two_threads):
    assert list(in_threads(lambda i: i * i, range(50))) == [i * i for i in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (i - 20), range(50)))


def test_works_where_no_cache_can_be_written():
    program = """
import numba.core.caching as caching

def refuse(locator):
    raise OSError("read-only")

for locator in caching.CacheImpl._locator_classes:
    locator.ensure_cache_path = refuse

import numpy as np
from captum_nif.estimators.kernels.grid import grid_of
from captum_nif.estimators.kernels.population import _put_in_order, axis_of
print(type(_put_in_order._cache).__name__)
print(axis_of(np.array([[2, 5, 5]], np.int16), grid_of(3)).cumulative)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "NullCache\n[[0 0 1 1 1 3 3 3]]\n"


def test_importing_the_package_compiles_nothing():
    program = "import sys, captum_nif; print('numba' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
