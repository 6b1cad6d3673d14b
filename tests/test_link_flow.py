"""Flow through links: against loops over weights, and sums that must agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_nif import (
    FlowGraph,
    NIFAttribution,
    betweenness_centrality,
    communities,
    summarize,
)
from captum_nif.flow.linear_maps import pair_products


def loops(
    module: nn.Module, x: Tensor, w: Tensor, owners: Tensor, magnitudes: bool
) -> Tensor:
    """Every weight by itself: what it makes of every element, one after the other."""
    size = lambda t: t.abs() if magnitudes else t  # noqa: E731
    flow = torch.zeros(int(owners.max()) + 1, w.shape[-1 if w.dim() < 4 else 1])
    for place in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)):
        at = tuple(place.tolist())
        if owners[at] < 0:
            continue
        one = torch.zeros_like(x)
        one[at] = 1.0
        slopes = module(one) - module(torch.zeros_like(x))  # its weights
        products = size(x[at]) * size(slopes) * size(w)
        axis = -1 if w.dim() < 4 else 1
        flow[owners[at]] += products.movedim(axis, -1).flatten(0, -2).sum(0)
    return flow.double()


MAPS = {
    "linear": (nn.Linear(5, 3), (2, 5)),
    "linear over tokens": (nn.Linear(3, 2), (2, 4, 3)),
    "convolution": (nn.Conv2d(2, 3, 3, padding=1), (2, 2, 4, 4)),
    "strided": (nn.Conv2d(2, 4, 2, stride=2, dilation=1, bias=False), (1, 2, 4, 4)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 4, 4)),
    "depthwise": (nn.Conv2d(3, 6, 2, groups=3), (1, 3, 3, 3)),
    "circular": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (1, 2, 3, 3)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 3, 3)),
    "transposed groups": (nn.ConvTranspose2d(4, 4, 2, groups=2), (1, 4, 2, 2)),
}


@pytest.mark.parametrize("magnitudes", [False, True])
@pytest.mark.parametrize("by", ["column", "element"])
@pytest.mark.parametrize("name", MAPS)
def test_pair_products_are_those_of_loops_over_elements(name, by, magnitudes):
    module, shape = MAPS[name]
    x = torch.randn(shape)
    with torch.no_grad():
        w = torch.randn_like(module(x))
    if by == "column":
        axis = x.dim() - 1 if isinstance(module, nn.Linear) else 1
        line = torch.arange(shape[axis]) // 2
        owners = line.view([-1 if d == axis else 1 for d in range(x.dim())])
    else:
        owners = torch.arange(x[0].numel()).view(x.shape[1:])
    owners = owners.expand(x.shape)
    with torch.no_grad():
        expected = loops(module, x, w, owners, magnitudes)
    found = pair_products(module, x, w, owners, len(expected), magnitudes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_elements_of_no_node_have_no_part():
    owners = torch.tensor([[0, -1, 1, 1, 0]])
    found = pair_products(
        nn.Linear(5, 3), torch.ones(1, 5), torch.ones(1, 3), owners, 2
    )
    assert found.shape == (2, 3)
    none = pair_products(
        nn.Linear(2, 3), torch.ones(1, 2), torch.ones(1, 3), torch.tensor([[1, -1]]), 2
    )
    assert not none[0].any()


class Residual(nn.Module):
    """Skips, a sum, a concatenation, groups, strides and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.c3, self.fc = nn.Conv2d(8, 6, 3, stride=2), nn.Linear(6 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b1(self.c1(x)))
        k = F.relu(self.c2(h) + h)
        z = F.relu(self.c3(torch.cat([k, h], 1)))
        return self.fc(F.max_pool2d(z, 2, 1, 1)[:, :, :3, :3].flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


class Skip(nn.Module):
    """Its output is made by no layer: a sum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return h + self.b(h)


class TimeFirst(nn.Module):
    """[T, N, C] between its layers, and an input that is moved and scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def between(self, z: Tensor) -> Tensor:
        return torch.tanh(self.b(z))

    def forward(self, x: Tensor) -> Tensor:
        z = self.between(torch.relu(self.a(x.transpose(0, 1).flip(0) / 3 - 1)))
        return self.head(z.mean(0))


class AttentionTimeFirst(TimeFirst):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 2)

    def between(self, z: Tensor) -> Tensor:
        return z + self.b(z, z, z, need_weights=False)[0]


class Merged(TimeFirst):
    """[N * T, C] between its layers."""

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        z = self.between(torch.relu(self.a(x.reshape(n * t, -1))))
        return self.head(z.view(n, t, -1).mean(1))


class GatedRecurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.transpose(0, 1))[0].mean(0))


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)
        ),
        (4,),
    ),
    "residual": (Residual, (1, 8, 8)),
    "in place": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4, 5, 2, stride=2),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        ),
        (3, 6, 6),
    ),
    "recurrent": (Recurrent, (5, 3)),
    "skip": (Skip, (4,)),
    # As many times as hybrids and samples, and as one is not.
    "time first": (TimeFirst, (17, 3)),
    "time first, few": (TimeFirst, (5, 3)),
    "attention, time first": (AttentionTimeFirst, (10, 3)),
    "merged": (Merged, (10, 3)),
    "GRU": (GatedRecurrent, (17, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_leaves_a_node_is_what_flows_through_it(name):
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(3, *shape)
    nif = NIFAttribution(model, preset="faithful").fit(torch.randn(60, *shape))
    targets = [0, 1, 0]
    maps, units = nif.attribute(x, targets), nif.unit_flow(x, targets)
    for i, graph in enumerate(nif.sample_graphs(x, targets)):
        assert graph.unit == "units of the target"
        through = {"input": maps[i].flatten().double()}
        through |= {layer: flow[i] for layer, flow in units.items()}
        for layer, expected in through.items():
            leaving = sum(
                link.weight.sum(1) for link in graph.links if link.source == layer
            )
            torch.testing.assert_close(leaving, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_population_graph_is_a_graph_for_every_view(name):
    make, shape = NETWORKS[name]
    model, background = make().eval(), torch.randn(60, *shape)
    nif = NIFAttribution(model, preset="faithful").fit(background)
    graph = nif.flow()
    assert all((link.weight >= 0).all() for link in graph.links)
    assert any(link.weight.any() for link in graph.links)
    communities(graph)
    summarize(graph, betweenness_centrality(graph))
    one = nif.population_graph(target=1)
    last = one.links[-1].weight
    assert last[:, 1].any()
    assert not last[:, [0, *range(2, last.shape[1])]].any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["residual", "recurrent"])
def test_the_callers_gradient_mode_does_not_matter(name, mode):
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(3, *shape)
    nif = NIFAttribution(model, preset="faithful").fit(torch.randn(60, *shape))
    expected = nif.sample_graphs(x, 1)
    with mode():
        found = nif.sample_graphs(x.clone(), 1)
    for graph, other in zip(found, expected, strict=True):
        assert graph == other
        assert not any(link.weight.requires_grad for link in graph.links)


def test_an_input_that_is_mixed_has_links_from_all_its_elements():
    """Which element a column stands for is not told then, what flows from each is."""
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    nif = NIFAttribution(model.eval(), preset="faithful").fit(torch.randn(60, 4))
    x = torch.randn(3, 4)
    maps = nif.attribute(x, 1)
    for i, graph in enumerate(nif.sample_graphs(x, 1)):
        leaving = graph.links[0].weight.sum(1).float()
        torch.testing.assert_close(leaving, maps[i], rtol=1e-4, atol=1e-6)


def test_magnitudes_are_averaged_over_samples():
    model, background = NETWORKS["mlp"][0]().eval(), torch.randn(40, 4)
    # of more hybrids, a population takes a quarter
    nif = NIFAttribution(model, preset="faithful", hybrids=4).fit(background)
    population = nif.population_graph(target=2)
    samples = nif.sample_graphs(background, 2)
    for i, link in enumerate(population.links):
        # In a chain of vectors a link has one place, so nothing cancels in a sample.
        mean = torch.stack([g.links[i].weight.abs() for g in samples]).mean(0)
        torch.testing.assert_close(link.weight, mean, rtol=1e-4, atol=1e-7)


def test_groups_and_layers_inside():
    model = NETWORKS["mlp"][0]().eval()
    nif = NIFAttribution(model, preset="faithful").fit(torch.randn(40, 4))
    mask = torch.tensor([0, 0, 1, 1])
    whole, grouped = nif.flow(), nif.flow(feature_mask=mask)
    assert [layer.size for layer in grouped.layers] == [2, 8, 6, 3]
    inside = nif.flow(layer="2", target=4)
    assert [layer.name for layer in inside.layers] == ["input", "0", "2"]
    assert inside.links[-1].weight[:, 4].any()
    assert whole.layers[0].size == 4


def test_a_graph_of_flow_is_saved_with_its_unit(tmp_path):
    model = NETWORKS["mlp"][0]().eval()
    graph = NIFAttribution(model, preset="faithful").fit(torch.randn(40, 4)).flow()
    graph.save(tmp_path / "flow")
    assert FlowGraph.load(tmp_path / "flow") == graph
    assert graph.top(0.5).unit == graph.unit
    assert graph.normalized("node").unit == "share of the flow into a node"
    with pytest.raises(ValueError, match=r"information.*flow"):
        NIFAttribution(model, preset="faithful").fit(torch.randn(40, 4)).flow(
            significance=True
        )
