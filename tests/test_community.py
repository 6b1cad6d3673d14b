import subprocess
import sys
from fractions import Fraction

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import dense, flow_graphs

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.community import communities, gamma_sweep, modularity

METHODS = ["louvain", "greedy"]


def planted(blocks=3, within=1.0, between=0.05):
    """Three layers in which block b of one layer feeds block b of the next."""
    sizes = [blocks * 3, blocks * 2, blocks * 2]
    layers = [
        Layer(name, size, kind)
        for name, size, kind in zip(
            "xhy", sizes, ["input", "hidden", "output"], strict=True
        )
    ]
    block = [torch.arange(size) % blocks for size in sizes]
    links = [
        Link(
            layers[n].name,
            layers[n + 1].name,
            torch.where(block[n][:, None] == block[n + 1], within, between),
        )
        for n in range(2)
    ]
    truth = {layer.name: labels for layer, labels in zip(layers, block, strict=True)}
    return FlowGraph(layers, links), truth


def same_grouping(one, other):
    pairs = torch.stack((torch.cat([*one.values()]), torch.cat([*other.values()])))
    return (
        len(pairs.unique(dim=1).T) == len(pairs[0].unique()) == len(pairs[1].unique())
    )


@st.composite
def partitioned_graphs(draw):
    graph = draw(flow_graphs(max_size=4))
    return graph, {
        layer.name: torch.tensor(
            draw(st.lists(st.integers(-1, 3), min_size=layer.size, max_size=layer.size))
        )
        for layer in graph.layers
    }


def undirected(graph):
    network = graph.to_networkx()
    network.remove_edges_from(
        [(a, b) for a, b, w in network.edges(data="weight") if w <= 0]
    )
    return network.to_undirected()


@given(partitioned_graphs(), st.sampled_from([0.25, 0.5, 1.0, 3.0]))
def test_modularity_is_equation_two_word_for_word(drawn, gamma):
    graph, partition = drawn
    group = {
        (name, index): int(label)
        for name, labels in partition.items()
        for index, label in enumerate(labels)
    }
    weight = dict.fromkeys([(a, b) for a in group for b in group], Fraction(0))
    for (source, target), matrix in dense(graph).items():
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                if value > 0:
                    weight[(source, i), (target, j)] += Fraction(value)
                    weight[(target, j), (source, i)] += Fraction(value)
    degree = {a: sum(weight[a, b] for b in group) for a in group}
    twice_m = sum(degree.values())
    found = modularity(graph, partition, gamma)
    if not twice_m:
        assert found == 0.0
        return
    wanted = sum(
        weight[a, b] - degree[a] * degree[b] / twice_m / Fraction(gamma)
        for a in group
        for b in group
        if group[a] == group[b]
    )
    assert found == pytest.approx(float(wanted / twice_m), abs=1e-12)


@given(partitioned_graphs(), st.sampled_from([0.25, 0.5, 1.0, 3.0]))
def test_modularity_equals_networkx_at_the_reciprocal_resolution(drawn, gamma):
    graph, partition = drawn
    network = undirected(graph)
    if not network.number_of_edges():
        return
    groups = {}
    for name, index in network:
        groups.setdefault(int(partition[name][index]), set()).add((name, index))
    wanted = nx.community.modularity(network, groups.values(), resolution=1 / gamma)
    assert modularity(graph, partition, gamma) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_planted_communities_are_found(method):
    graph, truth = planted()
    found = communities(graph, method=method)
    assert same_grouping(found, truth)
    assert all(labels.dtype == torch.int64 for labels in found.values())
    # A few random groupings are worse.
    for _ in range(5):
        other = {name: torch.randint(0, 3, v.shape) for name, v in truth.items()}
        assert modularity(graph, other) < modularity(graph, found)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30)
@given(graph=flow_graphs(max_size=4))
def test_communities_are_numbered_by_size_then_first_node(method, graph):
    found = communities(graph, method=method)
    assert [*found] == [layer.name for layer in graph.layers]
    labels = torch.cat([*found.values()]).tolist()
    numbers = sorted(set(labels))
    assert numbers == [*range(len(numbers))]
    keys = [(-labels.count(number), labels.index(number)) for number in numbers]
    assert keys == sorted(keys)


def test_less_gamma_gives_more_communities():
    graph, truth = planted(blocks=4, between=0.3)
    steps = gamma_sweep(graph, gammas=(0.05, 1.0, 20.0))
    assert [step.gamma for step in steps] == [0.05, 1.0, 20.0]
    nodes = sum(layer.size for layer in graph.layers)
    assert [step.count for step in steps] == [nodes, 4, 1]
    assert same_grouping(steps[1].partition, truth)
    for step in steps:
        assert step.count == len(torch.cat([*step.partition.values()]).unique())
        assert step.modularity == modularity(graph, step.partition, step.gamma)
        assert step.standard_modularity == modularity(graph, step.partition)


def test_a_graph_of_noise_depends_on_the_seed_and_on_nothing_else(rng_untouched):
    layers = [Layer("x", 30, "input"), Layer("y", 30, "output")]
    graph = FlowGraph(layers, [Link("x", "y", torch.rand(30, 30))])
    with rng_untouched():
        first, again = communities(graph, seed=1), communities(graph, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    others = [communities(graph, seed=seed) for seed in range(2, 8)]
    assert not all(same_grouping(first, other) for other in others)


def test_another_process_finds_the_same():
    # Python orders sets of strings differently in each process.
    program = (
        "import torch\n"
        "from captum_nif.graph.flow_graph import FlowGraph, Layer, Link\n"
        "from captum_nif.network.community import communities\n"
        "weight = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))\n"
        "layers = [Layer('x', 20, 'input'), Layer('y', 20, 'output')]\n"
        "graph = FlowGraph(layers, [Link('x', 'y', weight)])\n"
        "print([v.tolist() for v in communities(graph).values()])\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("method", METHODS)
def test_nodes_without_flow_are_alone(method):
    layers = [Layer("x", 3, "input"), Layer("y", 2, "output")]
    weight = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    for links in ([], [Link("x", "y", -weight.abs())]):
        found = communities(FlowGraph(layers, links), method=method)
        assert torch.cat([*found.values()]).tolist() == [0, 1, 2, 3, 4]
        assert modularity(FlowGraph(layers, links), found) == 0.0
    found = communities(FlowGraph(layers, [Link("x", "y", weight)]), method=method)
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"].tolist() == [0, 3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gamma": 0}, ValueError, "gamma must be more than 0 and finite, got 0"),
        ({"gamma": float("nan")}, ValueError, "got nan"),
        ({"gamma": float("inf")}, ValueError, "got inf"),
        ({"gamma": "1"}, TypeError, "gamma must be a number, got str"),
        ({"method": "leiden"}, ValueError, "'louvain', 'greedy'.*got 'leiden'"),
        ({"graph": nx.Graph()}, TypeError, "must be a FlowGraph, got Graph"),
        # networkx would draw from the global random state
        ({"seed": None}, TypeError, "seed must be an int, got NoneType"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got float"),
    ],
)
def test_communities_refuse_bad_input(arguments, error, message):
    graph = arguments.get("graph", planted()[0])
    others = {name: arguments[name] for name in {*arguments} - {"graph", "gamma"}}
    with pytest.raises(error, match=message):
        communities(**{"graph": graph, **arguments})
    with pytest.raises(error, match=message):
        gamma_sweep(graph, [arguments.get("gamma", 1.0)], **others)


def test_a_sweep_without_resolutions_still_refuses_what_is_no_graph():
    assert gamma_sweep(planted()[0], []) == []
    with pytest.raises(TypeError, match="must be a FlowGraph, got Graph"):
        gamma_sweep(nx.Graph(), [])


@pytest.mark.parametrize("method", METHODS)
def test_flow_does_not_cross_between_parts(method):
    """A graph in two parts, which tie neither by links nor by their order."""
    layers = [
        Layer("x1", 2, "input"),
        Layer("x2", 2, "input"),
        Layer("y1", 2, "output"),
        Layer("y2", 2, "output"),
    ]
    links = [Link("x1", "y1", torch.ones(2, 2)), Link("x2", "y2", torch.ones(2, 2))]
    graph = FlowGraph(layers, links)
    found = communities(graph, method=method)
    assert {name: labels.tolist() for name, labels in found.items()} == {
        "x1": [0, 0],
        "x2": [1, 1],
        "y1": [0, 0],
        "y2": [1, 1],
    }
    assert modularity(graph, found) == pytest.approx(0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_graph_of_one_layer_is_all_loners(method):
    graph = FlowGraph([Layer("x", 3, "input")], [])
    assert communities(graph, method=method)["x"].tolist() == [0, 1, 2]
    (step,) = gamma_sweep(graph, [0.5], method)
    assert (step.count, step.modularity) == (3, 0.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z": torch.zeros(1).long()}, ValueError, r"layers \['h', 'x', 'y', 'z'\]"),
        ({"x": torch.zeros(2).long()}, ValueError, r"'x' has 9 nodes.*\(2,\)"),
        ({"x": torch.zeros(9)}, TypeError, "must be integers, got torch.float32"),
        ({"x": [0] * 9}, TypeError, "'x' must have a Tensor, got list"),
    ],
)
def test_modularity_refuses_other_partitions(change, error, message):
    graph, truth = planted()
    with pytest.raises(error, match=message):
        modularity(graph, truth | change)


def test_modularity_refuses_what_is_no_partition():
    graph, truth = planted()
    with pytest.raises(TypeError, match=r"mapping from layers .*, got list"):
        modularity(graph, [*truth.values()])
