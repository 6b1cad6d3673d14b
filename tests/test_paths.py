import operator
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import EIGHTHS, dense, flow_graphs, paths

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.graph.path_sums import at_least_single, backward_sums, incoming_totals


@given(flow_graphs(), st.integers(1, 3), st.sampled_from([None, "layer", "node"]))
def test_a_batch_of_weights_gives_the_sums_of_each_graph(graph, batch, normalize):
    end = graph.layers[-1]
    scale = torch.arange(1.0, batch + 1, dtype=torch.float64)
    links = [SimpleNamespace(source=k.source, target=k.target) for k in graph.links]
    weights = {
        (link.source, link.target): scale[:, None, None] * link.weight.to_dense()
        for link in graph.links
    }
    seed = torch.eye(end.size, dtype=torch.float64)[:, None].expand(-1, batch, -1)
    sums = backward_sums(
        graph.layers,
        links,
        end.name,
        seed,
        weight_of=lambda link: weights[link.source, link.target],
        normalize=normalize,
    )
    features = torch.cat([sums[layer.name] for layer in graph.inputs], dim=-1)
    for sample in range(batch):
        single = FlowGraph(
            graph.layers, [Link(*pair, w[sample]) for pair, w in weights.items()]
        )
        if normalize is not None:
            single = single.normalized(by=normalize)
        wanted = single.path_sums().double()  # single precision without links
        torch.testing.assert_close(
            features[:, sample].mT, wanted, rtol=1e-12, atol=1e-12
        )


@given(flow_graphs(), st.data())
def test_gains_weigh_every_path_that_goes_through_a_node(graph, data):
    end = graph.layers[-1]
    chosen = data.draw(st.sets(st.sampled_from([k.name for k in graph.layers])))
    gains = {
        layer.name: torch.tensor(
            data.draw(st.lists(EIGHTHS, min_size=layer.size, max_size=layer.size)),
            dtype=torch.float64,
        )
        for layer in graph.layers
        if layer.name in chosen
    }
    seed = torch.eye(end.size, dtype=torch.float64)
    weight_of = operator.attrgetter("weight")
    sums = backward_sums(
        graph.layers, graph.links, end.name, seed, weight_of, gains=gains
    )
    weight = dense(graph)
    for layer in graph.layers[:-1]:
        for node, last in product(range(layer.size), range(end.size)):
            wanted = 0.0
            for path in paths(graph, (layer.name, node), (end.name, last)):
                term = 1.0
                for (a, i), (b, j) in pairwise(path):
                    term *= weight[a, b][i][j]
                    if b in gains:  # passed through or ended in, not begun from
                        term *= float(gains[b][j])
                wanted += term
            assert float(sums[layer.name][last, node]) == wanted


@given(flow_graphs(), st.sampled_from(["layer", "node"]))
def test_gains_weigh_weights_that_were_normalized_before(graph, normalize):
    end = graph.layers[-1]
    gains = {
        layer.name: 0.5 + torch.arange(layer.size, dtype=torch.float64)
        for layer in graph.layers
    }
    seed = torch.eye(end.size, dtype=torch.float64)
    weight_of = operator.attrgetter("weight")
    found = backward_sums(
        graph.layers, graph.links, end.name, seed, weight_of, normalize, gains
    )
    divided = graph.normalized(by=normalize)
    wanted = backward_sums(
        graph.layers, divided.links, end.name, seed, weight_of, None, gains
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_a_batch_of_gains_serves_each_sample():
    layers = [Layer("x", 1, "input"), Layer("h", 2, "hidden"), Layer("y", 1, "output")]
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    gains = {"h": torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 5.0]])}
    for stored in (first, first.to_sparse()):
        links = [Link("x", "h", stored), Link("h", "y", second)]
        sums = backward_sums(
            layers,
            links,
            "y",
            torch.ones(3, 1),
            operator.attrgetter("weight"),
            gains=gains,
        )
        assert sums["x"].flatten().tolist() == [11.0, 3.0, 40.0]
        assert torch.equal(gains["h"][0], torch.ones(2)), "left as it came"


@given(flow_graphs())
def test_every_layer_is_answered_and_asked_only_for_what_leads_to_the_end(graph):
    end = graph.layers[-1]
    leading, asked = {end.name}, []
    for layer in reversed(graph.layers):
        if any(
            link.source == layer.name and link.target in leading for link in graph.links
        ):
            leading.add(layer.name)

    def weight_of(link):
        asked.append((link.source, link.target))
        return link.weight

    seed = torch.ones(end.size, dtype=torch.float64)
    sums = backward_sums(graph.layers, graph.links, end.name, seed, weight_of)
    wanted = [(k.source, k.target) for k in graph.links if k.target in leading]
    assert sorted(asked) == sorted(wanted)
    for layer in graph.layers:
        assert sums[layer.name].shape == (layer.size,)
        if layer.name not in leading:
            assert not sums[layer.name].any()


def test_sums_can_be_differentiated():
    layers = [Layer("x", 2, "input"), Layer("h", 3, "hidden"), Layer("y", 1, "output")]
    parts = [torch.rand(2, 3), torch.rand(3, 1), torch.rand(2, 1)]
    parts = [part.double().requires_grad_() for part in parts]

    def sums(*weights):
        ends = [("x", "h"), ("h", "y"), ("x", "y")]
        links = [Link(*pair, w) for pair, w in zip(ends, weights, strict=True)]
        return FlowGraph(layers, links).path_sums(0)

    assert torch.autograd.gradcheck(sums, parts)


def test_sparse_weights_serve_a_batch_of_seeds():
    layers = [Layer("x", 3, "input"), Layer("y", 2, "output")]
    weight = torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0]])
    seed = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [0.0, 0.0]]])
    for stored in (weight, weight.to_sparse()):
        links = [Link("x", "y", stored)]
        sums = backward_sums(layers, links, "y", seed, operator.attrgetter("weight"))
        torch.testing.assert_close(sums["x"], seed @ weight.mT)


def test_totals_of_half_precision_do_not_overflow():
    weight = torch.full((4, 2), 60000.0, dtype=torch.float16)
    for stored in (weight, weight.to_sparse()):
        assert incoming_totals([stored, stored], "node").tolist() == [480000.0] * 2
        assert incoming_totals([stored, stored], "layer").tolist() == [960000.0] * 2


def test_totals_name_the_normalizations_there_are():
    with pytest.raises(ValueError, match=r"'layer', 'node'.*got 'column'"):
        incoming_totals([torch.ones(1, 1)], "column")


def test_computed_in_at_least_single_precision():
    assert at_least_single() == torch.float32
    assert at_least_single(torch.float16, torch.bfloat16) == torch.float32
    assert at_least_single(torch.float16, torch.float64) == torch.float64
