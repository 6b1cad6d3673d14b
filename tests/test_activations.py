"""Populations: streams cut into batches, values collected, models told apart."""

import copy
import pickle
import re
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_nif.flow.batches import batches_of, cut
from captum_nif.flow.fingerprint import fingerprint
from captum_nif.flow.population import (
    Population,
    averaged,
    channel_averages,
    check_samples,
    places,
    run_population,
)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        h = self.conv(x).relu().mean((2, 3))
        return self.fc(h if offset is None else h + offset)


def run(model: nn.Module, background: object, **options: object) -> Population:
    return run_population(model, batches_of(model, background, **options))


def test_values_are_channel_means_of_what_follows_the_layer():
    model, x = Conv(), torch.randn(10, 1, 5, 5)
    seen = {}
    handle = model.conv.register_forward_hook(
        lambda _m, _i, out: seen.update(conv=out.detach().relu().flatten(2).mean(2))
    )
    expected = model(x).detach()
    handle.remove()
    found = run(model, x, batch_size=10)
    assert found.size == 10
    assert [(s.name, s.shape) for s in found.inputs] == [("input", (1, 5, 5))]
    assert torch.equal(found.values["input"], x.flatten(1))
    torch.testing.assert_close(found.values["conv"], seen["conv"])
    assert torch.equal(found.values["fc"], expected)


@pytest.mark.parametrize("size", [1, 4, 10, 64])
def test_batches_are_joined_in_order(size):
    model, x = Conv().double(), torch.randn(10, 1, 5, 5).double()
    whole, parts = run(model, x, batch_size=10), run(model, x, batch_size=size)
    assert parts.structure == whole.structure
    for name, value in whole.values.items():
        torch.testing.assert_close(parts.values[name], value, rtol=1e-12, atol=1e-14)


def test_no_feature_map_is_kept():
    population = run(Conv(), torch.randn(10, 1, 40, 40))
    held = sum(v.untyped_storage().nbytes() for v in population.values.values())
    assert held == 4 * 10 * (1600 + 3 + 2)


def test_neurons_average_to_channels():
    # the values and the structure of the same samples, seen as neurons and as channels
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)
    )
    x = torch.randn(10, 2, 4, 4)
    channels = run(model, x)
    neurons = run_population(model, batches_of(model, x), nodes="neuron")
    assert [layer.shape for layer in neurons.structure.layers] == [
        (2, 4, 4),
        (3, 2, 2),
        (4,),
        (2,),
    ]
    assert [places(layer) for layer in neurons.structure.layers] == [16, 4, 1, 1]
    assert averaged(neurons.structure) == channels.structure
    means = channel_averages(neurons.structure, neurons.values)
    assert means.keys() == channels.values.keys()
    for name, value in means.items():
        assert torch.equal(value, channels.values[name])
    slowly = [
        [float(row[4 * c : 4 * c + 4].double().mean()) for c in range(3)]
        for row in neurons.values["0"]
    ]
    torch.testing.assert_close(means["0"], torch.tensor(slowly))


def test_a_population_says_how_it_ran():
    model, x = Conv(), torch.randn(10, 1, 5, 5)
    offset = torch.rand(10, 1)
    found = run(model, x, extra=(offset,), batch_size=4)
    rows, extra = zip(*found.batches, strict=True)
    assert rows == (slice(0, 4), slice(4, 8), slice(8, 10))
    assert torch.equal(torch.cat([e for (e,) in extra]), offset)
    assert found.shapes == ((1, 5, 5),)
    assert found.modules is None
    chosen = run_population(model, batches_of(model, x), ["conv", "fc"])
    assert chosen.modules == ["conv", "fc"]


def test_cut_follows_the_samples():
    x, z, along = torch.arange(5), torch.arange(10).view(5, 2), torch.arange(5) * 7
    scalar = torch.tensor(3.0)
    parts = list(cut((x, z), (along, scalar, "mode"), 2))
    assert [part[0][0].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    for (a, b), (offset, same, mode) in parts:
        assert torch.equal(offset, a * 7)
        assert torch.equal(b[:, 0], a * 2)
        assert same is scalar
        assert mode == "mode"


def test_cut_refuses_what_does_not_follow():
    with pytest.raises(ValueError, match=r"\(4,\).*5 samples"):
        list(cut((torch.zeros(5, 2),), (torch.zeros(4),), 2))


class Two(nn.Module):
    def forward(self, x: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * z


class Any(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return sum(inputs)


class One(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0, mode: str = "") -> Tensor:
        return x * scale


class Required(nn.Module):
    def forward(self, x: Tensor, scale: float) -> Tensor:
        return x * scale


@pytest.mark.parametrize(
    ("model", "held", "extra", "inputs"),
    [
        (Two(), 3, (), 2),
        (Two(), 2, (), 2),
        (Any(), 1, (), 1),
        (nn.DataParallel(One()), 2, (), 1),
        (nn.DataParallel(nn.DataParallel(Two())), 3, (), 2),
        (One(), 1, (), 1),
        (One(), 2, (), 1),
        (One(), 2, (2.0,), 1),
        (One(), 2, (2.0, "a"), 1),
        (Required(), 2, (2.0,), 1),
        (Conv(), 2, (), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_labels_are_told_from_inputs(model, held, extra, inputs):
    batch = tuple(torch.full((4,), float(i)) for i in range(held))
    ((found, further),) = batches_of(model, [batch], extra)
    assert [int(x[0]) for x in found] == list(range(inputs))
    assert further == extra


@pytest.mark.parametrize("model", [Any(), nn.DataParallel(Any())])
def test_labels_that_cannot_be_told_from_inputs(model):
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"holds 2 tensors.*\*args.*pass a tuple"):
        next(batches_of(model, [(x, x)]))
    ((found, _),) = batches_of(model, (x, x))
    assert len(found) == 2


@pytest.mark.parametrize("shape", [(10, 8, 8), (10, 3, 8, 8), (10, 64)])
def test_shapes_that_the_model_cannot_take(shape):
    with pytest.raises(RuntimeError) as expected:
        Conv()(torch.randn(shape))
    with pytest.raises(RuntimeError, match=re.escape(str(expected.value))) as caught:
        run(Conv(), torch.randn(shape))
    if sys.version_info >= (3, 11):
        note = f"While running the background, inputs of shape {shape}."
        assert caught.value.__notes__ == [note]


@pytest.mark.parametrize(
    "kind", [RuntimeError, NotImplementedError, ValueError, KeyError, KeyboardInterrupt]
)
def test_an_error_in_forward_keeps_its_type(kind):
    thrown = kind("as it was")

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise thrown

    with pytest.raises(kind) as caught:
        run(Fails(), torch.randn(4, 3))
    assert caught.value is thrown


def test_the_model_never_sees_a_batch_of_another_shape():
    seen = []
    model = Conv()
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    x = torch.randn(4, 1, 5, 5)
    words = re.escape("shapes [(1, 5)] in one batch, expected [(1, 5, 5)]")
    with pytest.raises(ValueError, match=words):
        run(model, [x, x[..., 0]])
    assert seen == [x.shape]


def test_streams_are_streamed():
    drawn = []

    def stream() -> object:
        for i in range(3):
            drawn.append(i)
            yield torch.full((4, 1, 5, 5), float(i))

    batches = batches_of(Conv(), stream())
    assert drawn == []
    next(batches)
    assert drawn == [0]


def test_loaders_move_to_the_device_of_the_model():
    model = Two()
    model.register_parameter("p", nn.Parameter(torch.zeros(1, device="meta")))
    loader = DataLoader(TensorDataset(torch.zeros(4), torch.zeros(4)), batch_size=2)
    for inputs, _ in batches_of(model, loader):
        assert [x.device.type for x in inputs] == ["meta", "meta"]


def test_dtypes_that_change_on_the_way():
    model = Two()
    batches = [(torch.ones(3), torch.ones(3)), (torch.ones(3), torch.ones(3).double())]
    with pytest.raises(ValueError, match=r"torch.float64.*one batch.*another"):
        run(model, batches)


def test_check_samples_takes_scalars_per_sample():
    population = run(Two(), (torch.randn(5), torch.randn(5)))
    check_samples((torch.randn(2), torch.randn(2)), population)
    with pytest.raises(ValueError, match=r"input 1 have shape \(3,\).*\(1,\)"):
        check_samples((torch.randn(2), torch.randn(2, 3)), population)


def test_fingerprints_tell_models_apart():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    before = fingerprint(net)
    assert fingerprint(copy.deepcopy(net)) == before
    assert fingerprint(net.requires_grad_(False)) == before

    def changed(change: object) -> bool:
        twin = copy.deepcopy(net)
        change(twin)
        return fingerprint(twin) != before

    assert changed(lambda n: n[0].weight.data.add_(1e-6))
    assert changed(lambda n: n[1].running_mean.add_(1e-6))
    assert changed(lambda n: n[1].num_batches_tracked.add_(1))
    assert changed(lambda n: n[0].load_state_dict(n[2].state_dict()))
    assert changed(lambda n: setattr(n[0].weight, "data", n[0].weight.data.T))
    assert changed(nn.Module.double)
    assert changed(nn.Module.bfloat16)
    assert changed(nn.Module.eval)
    assert not changed(lambda n: n[0].eval())
    assert changed(lambda n: n.to("meta"))
    assert changed(lambda n: n.__setitem__(1, nn.LayerNorm(3)))
    assert changed(lambda n: setattr(n[1], "eps", 0.1))
    assert changed(lambda n: n[2].register_forward_hook(print))
    assert changed(lambda n: n.append(nn.ReLU()))


def test_fingerprints_of_large_tensors_count_their_changes():
    net = nn.Linear(1000, 1000)
    before = fingerprint(net)
    copied = pickle.loads(pickle.dumps(before))
    assert fingerprint(net) == before
    assert fingerprint(copy.deepcopy(net)) == copied  # counts start anew in a copy
    with torch.no_grad():
        net.weight[3, 5] += 1.0
    assert fingerprint(net) != before
    net.weight.data.mul_(1.01)  # past torch's count
    assert fingerprint(net) != copied


def test_fingerprints_let_a_module_count_its_calls():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    net = nn.Sequential(nn.Linear(2, 2), Counting())
    before = fingerprint(net)
    net(torch.zeros(1, 2))
    assert fingerprint(net) == before


def test_fingerprints_of_odd_tensors():
    model = nn.Module()
    model.register_buffer("scalar", torch.tensor(1))
    model.register_buffer("empty", torch.zeros(0, 3))
    model.register_buffer("flags", torch.tensor([True, False]))
    model.register_buffer("waves", torch.tensor([1 + 2j]))
    model.register_buffer("strided", torch.arange(6).view(2, 3).T)
    first = fingerprint(model)
    model.waves[0] = 2 + 1j
    assert fingerprint(model) != first
