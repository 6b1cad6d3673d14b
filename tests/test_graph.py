import itertools
import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import dense, flow_graphs, paths

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link


def chain(*weights):
    """A graph without skips: input, h1, h2, ..., output."""
    sizes = [len(weights[0]), *(len(weight[0]) for weight in weights)]
    kinds = ["input", *(["hidden"] * (len(weights) - 1)), "output"]
    layers = [
        Layer(kind if kind != "hidden" else f"h{n}", size, kind)
        for n, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    ]
    links = [
        Link(layers[n].name, layers[n + 1].name, torch.as_tensor(weight))
        for n, weight in enumerate(weights)
    ]
    return FlowGraph(layers, links)


# Path sums


@given(flow_graphs())
def test_path_sums_equal_enumeration_of_all_paths(graph):
    weight = dense(graph)

    def product(path):
        return math.prod(
            weight[a, b][i][j] for (a, i), (b, j) in itertools.pairwise(path)
        )

    features = [(each.name, i) for each in graph.inputs for i in range(each.size)]
    for layer in graph.layers:
        wanted = [
            [
                sum(map(product, paths(graph, feature, (layer.name, node))))
                for node in range(layer.size)
            ]
            for feature in features
        ]
        assert graph.path_sums(layer=layer.name).tolist() == wanted
        for node in range(-layer.size, layer.size):
            column = [row[node] for row in wanted]
            assert graph.path_sums(node, layer.name).tolist() == column


def test_path_sums_of_a_chain_are_the_matrix_product():
    weights = [torch.rand(4, 3), torch.rand(3, 5), torch.rand(5, 2)]
    sums = chain(*weights).path_sums()
    torch.testing.assert_close(sums, weights[0] @ weights[1] @ weights[2])


def test_only_paths_that_end_at_the_hidden_node_count():
    # x reaches h directly; y lies behind h and must not add to it.
    graph = FlowGraph(
        [Layer("x", 1, "input"), Layer("h", 2, "hidden"), Layer("y", 1, "output")],
        [
            Link("x", "h", torch.tensor([[2.0, 3.0]])),
            Link("h", "y", torch.tensor([[5.0], [7.0]])),
            Link("x", "y", torch.tensor([[11.0]])),
        ],
    )
    assert graph.path_sums(layer="h").tolist() == [[2.0, 3.0]]
    assert graph.path_sums(1, layer="h").tolist() == [3.0]
    assert graph.path_sums(0).tolist() == [2 * 5 + 3 * 7 + 11]
    assert graph.path_sums(layer="x").tolist() == [[1.0]]


def test_several_inputs_follow_each_other():
    graph = FlowGraph(
        [
            Layer("early", 2, "input"),
            Layer("h", 1, "hidden"),
            Layer("late", 1, "input"),
            Layer("y", 1, "output"),
        ],
        [
            Link("late", "y", torch.tensor([[9.0]])),
            Link("early", "h", torch.tensor([[1.0], [2.0]])),
            Link("h", "y", torch.tensor([[3.0]])),
        ],
    )
    assert graph.path_sums(0).tolist() == [3.0, 6.0, 9.0]
    assert graph.path_sums(0, layer="h").tolist() == [1.0, 2.0, 0.0]


def test_path_sums_of_half_precision_are_single():
    weights = [torch.full((4, 4), 200.0, dtype=torch.float16)] * 3
    sums = chain(*weights).path_sums()
    assert sums.dtype == torch.float32
    assert sums.tolist() == [[16 * 200.0**3] * 4] * 4


def test_dtypes_may_differ_between_links():
    sums = chain(
        torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bfloat16)
    ).path_sums()
    assert sums.dtype == torch.float64
    assert sums.tolist() == [[1.0]]


def test_a_thousand_layers_are_no_burden():
    # 2^999 paths per pair of nodes.
    graph = chain(*[torch.full((2, 2), 0.5)] * 1000)
    assert graph.path_sums().tolist() == [[0.5, 0.5]] * 2


def test_targets_may_be_numpy_integers():
    graph = chain(torch.tensor([[1.0, 2.0]]))
    assert graph.path_sums(np.int64(1)).tolist() == [2.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": 2}, IndexError, "target 2.*layer 'output' with 2 nodes"),
        ({"target": -3}, IndexError, "target -3 is out of range"),
        ({"target": 1.0}, TypeError, "int or None, got float"),
        ({"target": True}, TypeError, "int or None, got bool"),
        ({"layer": "fc7"}, ValueError, "no layer 'fc7'.*'input', 'output'"),
    ],
)
def test_path_sums_refuse_unknown_ends(arguments, error, message):
    with pytest.raises(error, match=message):
        chain(torch.ones(1, 2)).path_sums(**arguments)


def test_path_sums_need_inputs_and_one_output():
    hidden = [Layer("h", 1, "hidden"), Layer("y", 1, "output")]
    with pytest.raises(ValueError, match="path sums start at inputs"):
        FlowGraph(hidden, []).path_sums()
    two = [Layer("x", 1, "input"), Layer("y", 1, "output"), Layer("z", 1, "output")]
    with pytest.raises(ValueError, match=r"2 outputs \['y', 'z'\]"):
        FlowGraph(two, []).path_sums()
    assert FlowGraph(two, []).path_sums(layer="z").tolist() == [[0.0]]


# Normalization


@given(flow_graphs(), st.sampled_from(["layer", "node"]))
def test_normalized_equals_division_entry_by_entry(graph, by):
    weight = dense(graph)
    for link in graph.normalized(by=by).links:
        for row, column in np.ndindex(*link.weight.shape):
            total = sum(
                abs(value)
                for (_, target), matrix in weight.items()
                for values in matrix
                for place, value in enumerate(values)
                if target == link.target and (by == "layer" or place == column)
            )
            given_weight = weight[link.source, link.target][row][column]
            wanted = given_weight / total if total else 0.0
            assert link.weight.to_dense()[row, column].item() == wanted


@given(flow_graphs())
def test_normalized_keeps_names_layouts_and_zeros(graph):
    result = graph.normalized()
    assert result.layers == graph.layers
    for before, after in zip(graph.links, result.links, strict=True):
        assert (after.source, after.target) == (before.source, before.target)
        assert after.weight.layout == before.weight.layout
        zeros = before.weight.to_dense() == 0
        assert (after.weight.to_dense()[zeros] == 0).all()


def test_normalized_by_layer_is_the_default():
    graph = chain(torch.tensor([[1.0, -2.0], [0.0, 1.0]]))
    assert graph.normalized().links[0].weight.tolist() == [[0.25, -0.5], [0.0, 0.25]]
    with pytest.raises(ValueError, match="got 'edge'"):
        graph.normalized(by="edge")


# The strongest connections


@given(flow_graphs(), st.integers(0, 16).map(lambda n: n / 16))
def test_top_keeps_the_fewest_that_carry_the_share(graph, fraction):
    weight = dense(graph)
    kept = graph.top(fraction)
    assert kept.layers == graph.layers
    assert [(k.source, k.target) for k in kept.links] == [*weight]
    for layer in graph.layers:
        entries = [
            (value, (source, row, column))
            for (source, target), matrix in weight.items()
            if target == layer.name
            for row, values in enumerate(matrix)
            for column, value in enumerate(values)
        ]
        # Python's sort is stable: equals stay in the order of links and nodes.
        strongest = sorted(entries, key=lambda entry: -abs(entry[0]))
        wanted, carried = {}, 0.0
        total = sum(abs(value) for value, _ in entries)
        for value, place in strongest:
            if value == 0 or carried >= fraction * total:
                break
            wanted[place] = value
            carried += abs(value)
        found = {
            (link.source, row, column): value
            for link in kept.links
            if link.target == layer.name
            for row, column, value in zip(
                *(part.tolist() for part in link.entries()), strict=True
            )
        }
        assert found == wanted


def test_top_stores_only_what_it_keeps():
    link = chain(torch.tensor([[1.0, 5.0], [-3.0, 1.0]])).top(0.8).links[0]
    assert link.weight.is_sparse
    assert link.weight._nnz() == 2
    assert link.weight.to_dense().tolist() == [[0.0, 5.0], [-3.0, 0.0]]


def test_top_of_everything_keeps_what_rounding_would_lose():
    link = chain(torch.tensor([[1.0, 1e-30, 0.0]])).top(1).links[0]
    assert link.weight.to_dense().tolist() == [[1.0, torch.tensor(1e-30).item(), 0.0]]


@pytest.mark.parametrize(
    ("fraction", "error"),
    [(-0.1, ValueError), (1.1, ValueError), (math.nan, ValueError), ("1", TypeError)],
)
def test_top_refuses_what_is_no_share(fraction, error):
    with pytest.raises(error, match="fraction must"):
        chain(torch.ones(1, 1)).top(fraction)


# p-values


def with_pvalues(graph, seed=0):
    """The graph with p-values, of which about a third are tiny."""
    generator = torch.Generator().manual_seed(seed)
    links = []
    for link in graph.links:
        pvalue = torch.rand(link.weight.shape, generator=generator).double()
        links.append(
            replace(link, pvalue=torch.where(pvalue < 0.3, 1e-3 * pvalue, pvalue))
        )
    return FlowGraph(graph.layers, links)


@given(flow_graphs(), st.floats(1e-4, 0.9))
def test_significant_keeps_what_benjamini_and_hochberg_would(graph, level):
    graph = with_pvalues(graph)
    if not graph.links:
        return
    together = sorted(p for x in graph.links for p in x.pvalue.flatten().tolist())
    # The largest p-value that is at most level times its rank over their number.
    passed = [
        p
        for rank, p in enumerate(together, start=1)
        if p * len(together) / rank <= level
    ]
    limit = max(passed, default=-1.0)
    kept = graph.significant(level)
    assert kept.layers == graph.layers
    for before, after in zip(graph.links, kept.links, strict=True):
        assert after.ends == before.ends
        assert after.weight.layout == before.weight.layout
        assert after.weight.dtype == before.weight.dtype
        assert torch.equal(after.pvalue, before.pvalue)
        wanted = torch.where(before.pvalue <= limit, before.weight.to_dense(), 0.0)
        assert torch.equal(after.weight.to_dense(), wanted)


@given(flow_graphs())
def test_choosing_links_makes_none_more_significant(graph):
    graph = with_pvalues(graph)
    if not graph.links:
        return
    adjusted = graph.adjusted_pvalues()
    named = {f"layer{n}": ["a"] * x.size for n, x in enumerate(graph.layers)}
    for other in (
        graph.top(0.3),
        graph.normalized("layer"),
        graph.normalized("node"),
        graph.significant(),
        graph.named(**named),
    ):
        found = other.adjusted_pvalues()
        assert found.keys() == adjusted.keys()
        assert all(torch.equal(found[ends], adjusted[ends]) for ends in found)


def test_pvalues_are_needed_on_every_link():
    graph = chain([[1.0]], [[1.0]])
    assert not graph.has_pvalues
    assert with_pvalues(graph).has_pvalues
    half = FlowGraph(graph.layers, [with_pvalues(graph).links[0], graph.links[1]])
    assert not half.has_pvalues
    for some, count in ((graph, 2), (half, 1)):
        with pytest.raises(ValueError, match=f"{count} of 2 links have no p-values"):
            some.significant()
        with pytest.raises(ValueError, match=f"{count} of 2 links have no p-values"):
            some.adjusted_pvalues()
    assert not FlowGraph(graph.layers, []).has_pvalues
    for level in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            with_pvalues(graph).significant(level)


# networkx


@given(flow_graphs())
def test_networkx_holds_the_same_nodes_and_weights(graph):
    network = graph.to_networkx()
    weight = dense(graph)
    wanted = {
        ((source, row), (target, column)): matrix[row][column]
        for (source, target), matrix in weight.items()
        for row in range(len(matrix))
        for column in range(len(matrix[0]))
        if matrix[row][column] != 0
    }
    found = {(a, b): value for a, b, value in network.edges(data="weight")}
    assert found == wanted
    assert all(type(value) is float for value in found.values())
    assert [*network.nodes] == [
        (layer.name, index) for layer in graph.layers for index in range(layer.size)
    ]
    assert nx.is_directed_acyclic_graph(network)


def test_networkx_edges_carry_pvalues():
    graph = with_pvalues(chain([[0.5, 0.0], [0.2, 0.1]]))
    pvalue = graph.links[0].pvalue
    for (_, i), (_, j), data in graph.to_networkx().edges(data=True):
        assert data["pvalue"] == pvalue[i, j].item()
    assert graph.to_networkx().number_of_edges() == 3
    for _, _, data in chain([[0.5]]).to_networkx().edges(data=True):
        assert data == {"weight": 0.5}


def test_networkx_nodes_say_who_they_are():
    graph = FlowGraph(
        [
            Layer("image", 4, "input", shape=(2, 2)),
            Layer("y", 2, "output", labels=("cat", "dog")),
        ],
        [],
    )
    nodes = graph.to_networkx().nodes
    assert nodes["image", 3] == {
        "layer": "image",
        "index": 3,
        "kind": "input",
        "label": "image[1, 1]",
    }
    assert nodes["y", 0]["label"] == "cat"


# Construction


LAYERS = [Layer("x", 2, "input"), Layer("h", 2, "hidden"), Layer("y", 2, "output")]
ONES = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("layers", "links", "error", "message"),
    [
        ([], [], ValueError, "at least one layer"),
        (["x"], [], TypeError, "expected a Layer, got str"),
        (LAYERS, [("x", "h", ONES)], TypeError, "expected a Link, got tuple"),
        ([LAYERS[0]] * 2, [], ValueError, r"unique, got \['x', 'x'\]"),
        (LAYERS, [Link("x", "fc", ONES)], ValueError, "no layer 'fc'.*'x', 'h', 'y'"),
        (LAYERS, [Link("y", "h", ONES)], ValueError, "topological order"),
        (LAYERS, [Link("h", "h", ONES)], ValueError, "topological order"),
        (
            [LAYERS[1], LAYERS[0]],
            [Link("h", "x", ONES)],
            ValueError,
            "'h' -> 'x' runs into an input",
        ),
        (LAYERS, [Link("x", "h", ONES[:1])], ValueError, r"\(1, 2\).*\(2, 2\)"),
        (LAYERS, [Link("x", "h", ONES)] * 2, ValueError, "'x' -> 'h' is given twice"),
    ],
)
def test_graph_refuses_what_is_no_graph(layers, links, error, message):
    with pytest.raises(error, match=message):
        FlowGraph(layers, links)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_graph_refuses_weights_on_several_devices():
    links = [Link("x", "h", ONES), Link("h", "y", ONES.cuda())]
    with pytest.raises(ValueError, match=r"one device, got \['cpu', 'cuda:0'\]"):
        FlowGraph(LAYERS, links)


def test_graph_keeps_its_own_lists():
    layers, links = list(LAYERS), [Link("x", "h", ONES)]
    graph = FlowGraph(layers, links)
    layers.clear()
    links.clear()
    assert graph.layers == LAYERS
    assert len(graph.links) == 1


def test_graphs_are_equal_by_value():
    graph = FlowGraph(LAYERS, [Link("x", "h", ONES)])
    assert graph == FlowGraph(LAYERS, [Link("x", "h", ONES.clone())])
    assert graph != FlowGraph(LAYERS, [Link("x", "h", 2 * ONES)])
    assert graph != FlowGraph(LAYERS, [])
    assert graph != FlowGraph(LAYERS[:2], [Link("x", "h", ONES)])
    assert graph != LAYERS


def test_repr_tells_layers_sizes_and_sources():
    graph = FlowGraph(
        [
            Layer("image", 12, "input", shape=(3, 2, 2)),
            Layer("conv", 2, "hidden"),
            Layer("fc", 1, "output"),
        ],
        [
            Link("image", "conv", torch.ones(12, 2)),
            Link("conv", "fc", torch.ones(2, 1)),
            Link("image", "fc", torch.ones(12, 1)),
        ],
    )
    assert repr(graph).splitlines() == [
        "FlowGraph(3 layers, 15 nodes, 3 links)",
        "  image  input   3 x 2 x 2 nodes",
        "  conv   hidden  2 nodes          from image",
        "  fc     output  1 node           from conv, image",
    ]


@given(flow_graphs())
def test_nothing_changes_the_graph(graph):
    before = FlowGraph(
        graph.layers,
        [Link(link.source, link.target, link.weight.clone()) for link in graph.links],
    )
    graph.path_sums()
    graph.normalized()
    graph.normalized("node")
    graph.top(0.5)
    graph.to_networkx()
    assert graph == before


def test_names_are_given_by_layer_or_by_kind():
    layers = [
        Layer("x", 2, "input"),
        Layer("fc1", 2, "hidden"),
        Layer("fc2", 1, "output", labels=("old",)),
    ]
    graph = FlowGraph(layers, [Link("x", "fc1", torch.ones(2, 2))])
    named = graph.named(input=["a", "b"], fc1=["u", "v"])
    assert [layer.labels for layer in named.layers] == [
        ("a", "b"),
        ("u", "v"),
        ("old",),
    ]
    assert named.links == graph.links
    assert [layer.labels for layer in graph.layers] == [None, None, ("old",)]
    with pytest.raises(ValueError, match="no layer 'fc9'"):
        graph.named(fc9=["a"])
    with pytest.raises(ValueError, match="3 labels for 2 nodes"):
        graph.named(x=["a", "b", "c"])


def test_a_kind_with_two_layers_is_no_name():
    layers = [Layer(name, 1, "input") for name in ("input0", "input1")]
    with pytest.raises(ValueError, match="no layer 'input'"):
        FlowGraph(layers, []).named(input=["a"])
