"""Models that cannot be followed: each is refused, and the message names the place."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from toy_models import (
    TOKENS,
    VECTOR,
    MixtureOfExperts,
    N,
    Net,
    arrows,
    links_of,
    mlp,
    no_hooks_of_ours,
    parameter,
    swish,
)

from captum_nif.tracing.tracer import trace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecated, but still met
    scripted = torch.jit.script(swish)


class Stateful(nn.Module):
    """Adds what it computed in the call before."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
        state = torch.zeros(N, 3)
        if buffer:
            self.register_buffer("state", state)
        else:
            self.state = state

    def forward(self, x):
        h = self.a(x) + self.state
        if "state" in self._buffers:
            self.state.copy_(h)
        else:
            self.state = h
        return self.b(h)


def between(tail):
    """A linear layer, a function, a linear layer of width 3."""
    return lambda: Net(
        lambda m, x: m.b(tail(m.a(x))), a=nn.Linear(4, 3), b=nn.Linear(3, 2)
    )


def parameterized(run, *shape):
    return lambda: Net(
        lambda m, x: m.b(run(m, m.a(x))),
        a=nn.Linear(4, 3),
        w=parameter(*shape),
        b=nn.Linear(3, 2),
    )


REFUSED = {
    "function with a parameter that is not understood": (
        parameterized(lambda m, h: torch.rnn_tanh_cell(h, h, m.w, m.w), 3, 3),
        VECTOR,
        "layer 'w' .*`rnn_tanh_cell` with the parameter 'w' is not understood",
    ),
    "parameter over samples": (
        parameterized(lambda m, h: m.w @ h, N, N),
        VECTOR,
        "layer 'w' .*`matmul` mixes samples",
    ),
    "scripted function": (between(scripted), VECTOR, "layer 'b' .*origin is unknown"),
    "scripted function on a sequence": (
        lambda: Net(
            lambda m, x: m.b(scripted(m.a(x).transpose(0, 1)).mean(0)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        TOKENS,
        "layer 'b' .*origin is unknown",
    ),
    "numpy": (
        between(lambda h: torch.from_numpy(h.numpy().clip(0))),
        VECTOR,
        "layer 'b' .*origin is unknown",
    ),
    "lists": (
        between(lambda h: torch.tensor(h.tolist())),
        VECTOR,
        "layer 'b' .*origin is unknown",
    ),
    "vmap": (
        between(torch.vmap(lambda row: row * 2)),
        VECTOR,
        "layer 'b' .*origin is unknown",
    ),
    "state in a buffer": (lambda: Stateful(True), VECTOR, "'state' .* keeps state"),
    "state in an attribute": (
        lambda: Stateful(False),
        VECTOR,
        "'state' .* keeps state",
    ),
    "packed sequence": (
        lambda: Net(
            lambda m, x: m.fc(
                m.lstm(
                    nn.utils.rnn.pack_padded_sequence(
                        x, torch.full((len(x),), 5), batch_first=True
                    )
                )[1][0][-1]
            ),
            lstm=nn.LSTM(4, 3, batch_first=True),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "layer 'lstm' .*PackedSequence",
    ),
    "mixture of experts": (
        MixtureOfExperts,
        VECTOR,
        r"layer 'experts\.[01]' .*only some of the samples",
    ),
    "one sample at a time": (
        lambda: Net(
            lambda m, x: torch.stack([m.a(row) for row in x]), a=nn.Linear(4, 2)
        ),
        VECTOR,
        "layer 'a' .*only some of the samples",
    ),
    "centered batch": (
        between(lambda h: h - h.mean(0)),
        VECTOR,
        "layer 'b' .*`mean` mixes samples",
    ),
    "kernel matrix": (
        lambda: Net(lambda m, x: (lambda h: h @ h.T)(m.a(x)), a=nn.Linear(4, 3)),
        VECTOR,
        "The output .*`matmul` mixes samples",
    ),
    "softmax over the batch": (
        between(lambda h: h.softmax(0)),
        VECTOR,
        "layer 'b' .*`softmax` mixes samples",
    ),
    "batch as features": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).reshape(1, -1)),
            a=nn.Linear(4, 3),
            b=nn.Linear(18, 2),
        ),
        VECTOR,
        "layer 'b' .*samples along axis 1: it mixes samples",
    ),
    "batch as features, same width": (
        lambda: Net(lambda m, x: m.a(x.t()).t(), a=nn.Linear(N, N)),
        VECTOR,
        "layer 'a' .*samples along axis 1: it mixes samples",
    ),
    "batch as time": (
        lambda: Net(
            lambda m, x: m.fc(m.lstm(x)[0][:, -1]),
            lstm=nn.LSTM(4, 3),
            fc=nn.Linear(3, 2),
        ),
        TOKENS,
        "layer 'lstm' .*batch_first=False .*samples along axis 0: it mixes samples",
    ),
    "unbatched recurrence": (
        lambda: Net(
            lambda m, x: m.fc(m.lstm(x)[0]),
            lstm=nn.LSTM(4, 3, batch_first=True),
            fc=nn.Linear(3, 2),
        ),
        VECTOR,
        "layer 'lstm' .*batch_first=True .*samples along axis 0: it mixes samples",
    ),
    "attention over samples": (
        lambda: Net(
            lambda m, x: m.fc(m.att(x, x, x)[0].mean(1)),
            att=nn.MultiheadAttention(4, 2),
            fc=nn.Linear(4, 2),
        ),
        TOKENS,
        "layer 'att' .*batch_first=False .*it mixes samples",
    ),
    "samples as channels of a convolution": (
        lambda: Net(lambda m, x: m.a(x), a=nn.Conv2d(N, N, 1)),
        (N, 4, 4),
        "layer 'a' .*samples along axis 0: it mixes samples",
    ),
    "output with samples behind": (
        lambda: Net(lambda m, x: m.a(x).transpose(0, 1), a=nn.Linear(4, 2)),
        TOKENS,
        "The output .*sample i is not what stands at place i",
    ),
    "output in another order": (
        lambda: Net(lambda m, x: m.a(x).flip(0), a=nn.Linear(4, 2)),
        VECTOR,
        "The output .*sample i is not what stands at place i",
    ),
    "loss as output": (
        lambda: Net(lambda m, x: m.a(x).pow(2).mean(), a=nn.Linear(4, 2)),
        VECTOR,
        "The output .*`mean` mixes samples",
    ),
    "constant output": (
        lambda: Net(lambda m, x: torch.ones(len(x), 2), a=nn.Linear(4, 2)),
        VECTOR,
        "The output .*does not depend on the inputs",
    ),
    "unknown function": (
        between(lambda h: torch.trapezoid(h[:, :, None].expand(-1, -1, 2))[:, :3]),
        VECTOR,
        "layer 'b' .*`trapezoid` is not known to keep samples apart",
    ),
    "written as another type": (
        between(lambda h: (h.view(torch.int32).clamp_(min=0), h)[1]),
        VECTOR,
        "layer 'b' .*view of another dtype",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_refused(case):
    build, shape, message = REFUSED[case]
    model = build().eval()
    with torch.no_grad(), pytest.raises(NotImplementedError, match=f"(?s){message}"):
        trace(model, (torch.randn(shape),))
    assert no_hooks_of_ours(model)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: torch.relu, TypeError, "needs the network itself.*got builtin"),
        (
            lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 2))),
            NotImplementedError,
            "0 .*scripted or traced",
        ),
        (
            lambda: torch.jit.trace(nn.Linear(4, 2), torch.randn(N, 4)),
            NotImplementedError,
            "the model .*scripted or traced",
        ),
        (
            lambda: nn.Sequential(torch.compile(nn.Linear(4, 2))),
            NotImplementedError,
            "0 .*is compiled.*_orig_mod",
        ),
        (
            lambda: nn.Sequential(nn.LazyLinear(2)),
            ValueError,
            r"0 \(LazyLinear\) has uninitialized parameters",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_refused_models(build, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        trace(build(), (torch.randn(N, 4),))


def test_a_model_compiled_in_place_is_refused():
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].compile()
    with pytest.raises(NotImplementedError, match=r"0 .*compiled in place"):
        trace(model, (torch.randn(N, 4),))


def test_data_parallel_on_several_devices_is_refused():
    model = nn.DataParallel(nn.Linear(4, 2))
    assert links_of(model, torch.randn(N, 4)) == arrows("input > module")
    model.device_ids = [0, 1]
    with pytest.raises(NotImplementedError, match=r"the model .*on several"):
        trace(model, (torch.randn(N, 4),))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((), TypeError, "must be a tuple of tensors"),
        (([1.0],), TypeError, "got .list"),
        ((torch.randn(6, 4), torch.randn(5, 4)), ValueError, r"\(6, 4\), \(5, 4\)"),
        ((torch.randn(0, 4),), ValueError, r"at least one sample.*\(0, 4\)"),
        ((torch.tensor(1.0),), ValueError, "a scalar"),
        ((torch.randn(6, 4, dtype=torch.cfloat),), TypeError, "complex64"),
        ((torch.randn(6, 4).to_sparse(),), TypeError, "sparse"),
    ],
)
def test_wrong_inputs(inputs, error, message):
    with pytest.raises(error, match=message):
        trace(mlp(), inputs)


def test_naming_the_module_makes_a_refused_model_traceable():
    class Smoothed(nn.Module):
        def forward(self, x):
            return torch.trapezoid(x[:, :, None].expand(-1, -1, 2), dim=2)

    model = nn.Sequential(nn.Linear(4, 3), Smoothed(), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(N, 4)
    advice = r"`trapezoid` .*, in '1' \(Smoothed\)\. `layers=\"\+1\"` makes the"
    with pytest.raises(NotImplementedError, match=advice):
        trace(model, (x,))
    found = trace(model, (x,), layers="+1")
    assert set(found.structure.links) == arrows("input > 0 > 1 > 3")
    assert torch.equal(found.values["1"], model[:3](x).detach())


class Routed(nn.Module):
    """A mixture of experts for tokens, sorted by the expert that they go to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        tokens = x.flatten(0, 1)
        chosen = self.gate(tokens).argmax(-1)
        order = chosen.sort().indices
        parts = tokens[order].split(chosen.bincount(minlength=2).tolist())
        y = torch.cat([f(part) for f, part in zip(self.experts, parts, strict=True)])
        return y[order.argsort()].view(x.shape)


def test_a_mixture_of_experts_is_one_layer_as_advised():
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.b((x + m.moe(m.a(x))).mean(1)),
        a=nn.Linear(4, 4),
        moe=Routed(),
        b=nn.Linear(4, 2),
    ).eval()
    x = torch.randn(TOKENS)
    with pytest.raises(NotImplementedError, match="only some of the samples") as caught:
        trace(model, (x,))
    (advice,) = re.findall(r'`layers="(.*)"`', str(caught.value))
    assert advice == "+moe"
    found = trace(model, (x,), layers=advice)
    assert set(found.structure.links) == arrows("input > a > moe > b, input > b")
    with torch.no_grad():
        torch.testing.assert_close(
            found.values["moe"], model.moe(model.a(x)).double().mean(1).float()
        )


def test_what_is_refused_on_a_dead_path_does_not_matter():
    model = Net(
        lambda m, x: (
            lambda h: (m.b(h - h.mean(0)), scripted(h), h.numpy(), m.c(h))[-1]
        )(m.a(x)),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
        c=nn.Linear(3, 2),
    )
    assert links_of(model, torch.randn(N, 4)) == arrows("input > a > c")
