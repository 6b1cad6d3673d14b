import operator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import flow_graphs

from captum_nif.graph import FlowGraph, Layer, Link
from captum_nif.paths import at_least_single, backward_sums, incoming_totals


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
