"""Tracing changes nothing: model, inputs, hooks, random state, other threads."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_models import (
    N,
    Net,
    ResNet,
    arrows,
    image_chain,
    links_of,
    mlp,
    no_hooks_of_ours,
)

from captum_nif.tracing.tracer import trace
from conftest import rng_state


def state_of(model):
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "grads": [
            p.grad if p.grad is None else p.grad.clone() for p in model.parameters()
        ],
        "requires": [p.requires_grad for p in model.parameters()],
        "keys": [sorted(vars(m)) for m in model.modules()],
        "hooks": [
            (dict(m._forward_hooks), dict(m._forward_pre_hooks))
            for m in model.modules()
        ],
    }


def same(a, b):
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_training_model_keeps_its_buffers_and_the_random_state(rng_untouched):
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 2)
    )
    model[0].weight.requires_grad_(False)
    model(torch.randn(N, 4)).sum().backward()
    x = torch.randn(N, 4, requires_grad=True)
    before, kept = state_of(model), x.detach().clone()
    with rng_untouched():
        trace(model, (x,))
    assert same(state_of(model), before)
    assert torch.equal(x, kept)
    assert x.requires_grad
    assert x.grad is None


def test_a_model_that_draws_moves_the_generators_on_as_any_call_does():
    model = Net(
        lambda m, x: (
            m.a(x) * random.random() + np.random.rand() + torch.rand(2)  # noqa: NPY002
        ),
        a=nn.Linear(4, 2),
    )
    x, after = torch.randn(N, 4), []
    for run in (model, lambda x: trace(model, (x,))):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        run(x)
        after.append(rng_state())
    assert after[0] == after[1]


def test_numbers_that_other_threads_draw_meanwhile_are_not_repeated():
    model, x = ResNet().eval(), torch.randn(N, 1, 8, 8)
    drawn, stop = [], threading.Event()

    def draw():
        while not stop.is_set():
            numpys = np.random.rand()  # noqa: NPY002
            torchs = float(torch.rand((), dtype=torch.float64))
            drawn.append((random.random(), numpys, torchs))

    thread = threading.Thread(target=draw)
    thread.start()
    for _ in range(20):
        trace(model, (x,))
    stop.set()
    thread.join()
    assert drawn
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == len(numbers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_locks_and_no_hooks_of_other_threads():
    model, x = mlp(), torch.randn(N, 4)
    inside, forked = threading.Event(), threading.Event()

    def wait(*_):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            forked.wait(30)

    model[2].register_forward_hook(wait)
    thread = threading.Thread(target=trace, args=(model, (x,)))
    thread.start()
    inside.wait(30)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_trace_and_exit, args=(model, x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork
        child.start()
    forked.set()
    child.join(60)
    thread.join()
    assert child.exitcode == 0
    assert no_hooks_of_ours(model)


def _trace_and_exit(model, x):
    assert len(model[0]._forward_hooks) == 0
    assert set(trace(model, (x,)).structure.links) == arrows("input > 0 > 2 > 4")


def test_buffers_of_a_model_in_evaluation_mode_are_put_back():
    model = Net(
        lambda m, x: (
            m.count.add_(1),
            setattr(m, "seen", m.seen + len(x)),
            m.a(x),
        )[2],
        a=nn.Linear(4, 2),
        count=torch.zeros(()),
        seen=torch.zeros(()),
    )
    held = model.seen
    trace(model, (torch.randn(N, 4),))
    assert model.count == 0
    assert model.seen is held
    assert model.seen == 0


def test_in_place_models_leave_the_inputs_alone():
    model = Net(lambda m, x, s: m.a(x.mul_(2).add_(s.mul_(3))), a=nn.Linear(4, 2))
    x, s = torch.ones(N, 4), torch.ones(N, 4)
    found = trace(model, (x,), (s,))
    assert torch.equal(x, torch.ones(N, 4))
    assert torch.equal(s, torch.ones(N, 4))
    assert torch.equal(found.values["input"], torch.ones(N, 4))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("layers", [None, ["0", "2"]])
def test_hooks_are_gone_after_an_exception(error, layers, rng_untouched):
    def fail(*_):
        raise error("stop")

    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Dropout()
    )
    handle = model[2].register_forward_hook(fail)
    before = state_of(model)
    with rng_untouched(), pytest.raises(error, match="stop"):
        trace(model, (torch.randn(N, 4, generator=torch.Generator()),), layers=layers)
    assert same(state_of(model), before)
    handle.remove()
    assert links_of(model, torch.randn(N, 4)) == arrows("input > 0 > 2")


def test_the_users_hooks_stay_and_are_honored():
    model, calls = mlp(), []
    model[0].register_forward_hook(lambda m, args, out: out + 1)
    model[0].register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    model[2].register_forward_hook(lambda *_: calls.append("hook"))
    x = torch.randn(N, 4)
    found = trace(model, (x,))
    assert calls == ["hook"]
    assert len(model[0]._forward_hooks) == 1
    expected = (F.linear(2 * x, model[0].weight, model[0].bias) + 1).relu()
    assert torch.equal(found.values["0"], expected.detach())
    assert torch.equal(found.values["4"], model(x).detach())


def test_under_inference_mode_and_without_gradients():
    model, x = ResNet().eval(), torch.randn(N, 1, 8, 8)
    expected = trace(model, (x,))
    with torch.inference_mode():
        inside = trace(model, (x.clone(),))
    assert inside.structure == expected.structure
    assert all(torch.equal(inside.values[k], v) for k, v in expected.values.items())
    assert not any(v.requires_grad or v.is_inference() for v in inside.values.values())


def test_layouts_precision_and_a_batch_of_one():
    model, x = image_chain(F.silu).double(), torch.randn(N, 2, 6, 6).double()
    expected = trace(model, (x,)).values["a"]
    assert expected.dtype == torch.float64
    strided = torch.randn(N, 6, 6, 4).double().permute(0, 3, 1, 2)[:, ::2].copy_(x)
    for same_x in (x.to(memory_format=torch.channels_last), strided):
        assert not same_x.is_contiguous()
        torch.testing.assert_close(trace(model, (same_x,)).values["a"], expected)
    one = trace(model, (x[:1],))
    assert one.structure == trace(model, (x,)).structure
    torch.testing.assert_close(one.values["a"], expected[:1])


def test_half_precision_under_autocast():
    model, x = mlp(), torch.randn(N, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = trace(model, (x,))
    assert set(found.structure.links) == arrows("input > 0 > 2 > 4")
    assert found.values["0"].dtype == torch.bfloat16


def test_threads_do_not_see_each_other():
    model, x = ResNet().eval(), torch.randn(N, 1, 8, 8)
    with torch.no_grad():
        expected, plain = trace(model, (x,)), model(x)
    errors, stop = [], threading.Event()

    def watch(check):
        try:
            while not stop.is_set():
                check()
        except BaseException as error:
            errors.append(error)

    def forward():
        with torch.no_grad():
            assert torch.equal(model(x), plain)

    def traced():
        found = trace(model, (x,))
        assert found.structure == expected.structure
        assert all(torch.equal(found.values[k], v) for k, v in expected.values.items())

    threads = [threading.Thread(target=watch, args=(f,)) for f in (forward, traced)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            traced()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert no_hooks_of_ours(model)


def test_no_feature_map_outlives_the_models_own_use_of_it():
    maps, alive = [], []

    def tail(x):
        y = x.relu()
        maps.extend([weakref.ref(x), weakref.ref(y)])
        return F.max_pool2d(y, 2)

    model = image_chain(tail)
    maps.clear()
    model.b.register_forward_pre_hook(
        lambda *_: alive.extend(ref for ref in maps if ref() is not None)
    )
    trace(model, (torch.randn(N, 2, 6, 6),))
    assert len(maps) == 2
    assert not alive
