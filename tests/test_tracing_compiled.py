"""Models that compile, or are compiled or offloaded: the way out that is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toy_models import TOKENS, N, Net, arrows, links_of, mlp

from captum_nif.tracing.tracer import find_layers, trace

# torch warns of itself as it compiles
pytestmark = pytest.mark.filterwarnings("ignore:::torch")

needs_stance = pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"), reason="came with torch 2.6"
)


def attention():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    def run(m, x):
        q, k, v = (f(x)[:, None] for f in (m.q, m.k, m.v))
        y = flex.flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + (i - j))
        return m.o(y[:, 0].mean(1))

    linear = {name: nn.Linear(4, 4) for name in "qkv"}
    return Net(run, **linear, o=nn.Linear(4, 2)).eval()


@needs_stance
def test_flexible_attention_runs_as_it_is_written():
    model, x = attention(), torch.randn(TOKENS)
    with pytest.raises(NotImplementedError, match=r"set_stance\(\"force_eager\"\)"):
        trace(model, (x,))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model(x)
        found = trace(model, (x,))
    assert set(found.structure.links) == arrows(
        "input > q > o, input > k > o, input > v > o"
    )
    assert torch.equal(found.values["o"], expected)


@needs_stance
def test_compiled_functions_run_as_they_are_written():
    tail = torch.compile(lambda h: h.relu() * 2, backend="eager")
    model = Net(lambda m, x: m.b(tail(m.a(x))), a=nn.Linear(4, 3), b=nn.Linear(3, 2))
    x = torch.randn(N, 4)
    with torch.compiler.set_stance("force_eager"):
        found = trace(model, (x,))
    assert set(found.structure.links) == arrows("input > a > b")
    assert torch.equal(found.values["a"], 2 * model.a(x).detach().relu())


def test_a_copy_of_what_was_compiled_in_place_is_not_compiled():
    model, x = mlp(), torch.randn(N, 4)
    model.compile()
    model[2].compile()
    with pytest.raises(NotImplementedError, match=r"pass `copy\.deepcopy\(model\)`"):
        trace(model, (x,))
    assert links_of(copy.deepcopy(model), x) == arrows("input > 0 > 2 > 4")


def test_the_original_of_what_was_compiled_is_kept():
    compiled, x = torch.compile(mlp()), torch.randn(N, 4)
    with pytest.raises(NotImplementedError, match=r"`compiled\._orig_mod`"):
        trace(compiled, (x,))
    assert links_of(compiled._orig_mod, x) == arrows("input > 0 > 2 > 4")


def test_offloaded_modules_are_named():
    model = mlp()
    model[2]._hf_hook = object()  # as accelerate leaves it
    assert find_layers(model), "a hook that keeps weights in memory does no harm"
    model[2].to("meta")
    advice = r"2 \(Linear\) is offloaded by accelerate.*remove_hook_from_submodules"
    with pytest.raises(NotImplementedError, match=advice):
        find_layers(model)
