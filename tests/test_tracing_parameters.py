"""Functions that do with a parameter what layers do are layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import IMAGE, TOKENS, VECTOR, N, Net, arrows, links_of, means, parameter

from captum_nif import NIFAttribution, prune
from captum_nif.tracing.tracer import trace


class Conv1D(nn.Module):
    """A linear layer as GPT-2 writes it."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(n_in, n_out), parameter(n_out)

    def forward(self, x):
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class LoRA(nn.Module):
    """A linear layer and a correction of low rank."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(n_in, n_out)
        self.down, self.up = parameter(n_in, rank), parameter(rank, n_out)

    def forward(self, x):
        return self.base(x) + x @ self.down @ self.up


class PeriodicEmbedding(nn.Module):
    """A frequency and a linear map for each feature of a table."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.frequencies = parameter(features, width)
        self.weight = parameter(features, 2 * width, width)

    def forward(self, x):
        phases = 2 * torch.pi * self.frequencies * x[..., None]
        waves = torch.cat([phases.cos(), phases.sin()], -1)
        return (waves[..., None, :] @ self.weight).squeeze(-2).relu()


def between(run, **parts):
    """A linear layer of width 3, a function, a linear layer."""
    return Net(
        lambda m, x: m.b(run(m, m.a(x))), a=nn.Linear(4, 3), b=nn.Linear(3, 2), **parts
    )


# model, input, links, layer, its value
CASES = {
    "linear": (
        lambda: between(lambda m, h: F.linear(h, m.w), w=parameter(3, 3)),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.a(x) @ m.w.T,
    ),
    "linear, of a module": (
        lambda: between(
            lambda m, h: F.linear(h, m.c.weight, m.c.bias).relu(), c=nn.Linear(3, 3)
        ),
        VECTOR,
        "input > a > c > b",
        "c",
        lambda m, x: m.c(m.a(x)).relu(),
    ),
    "transposed": (
        lambda: between(lambda m, h: h @ m.w.t(), w=parameter(3, 3)),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.a(x) @ m.w.T,
    ),
    "scaled": (
        lambda: between(lambda m, h: torch.mm(h, m.w * 0.1), w=parameter(3, 3)),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.a(x) @ m.w * 0.1,
    ),
    "weight first": (
        lambda: between(lambda m, h: (m.w @ h.T).T, w=parameter(3, 3)),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.a(x) @ m.w.T,
    ),
    "addmm": (
        lambda: between(
            lambda m, h: torch.addmm(m.bias, h, m.w),
            w=parameter(3, 3),
            bias=parameter(3),
        ),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.a(x) @ m.w + m.bias,
    ),
    "bias added later": (
        lambda: between(
            lambda m, h: h @ m.w + m.bias, w=parameter(3, 3), bias=parameter(3)
        ),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.a(x) @ m.w + m.bias,
    ),
    "tensordot": (
        lambda: between(lambda m, h: torch.tensordot(h, m.w, 1), w=parameter(3, 3)),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.a(x) @ m.w,
    ),
    "one output": (
        lambda: Net(
            lambda m, x: m.b(m.a(x).mv(m.w)[:, None]),
            a=nn.Linear(4, 3),
            w=parameter(3),
            b=nn.Linear(1, 2),
        ),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: (m.a(x) @ m.w)[:, None],
    ),
    "einsum over tokens": (
        lambda: between(
            lambda m, h: torch.einsum("ntc,cd->ntd", h, m.w), w=parameter(3, 3)
        ),
        TOKENS,
        "input > a > w > b > output",
        "w",
        lambda m, x: (m.a(x) @ m.w).mT,
    ),
    "heads by einsum": (
        lambda: Net(
            lambda m, x: m.b(torch.einsum("ntc,chd->nhtd", x, m.w).mean(2).flatten(1)),
            w=parameter(4, 2, 3),
            b=nn.Linear(6, 2),
        ),
        TOKENS,
        "input > w > b",
        "w",
        lambda m, x: torch.einsum("ntc,chd->nhdt", x, m.w).mean(-1).flatten(1),
    ),
    "a map for each group": (
        lambda: Net(
            lambda m, x: m.b(torch.einsum("ngc,gcd->ngd", x, m.w).flatten(1)),
            w=parameter(5, 4, 3),
            b=nn.Linear(15, 2),
        ),
        TOKENS,
        "input > w > b",
        "w",
        lambda m, x: torch.einsum("ngc,gcd->ngd", x, m.w).flatten(1),
    ),
    "a scale is no layer": (
        lambda: between(lambda m, h: torch.einsum("nc,c->nc", h, m.w), w=parameter(3)),
        VECTOR,
        "input > a > b",
        "a",
        lambda m, x: m.a(x) * m.w,
    ),
    "convolution": (
        lambda: Net(
            lambda m, x: m.b(F.conv2d(x, m.w, padding=1).relu().mean((2, 3))),
            w=parameter(3, 1, 3, 3),
            b=nn.Linear(3, 2),
        ),
        IMAGE,
        "input > w > b",
        "w",
        lambda m, x: F.conv2d(x, m.w, padding=1).relu(),
    ),
    "a weight expanded to the batch": (  # relative positions, as in XLNet
        lambda: Net(
            lambda m, x: m.b(
                torch.einsum(
                    "nic,jnc->nij",
                    m.a(x),
                    (m.positions @ m.w)[:, None].expand(-1, len(x), -1),
                )
            ),
            a=nn.Linear(4, 3),
            w=parameter(2, 3),
            positions=torch.randn(7, 2),
            b=nn.Linear(7, 2),
        ),
        TOKENS,
        "input > a > w > b > output",
        "w",
        lambda m, x: (m.a(x) @ (m.positions @ m.w).T).mT,
    ),
    "bilinear": (
        lambda: between(lambda m, h: F.bilinear(h, h, m.w), w=parameter(3, 3, 3)),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: F.bilinear(m.a(x), m.a(x), m.w),
    ),
    "forward called past the hooks": (
        lambda: Net(
            lambda m, x: m.b(m.a.forward(x)), a=nn.Linear(4, 3), b=nn.Linear(3, 2)
        ),
        VECTOR,
        "input > a > b",
        "a",
        lambda m, x: m.a(x),
    ),
    "tied weights": (
        lambda: Net(lambda m, x: F.linear(m.a(x), m.a.weight.t()), a=nn.Linear(4, 3)),
        VECTOR,
        "input > a > a:1",
        "a:1",
        lambda m, x: m.a(x) @ m.a.weight,
    ),
    "weight norm": (
        lambda: between(
            lambda m, h: F.linear(h, m.c.weight),
            c=nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        ),
        VECTOR,
        "input > a > c > b",
        "c",
        lambda m, x: m.a(x) @ m.c.weight.T,
    ),
    "gpt-2": (
        lambda: nn.Sequential(Conv1D(8, 4), nn.GELU(), Conv1D(3, 8)),
        VECTOR,
        "input > 0 > 2",
        "0",
        lambda m, x: m[:2](x),
    ),
    "gpt-2 on tokens": (
        lambda: Net(lambda m, x: m.d(m.c(x).mean(1)), c=Conv1D(8, 4), d=Conv1D(3, 8)),
        TOKENS,
        "input > c > d",
        "c",
        lambda m, x: m.c(x).mT,
    ),
    "lora": (
        lambda: nn.Sequential(LoRA(4, 6, 2), nn.ReLU(), nn.Linear(6, 3)),
        VECTOR,
        "input > 0.base > 2, input > 0.down > 0.up > 2",
        "0.up",
        lambda m, x: x @ m[0].down @ m[0].up,
    ),
    "periodic embedding": (
        lambda: nn.Sequential(PeriodicEmbedding(4, 5), nn.Flatten(), nn.Linear(20, 3)),
        VECTOR,
        "input > 0.weight > 2",
        "0.weight",
        lambda m, x: m[0](x).flatten(1),
    ),
    "codes of a table": (
        lambda: between(lambda m, h: m.w[h.argmax(1)], w=parameter(3, 3)),
        VECTOR,
        "input > a > w > b",
        "w",
        lambda m, x: m.w[m.a(x).argmax(1)],
    ),
    "prefix of a prompt": (  # keys that are the same for all samples
        lambda: between(
            lambda m, h: (h @ m.keys.T).softmax(-1) @ m.values,
            keys=parameter(7, 3),
            values=parameter(7, 3),
        ),
        VECTOR,
        "input > a > keys > values > b",
        "keys",
        lambda m, x: (m.a(x) @ m.keys.T).softmax(-1),
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_a_function_with_a_parameter_is_a_layer(case):
    build, shape, links, layer, value = CASES[case]
    model, x = build().eval(), torch.randn(shape)
    found = trace(model, (x,))
    assert set(found.structure.links) == arrows(links)
    torch.testing.assert_close(found.values[layer], means(value(model, x)))
    assert found.calls[layer].name == layer


def test_token_numbers_that_pick_rows_of_a_table_are_categories():
    tokens = torch.randint(0, 9, (N, 5))
    for pick in (
        lambda m, x: m.w[x],
        lambda m, x: F.embedding(x, m.w),
        lambda m, x: m.w.index_select(0, x.flatten()).view(*x.shape, -1),
    ):
        model = Net(
            lambda m, x, pick=pick: m.b(pick(m, x).mean(1)),
            w=parameter(9, 3),
            b=nn.Linear(3, 2),
        )
        found = trace(model, (tokens,))
        assert set(found.structure.links) == arrows("w > b")
        torch.testing.assert_close(found.values["w"], means(model.w[tokens].mT))


def test_where_layers_are_named_functions_with_parameters_are_passed_through():
    model = between(lambda m, h: h @ m.w, w=parameter(3, 3))
    assert links_of(model, torch.randn(N, 4), layers=["a", "b"]) == arrows(
        "input > a > b"
    )


def test_values_that_override_those_of_a_function_reach_its_readers():
    model = between(lambda m, h: (h @ m.w).relu(), w=parameter(3, 3))
    x, other = torch.randn(N, 4), torch.randn(N, 3)
    found = trace(model, (x,), nodes="neuron")
    again = trace(model, (x,), nodes="neuron", overrides={found.positions["w"]: other})
    torch.testing.assert_close(again.values["b"], model.b(other).detach())


def test_pruning_says_what_to_do_with_functions():
    torch.manual_seed(0)
    model = nn.Sequential(LoRA(4, 6, 2), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randn(200, 4)
    graph = NIFAttribution(model).fit(x).population_graph()
    with pytest.raises(ValueError, match=r"'0\.down' is a function.*`layers=\"\+0\"`"):
        prune(model, graph, 0.25)
    graph = NIFAttribution(model, layers="+0").fit(x).population_graph()
    pruned = prune(model, graph, 6)  # as advised
    assert int((pruned[2].weight == 0).sum()) == 6
