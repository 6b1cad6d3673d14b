"""Values that depend on other samples or on chance, in evaluation mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Net, ResNet

from captum_nif import NIFAttribution
from captum_nif.tracing.tracer import trace


def between(run, *shape):
    """Two linear layers with a function between them."""
    return Net(lambda m, x: m.b(run(m, m.a(x))), a=nn.Linear(4, 8), b=nn.Linear(8, 2))


class OwnNorm(nn.Module):
    """A normalization that forgets to look at its mode."""

    def forward(self, x):
        return F.batch_norm(x, None, None, training=True)


BATCH_STATISTICS = {
    "module": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU()
        ),
        r"`batch_norm` in '1' \(BatchNorm1d\)",
    ),
    "function": (
        lambda: between(lambda m, h: F.batch_norm(h, None, None, training=True)),
        r"`batch_norm` in 'model' \(Net\)",
    ),
    "function by position": (
        lambda: between(
            lambda m, h: torch.batch_norm(
                h, None, None, None, None, True, 0.1, 1e-5, False
            )
        ),
        "`batch_norm` in 'model'",
    ),
    "in a block": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 8), OwnNorm()), nn.ReLU()),
        r"`batch_norm` in '0\.1' \(OwnNorm\)",
    ),
    "of a map": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 3, 1),
            nn.BatchNorm2d(3, track_running_stats=False),
            nn.Flatten(),
        ),
        r"`batch_norm` in '2' \(BatchNorm2d\)",
    ),
}


@pytest.mark.parametrize(
    ("case", "layers"),
    [*((case, None) for case in BATCH_STATISTICS), ("in a block", "+0")],
)
def test_statistics_of_the_batch_are_refused(case, layers):
    build, where = BATCH_STATISTICS[case]
    model = build().eval()
    with pytest.raises(NotImplementedError, match=f"{where} .*beside it.*running stat"):
        NIFAttribution(model, layers=layers).fit(torch.randn(64, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class StandardizedLinear(nn.Linear):
    """Weights with mean 0 and variance 1, as in NFNets."""

    def forward(self, x):
        weight = F.batch_norm(self.weight[None], None, None, training=True)
        return F.linear(x, weight[0], self.bias)


def test_statistics_of_weights_are_not():
    x = torch.randn(64, 4)
    model = nn.Sequential(StandardizedLinear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    NIFAttribution(model).fit(x)
    trace(model, (x[:1],), layers=["2"])
    norm = between(
        lambda m, h: h * F.batch_norm(m.b.weight.T, None, None, training=True)[:, 0]
    )
    NIFAttribution(norm.eval()).fit(x)


def test_statistics_of_each_sample_are_not():
    model = Net(
        lambda m, x: m.b(F.instance_norm(m.a(x)).flatten(1)),
        a=nn.Conv1d(5, 3, 1),
        b=nn.Linear(12, 2),
    )
    NIFAttribution(model.eval()).fit(torch.randn(64, 5, 4))
    NIFAttribution(ResNet().eval()).fit(torch.randn(64, 1, 8, 8))


CHANCE = {
    "dropout": (lambda m, h: F.dropout(h), "`dropout` in 'model'"),
    "dropout in place": (lambda m, h: F.dropout(h, 0.2, True, True), "`dropout`"),
    "dropout of channels": (lambda m, h: F.dropout1d(h), "`dropout1d`"),
    "alpha dropout": (
        lambda m, h: F.alpha_dropout(h, training=True),
        "`alpha_dropout`",
    ),
    "attention": (
        lambda m, h: F.scaled_dot_product_attention(*[h[:, None]] * 3, dropout_p=0.5)[
            :, 0
        ],
        "`scaled_dot_product_attention`",
    ),
    "noise": (lambda m, h: h + torch.randn_like(h), "`randn_like`"),
    "noise by shape": (lambda m, h: h * torch.rand(8), "`rand`"),
    "noise in place": (lambda m, h: h + torch.empty(8).normal_(), "`normal`"),
    "slopes": (lambda m, h: F.rrelu(h, training=True), "`rrelu`"),
    "samples of classes": (lambda m, h: F.gumbel_softmax(h), "`gumbel_softmax`"),
    "depth": (
        lambda m, h: h * h.new_empty(len(h), 1).bernoulli_(0.9),
        "`bernoulli`",
    ),
}


@pytest.mark.parametrize("case", CHANCE, ids=lambda case: case.replace(" ", "-"))
def test_chance_in_evaluation_mode_is_warned_of(case):
    run, what = CHANCE[case]
    model = between(run).eval()
    with pytest.warns(UserWarning, match=f"evaluation mode too.*{what}") as caught:
        NIFAttribution(model).fit(torch.randn(200, 4))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert trace(model, (torch.randn(6, 4),)).chance


@pytest.mark.parametrize(
    "run",
    [
        lambda m, h: F.dropout(h, training=m.training),
        lambda m, h: F.dropout(h, p=0.0),
        lambda m, h: F.alpha_dropout(h),
        lambda m, h: F.rrelu(h),
        lambda m, h: h + torch.randn(8, generator=torch.Generator().manual_seed(0)),
        lambda m, h: F.scaled_dot_product_attention(*[h[:, None]] * 3)[:, 0],
    ],
)
def test_what_draws_nothing_is_not_warned_of(run):
    model = between(run).eval()
    NIFAttribution(model).fit(torch.randn(200, 4))
    assert not trace(model, (torch.randn(6, 4),)).chance


def test_training_mode_is_warned_of_once():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )
    with pytest.warns(UserWarning, match="in training mode") as caught:
        NIFAttribution(model).fit(torch.randn(200, 4))
    assert len(caught) == 1


NEIGHBORS = {
    "item of a maximum": lambda m, h: h / h.abs().max().item(),
    "float of a mean": lambda m, h: h - float(h.mean()),
    "a number made of two": lambda m, h: h / (h.std().item() + 1e-5),
    "numpy": lambda m, h: h * torch.tensor(h.numpy().std()),
}


@pytest.mark.parametrize("preset", [None, "faithful"])
@pytest.mark.parametrize("case", NEIGHBORS, ids=lambda case: case.replace(" ", "-"))
def test_numbers_of_the_batch_are_warned_of(case, preset):
    model = between(NEIGHBORS[case]).eval()
    with pytest.warns(
        UserWarning, match="'[ab]' gives a sample other values"
    ) as caught:
        NIFAttribution(model, preset=preset).fit(torch.randn(200, 4))
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "run",
    [
        lambda m, h: h if h.abs().max().item() < 1e6 else h / 0,
        lambda m, h: h.half().float(),
        lambda m, h: h.round(),
        lambda m, h: F.pad(h, (0, int((h > 0).sum().item() * 0))),
    ],
)
def test_numbers_that_change_no_value_are_not(run):
    NIFAttribution(between(run).eval()).fit(torch.randn(200, 4))


def test_models_that_take_no_batch_of_two_are_not_asked_again():
    def run(m, h):
        assert len(h) > 2
        return h / h.abs().max().item()

    NIFAttribution(between(run).eval()).fit(torch.randn(64, 4))
