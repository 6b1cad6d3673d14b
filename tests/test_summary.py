import math
from html.parser import HTMLParser

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from random_graphs import dense, flow_graphs

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.summary import flow_shares, summarize


def narrow_graph():
    """Two inputs into a wide layer, one of its nodes dead, then one bottleneck."""
    return FlowGraph(
        [
            Layer("x", 3, "input", labels=("age", "fare", "unused")),
            Layer("wide", 4, "hidden"),
            Layer("narrow", 2, "hidden"),
            Layer("y", 2, "output", labels=("no", "yes")),
        ],
        [
            Link(
                "x",
                "wide",
                torch.tensor([[1.0, 1.0, 0.9, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0] * 4]),
            ),
            Link(
                "wide",
                "narrow",
                torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.5]]),
            ),
            Link("narrow", "y", torch.tensor([[0.8, 0.7], [0.0, 0.0]])),
        ],
    )


def shares_by_hand(graph):
    """Flow traced back node by node, in reverse order of the layers."""
    weight = dense(graph)
    outputs = [layer for layer in graph.layers if layer.kind == "output"]
    ends = sum(layer.size for layer in outputs)
    share = {
        (layer.name, index): 1 / ends if layer.kind == "output" else 0.0
        for layer in graph.layers
        for index in range(layer.size)
    }
    for layer in reversed(graph.layers):
        for node in range(layer.size):
            into = {
                (source, i): abs(matrix[i][node])
                for (source, target), matrix in weight.items()
                if target == layer.name
                for i in range(len(matrix))
            }
            total = sum(into.values())
            for origin, value in into.items():
                if value:
                    share[origin] += share[layer.name, node] * value / total
    return share


@given(flow_graphs())
def test_shares_are_flow_traced_back_from_the_outputs(graph):
    found = flow_shares(graph)
    wanted = shares_by_hand(graph)
    for layer in graph.layers:
        assert found[layer.name].tolist() == pytest.approx(
            [wanted[layer.name, index] for index in range(layer.size)], abs=1e-12
        )


def test_shares_of_a_chain_without_dead_ends_sum_to_one():
    layers = [Layer("x", 5, "input"), Layer("h", 4, "hidden"), Layer("y", 3, "output")]
    links = [Link("x", "h", torch.randn(5, 4)), Link("h", "y", torch.randn(4, 3))]
    for share in flow_shares(FlowGraph(layers, links)).values():
        assert share.sum().item() == pytest.approx(1.0)


def test_summary_of_a_graph_worked_out_by_hand():
    summary = summarize(narrow_graph())
    x, wide, narrow, y = summary.layers
    assert [layer.name for layer in summary.layers] == ["x", "wide", "narrow", "y"]
    assert [layer.kind for layer in summary.layers] == [
        "input",
        "hidden",
        "hidden",
        "output",
    ]
    assert [layer.size for layer in summary.layers] == [3, 4, 2, 2]
    assert (x.flow_in, x.flow_out) == (0.0, pytest.approx(5.9))
    assert (wide.flow_in, wide.flow_out) == (pytest.approx(5.9), 3.5)
    assert narrow.flow_in == 3.5
    assert (y.flow_in, y.flow_out) == (pytest.approx(1.5), 0.0)
    assert x.dead == ("unused",)
    assert wide.dead == ("wide[3]",)
    assert narrow.dead == ("narrow[1]",)
    assert y.dead == ()
    assert narrow.effective_size == pytest.approx(1.0)
    assert wide.effective_size == pytest.approx(3.0)
    assert y.effective_size == pytest.approx(2.0)
    assert summary.bottleneck == "narrow"
    # narrow[0] lies between 5 nodes before it and 2 after it; narrow[1] is no link
    # from anywhere to an output.
    assert narrow.central == ("narrow[0]",)
    assert x.central == y.central == ()
    for number, total in enumerate(summary.communities):
        assert total == sum(layer.communities[number] for layer in summary.layers)
    assert sum(summary.communities) == 11


def test_values_given_are_used():
    graph = FlowGraph([Layer("x", 2, "input"), Layer("y", 3, "output")], [])
    summary = summarize(
        graph,
        betweenness={"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([0.0, 3.0, 3.0])},
        community={"x": torch.tensor([5, 9]), "y": torch.tensor([9, 9, 5])},
    )
    assert summary.layers[0].central == ("x[1]", "x[0]")
    assert summary.layers[1].central == ("y[1]", "y[2]")
    assert summary.communities == (2, 3)
    assert summary.layers[1].communities == (1, 2)


@settings(max_examples=30)
@given(flow_graphs())
def test_any_graph_has_a_summary(graph):
    summary = summarize(graph)
    for layer, row in zip(graph.layers, summary.layers, strict=True):
        assert 0.0 <= row.effective_size <= layer.size + 1e-9
        assert sum(row.communities) == layer.size
        assert math.isfinite(row.flow_in + row.flow_out)
    assert str(summary)


def test_prints_as_a_markdown_table():
    graph = FlowGraph(
        [Layer("a|b", 2, "input"), Layer("y", 1, "output")],
        [Link("a|b", "y", torch.tensor([[0.25], [0.0]]))],
    )
    lines = str(summarize(graph)).splitlines()
    assert lines == [
        "| layer | kind | nodes | flow in | flow out | dead | effective nodes "
        "| most central | in communities |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        "| a\\|b | input | 2 | 0 | 0.25 | 1 | 1.0 | - | 1 |",
        "| y | output | 1 | 0.25 | 0 | 0 | 1.0 | - | 1 |",
        "",
        "Bottleneck: none. Nodes in each community: 2; alone: 1.",
    ]


def test_significant_links_are_counted_where_pvalues_are_known():
    layers = [Layer("x", 2, "input"), Layer("h", 2, "hidden"), Layer("y", 1, "output")]
    first, second = (
        # One of these four is no connection, and one significant link is weak.
        (torch.tensor([[0.5, 0.2], [0.0, 0.01]]), [[1e-6, 0.5], [1.0, 1e-5]]),
        (torch.tensor([[0.5], [0.1]]), [[0.03], [0.9]]),
    )
    graph = FlowGraph(
        layers,
        [
            Link("x", "h", first[0], torch.tensor(first[1])),
            Link("h", "y", second[0], torch.tensor(second[1])),
        ],
    )
    summary = summarize(graph)
    assert [row.links_in for row in summary.layers] == [0, 3, 2]
    assert [row.significant_in for row in summary.layers] == [0, 2, 0]
    header, _, x, h, y, _, remarks = str(summary).splitlines()
    assert header.split(" | ")[5] == "significant in"
    assert [line.split(" | ")[5] for line in (x, h, y)] == ["-", "2 of 3", "0 of 2"]
    assert remarks.endswith(
        "Links that differ from independence at a false discovery rate of 0.05: 2 of 5."
    )
    assert "significant in" in summary._repr_html_()
    # 0.03 is the third of six: adjusted 0.06.
    assert summarize(graph, fdr=0.07).layers[2].significant_in == 1
    unknown = summarize(FlowGraph(layers, [Link("x", "h", torch.ones(2, 2))]))
    assert [row.significant_in for row in unknown.layers] == [None, None, None]
    assert "significant" not in str(unknown)


def test_html_shows_the_same_cells_and_escapes_names():
    cells = []

    class Cells(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag in {"table", "tr", "th", "td", "p"}
            self.tag = tag

        def handle_data(self, data):
            if self.tag == "td":
                cells.append(data)

    graph = FlowGraph([Layer("<script>", 1, "input", labels=("<b>",))], [])
    Cells().feed(summarize(graph)._repr_html_())
    assert cells == ["<script>", "input", "1", "0", "0", "1", "0.0", "-", "-"]


def test_negative_flow_counts_by_its_size_and_nothing_else():
    layers = [Layer("x", 2, "input"), Layer("h", 2, "hidden"), Layer("y", 1, "output")]
    links = [
        Link("x", "h", torch.tensor([[-0.5, 0.0], [-0.5, 0.0]])),
        Link("h", "y", torch.tensor([[-0.25], [0.5]])),
    ]
    x, h, y = summarize(FlowGraph(layers, links)).layers
    assert (x.flow_out, h.flow_in, h.flow_out, y.flow_in) == (1.0, 1.0, 0.75, 0.75)
    assert h.dead == ("h[1]",)
    assert x.central == h.central == y.central == ()


def test_bad_input():
    graph = narrow_graph()
    with pytest.raises(TypeError, match="must be a FlowGraph, got DiGraph"):
        summarize(nx.DiGraph())
    with pytest.raises(TypeError, match="must be a FlowGraph, got DiGraph"):
        flow_shares(nx.DiGraph())
    with pytest.raises(ValueError, match=r"betweenness has the layers \['x'\]"):
        summarize(graph, betweenness={"x": torch.zeros(3)})
    with pytest.raises(ValueError, match="must lie between 0 and 1, got 5"):
        summarize(graph, fdr=5)
    with pytest.raises(ValueError, match=r"partition has the layers \['x'\]"):
        summarize(graph, community={"x": torch.zeros(3).long()})


def test_a_layer_with_a_number_for_a_name_is_not_taken_for_a_count():
    layers = [Layer("input", 2, "input"), Layer("0", 1, "hidden")]
    layers.append(Layer("2", 2, "output"))
    links = [
        Link("input", "0", torch.tensor([[0.25], [0.5]])),
        Link("0", "2", torch.tensor([[0.5, 0.1]])),
    ]
    found = summarize(FlowGraph(layers, links))
    assert found.bottleneck == "0"
    assert "Bottleneck: layer 0. Nodes" in str(found)
