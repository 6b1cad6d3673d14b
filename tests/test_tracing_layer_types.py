"""What the tracer knows of classes of modules, in one registry."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_models import IMAGE, TOKENS, VECTOR, N, Net, arrows, links_of, means, parameter

from captum_nif.tracing import (
    LayerType,
    find_layers,
    layer_types,
    register_layer_type,
    trace,
)
from captum_nif.tracing.record import Record
from captum_nif.tracing.recorder import Recorder
from captum_nif.tracing.selection import select


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    known = dict(layer_types._LAYER_TYPES)
    monkeypatch.setattr(layer_types, "_LAYER_TYPES", known)


class Scaled(nn.Module):
    """A factor for each feature: no layer by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = parameter(width)

    def forward(self, x):
        return x * self.factor


class Lookup(nn.Module):
    """A vector for each number."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = torch.randn(count, width)

    def forward(self, x):
        return self.table[x]


class ChannelsFirst(nn.Module):
    """A map of channels that stand second, whatever the rank."""

    def forward(self, x):
        return x.roll(1, 1).exp()


def test_a_registered_class_is_a_layer_everywhere():
    model = nn.Sequential(nn.Linear(4, 3), Scaled(3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(N, 4)
    assert links_of(model, x) == arrows("input > 0 > 3")
    register_layer_type(Scaled)
    assert list(find_layers(model).values()) == ["0", "1", "3"]
    found = trace(model, (x,))
    assert set(found.structure.links) == arrows("input > 0 > 1 > 3")
    assert torch.equal(found.values["1"], model[:3](x).detach())
    narrow = type("Narrow", (Scaled,), {})
    assert find_layers(nn.Sequential(narrow(3))), "so are its subclasses"


def test_the_nearest_class_counts():
    class Second(nn.Linear):
        """A linear layer that moves its features to the second axis."""

        def forward(self, x):
            return super().forward(x).movedim(-1, 1)

    model = nn.Sequential(Second(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2))
    x = torch.randn(TOKENS)
    register_layer_type(Second, LayerType(channel_axis=lambda module, rank: 1))
    found = trace(model, (x,))
    torch.testing.assert_close(found.values["0"], means(model[:2](x)))


def test_the_axes_of_a_registered_class():
    register_layer_type(
        ChannelsFirst,
        LayerType(
            channel_axis=lambda module, rank: 1,
            sample_axes=lambda module, rank: [0],
        ),
    )
    x = torch.randn(IMAGE)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), ChannelsFirst(), nn.Flatten())
    torch.testing.assert_close(trace(model, (x,)).values["1"], means(model[:2](x)))
    wrong = Net(
        lambda m, x: m.b(m.a(x).transpose(0, 1)).transpose(0, 1),
        a=nn.Linear(4, 3),
        b=ChannelsFirst(),
    )
    with pytest.raises(NotImplementedError, match=r"'b' \(ChannelsFirst\) .* axis 1"):
        trace(wrong, (torch.randn(TOKENS),))


def test_a_registered_table_reads_categories():
    register_layer_type(Lookup, LayerType(reads_categories=True))
    tokens = torch.randint(0, 9, (N, 5))
    model = Net(
        lambda m, x: m.b((m.a(x) * (x != 0)[..., None]).mean(1)),
        a=Lookup(9, 3),
        b=nn.Linear(3, 2),
    )
    assert links_of(model, tokens) == arrows("a > b")


@pytest.mark.parametrize("wrong", ["Linear", nn.Linear(2, 2), int, None])
def test_only_classes_of_modules_are_registered(wrong):
    with pytest.raises(TypeError, match=r"must be a subclass of torch\.nn\.Module"):
        register_layer_type(wrong)


# --- the layers of torch --------------------------------------------------------------

LSTM = {"hidden_size": 3, "input_size": 4}
# as many layers as samples: the axes of a state cannot be told by their extents
RECURRENT = {
    "states, batch first": nn.LSTM(num_layers=N, batch_first=True, **LSTM),
    "states, time first": nn.LSTM(num_layers=N, batch_first=False, **LSTM),
    "states of a gru": nn.GRU(num_layers=N, batch_first=True, **LSTM),
    "states of both ways": nn.RNN(
        num_layers=N // 2, bidirectional=True, batch_first=True, **LSTM
    ),
}


@pytest.mark.parametrize("case", RECURRENT, ids=lambda case: case.replace(" ", "-"))
def test_samples_of_states_lie_along_the_second_axis(case):
    def run(m, x):
        return m.r(x if m.r.batch_first else x.transpose(0, 1))[1]

    model, x = Net(run, r=RECURRENT[case]), torch.randn(N, N, 4)
    record = Record(model, (x,), ())
    with Recorder(record, select(model)), torch.no_grad():
        results = model(x)
    for state in results if isinstance(results, tuple) else [results]:
        rows = record.node(state).labels.rows.expand(state.shape)
        counted = torch.arange(1.0, N + 1).view(1, N, 1)
        assert torch.equal(rows, counted.expand(state.shape))


@pytest.mark.parametrize("batch_first", [True, False])
def test_samples_of_attention_weights_lie_along_the_first_axis(batch_first):
    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    def run(m, x):
        h = x if batch_first else x.transpose(0, 1)
        return m.b(m.a(h, h, h)[1].mean(1))

    x = torch.randn(N, N, 4)  # as many tokens as samples
    model = Net(run, a=attention, b=nn.Linear(N, 2)).eval()
    assert links_of(model, x) == arrows("input > a > b")
    # a sample's weights are its own
    other = x.clone()
    other[0] += 1
    with torch.no_grad():
        assert torch.equal(model(x)[1:], model(other)[1:])


def test_vectors_of_one_sample_are_refused():
    model = Net(lambda m, x: m.a(x[:, 0])[None].T, a=nn.Linear(N, 2))
    with pytest.raises(NotImplementedError, match="axis 0: it mixes samples"):
        trace(model, (torch.randn(VECTOR),))
