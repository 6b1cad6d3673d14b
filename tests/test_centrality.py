import itertools
import math
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from random_graphs import POSITIVE_EIGHTHS, dense, flow_graphs

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.centrality import betweenness_centrality

DISTANCES = ["log", "inverse"]
ENDPOINTS = ["all", "input-output"]


def connections(graph):
    """Positive weights by pair of nodes, as exact fractions."""
    return {
        ((source, i), (target, j)): Fraction(matrix[i][j])
        for (source, target), matrix in dense(graph).items()
        for i in range(len(matrix))
        for j in range(len(matrix[0]))
        if matrix[i][j] > 0
    }


def simple_paths(weight, start, end):
    found, stack = [], [[start]]
    while stack:
        path = stack.pop()
        if path[-1] == end:
            found.append(path)
            continue
        stack.extend(
            [*path, after]
            for before, after in weight
            if before == path[-1] and after not in path
        )
    return found


def enumerated(graph, distance, endpoints, directed):
    """Eq. 1 word for word, in exact arithmetic, over all paths one by one."""
    weight = connections(graph)
    strongest = max(weight.values(), default=1)
    if not directed:
        weight |= {(b, a): value for (a, b), value in weight.items()}
    nodes = [(layer.name, i) for layer in graph.layers for i in range(layer.size)]
    kind = {layer.name: layer.kind for layer in graph.layers}

    def length(path):
        links = [weight[pair] for pair in itertools.pairwise(path)]
        if distance == "inverse":
            return sum(1 / w for w in links)
        product = math.prod(w / strongest for w in links)
        # Undirected, the strongest links have a tiny length, which decides between
        # products that are equal.
        return -product, 0 if directed else links.count(strongest)

    betweenness = dict.fromkeys(nodes, Fraction(0))
    for s, t in itertools.permutations(nodes, 2):
        if endpoints == "input-output":
            if (kind[s[0]], kind[t[0]]) != ("input", "output"):
                continue
        elif not directed and nodes.index(s) > nodes.index(t):
            continue
        lengths = [(length(path), path) for path in simple_paths(weight, s, t)]
        if lengths:
            minimum = min(lengths)[0]
            shortest = [path for total, path in lengths if total == minimum]
            for path in shortest:
                for node in path[1:-1]:
                    betweenness[node] += Fraction(1, len(shortest))
    return {
        layer.name: [float(betweenness[layer.name, i]) for i in range(layer.size)]
        for layer in graph.layers
    }


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("endpoints", ENDPOINTS)
@given(graph=flow_graphs())
def test_directed_equals_enumeration_with_all_ties(graph, distance, endpoints):
    found = betweenness_centrality(graph, distance, endpoints)
    wanted = enumerated(graph, distance, endpoints, directed=True)
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx(values, abs=1e-12) for name, values in wanted.items()
    }


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("endpoints", ENDPOINTS)
@settings(max_examples=30)
@given(graph=flow_graphs(POSITIVE_EIGHTHS, max_layers=3))
def test_undirected_equals_enumeration_with_all_ties(graph, distance, endpoints):
    found = betweenness_centrality(graph, distance, endpoints, directed=False)
    wanted = enumerated(graph, distance, endpoints, directed=False)
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx(values, abs=1e-12) for name, values in wanted.items()
    }


def random_graph(seed, sizes=(70, 9, 8, 3), skip=True, powers_of_two=False):
    """A graph whose first layer takes more than one block of sources."""
    generator = np.random.default_rng(seed)
    layers = [Layer(f"layer{n}", size, "hidden") for n, size in enumerate(sizes)]
    layers[0] = Layer("layer0", sizes[0], "input")
    layers[-1] = Layer(layers[-1].name, sizes[-1], "output")
    links = []
    for a, b in itertools.combinations(layers, 2):
        if skip or layers.index(b) == layers.index(a) + 1:
            weight = generator.normal(0.5, 0.5, (a.size, b.size))
            if powers_of_two:
                weight = 2.0 ** generator.integers(-2, 2, (a.size, b.size))
            links.append(Link(a.name, b.name, torch.from_numpy(weight)))
    return FlowGraph(layers, links)


def by_networkx(graph, distance, endpoints, directed):
    network = graph.to_networkx()
    network.remove_edges_from(
        [(a, b) for a, b, w in network.edges(data="weight") if w <= 0]
    )
    if not directed:
        network = network.to_undirected()
    largest = max(w for *_, w in network.edges(data="weight"))
    for _, _, data in network.edges(data=True):
        w = data["weight"]
        data["length"] = 1 / w if distance == "inverse" else -math.log(w / largest)
        if not directed:
            data["length"] = max(data["length"], 1e-9)
    if endpoints == "all":
        found = nx.betweenness_centrality(network, normalized=False, weight="length")
    else:
        kinds = network.nodes(data="kind")
        found = nx.betweenness_centrality_subset(
            network,
            [node for node, kind in kinds if kind == "input"],
            [node for node, kind in kinds if kind == "output"],
            weight="length",
        )
        if not directed:  # networkx halves pairs that it met from one end only
            found = {node: 2 * value for node, value in found.items()}
    return {
        layer.name: [found[layer.name, i] for i in range(layer.size)]
        for layer in graph.layers
    }


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("endpoints", ENDPOINTS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("skip", [True, False])
def test_equals_networkx(distance, endpoints, directed, skip):
    graph = random_graph(1, skip=skip)
    found = betweenness_centrality(graph, distance, endpoints, directed)
    wanted = by_networkx(graph, distance, endpoints, directed)
    for name, values in found.items():
        np.testing.assert_allclose(values.numpy(), wanted[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("directed", [True, False])
def test_equals_networkx_on_ties(directed):
    graph = random_graph(2, powers_of_two=True)  # sums of 1 / w are exact
    found = betweenness_centrality(graph, "inverse", directed=directed)
    wanted = by_networkx(graph, "inverse", "all", directed)
    for name, values in found.items():
        np.testing.assert_allclose(values.numpy(), wanted[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_ties_but_for_rounding_are_ties(distance):
    # Two routes with the same three weights in another order, whose lengths differ in
    # the last digit when they are summed from the source on.
    p, q, r = 0.6, 0.4, 0.1
    length = (lambda w: 1 / w) if distance == "inverse" else (lambda w: -math.log(w))
    one, other = (
        ((length(a) + length(b)) + length(c)) + length(1.0)
        for a, b, c in ((p, q, r), (r, p, q))
    )
    assert one != other
    layers = [Layer("x", 1, "input")]
    layers += [Layer(name, 2, "hidden") for name in "abc"]
    layers += [Layer("y", 1, "output")]
    links = [
        Link("x", "a", torch.tensor([[p, r]], dtype=torch.float64)),
        Link("a", "b", torch.tensor([[q, 0.0], [0.0, p]], dtype=torch.float64)),
        Link("b", "c", torch.tensor([[r, 0.0], [0.0, q]], dtype=torch.float64)),
        Link("c", "y", torch.tensor([[1.0], [1.0]], dtype=torch.float64)),
    ]
    graph = FlowGraph(layers, links)
    found = betweenness_centrality(graph, distance)["b"].tolist()
    assert found == [3.5, 3.5]
    assert found == enumerated(graph, distance, "all", directed=True)["b"]


def test_strongest_route_is_the_largest_product_of_a_chain():
    graph = random_graph(3, sizes=(1, 6, 5, 1), skip=False)
    graph = FlowGraph(
        graph.layers, [Link(*k.ends, k.weight.abs()) for k in graph.links]
    )
    first, second, third = (link.weight for link in graph.links)
    products = first[0][:, None] * second * third[:, 0]
    a, b = divmod(int(products.argmax()), 5)
    found = betweenness_centrality(graph, endpoints="input-output")
    assert found["layer1"].tolist() == [float(i == a) for i in range(6)]
    assert found["layer2"].tolist() == [float(i == b) for i in range(5)]


def test_all_links_equal_shares_the_paths():
    layers = [Layer("x", 3, "input"), Layer("h", 4, "hidden"), Layer("y", 5, "output")]
    ones = [Link("x", "h", torch.ones(3, 4)), Link("h", "y", torch.ones(4, 5))]
    for distance in DISTANCES:
        found = betweenness_centrality(FlowGraph(layers, ones), distance)
        assert found["h"].tolist() == [3 * 5 / 4] * 4
        assert not found["x"].any()
        assert not found["y"].any()


@pytest.mark.parametrize("directed", [True, False])
def test_graphs_without_flow_have_no_centre(directed):
    one = FlowGraph([Layer("x", 3, "input")], [])
    layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
    negative = FlowGraph(layers, [Link("x", "y", torch.tensor([[-1.0], [0.0]]))])
    for graph in (one, FlowGraph(layers, []), negative):
        found = betweenness_centrality(graph, directed=directed)
        assert [*found] == [layer.name for layer in graph.layers]
        for layer in graph.layers:
            assert found[layer.name].tolist() == [0.0] * layer.size
            assert found[layer.name].dtype == torch.float64


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("endpoints", ENDPOINTS)
def test_parts_of_a_graph_do_not_know_of_each_other(directed, endpoints):
    parts = [random_graph(seed, sizes=(4, 3, 2)) for seed in (6, 7)]
    largest = max(float(link.weight.max()) for link in parts[0].links)
    scaled = [  # both parts have the same largest weight, which "log" divides by
        [
            Link(
                *link.ends,
                link.weight * largest / max(float(x.weight.max()) for x in part.links),
            )
            for link in part.links
        ]
        for part in parts
    ]
    alone = [
        betweenness_centrality(
            FlowGraph(part.layers, links), endpoints=endpoints, directed=directed
        )
        for part, links in zip(parts, scaled, strict=True)
    ]
    layers = [
        Layer(f"{n}:{layer.name}", layer.size, layer.kind)
        for n, part in enumerate(parts)
        for layer in part.layers
    ]
    links = [
        Link(f"{n}:{link.source}", f"{n}:{link.target}", link.weight)
        for n, part in enumerate(scaled)
        for link in part
    ]
    found = betweenness_centrality(
        FlowGraph(layers, links), endpoints=endpoints, directed=directed
    )
    for n, values in enumerate(alone):
        for name, value in values.items():
            torch.testing.assert_close(found[f"{n}:{name}"], value, rtol=0, atol=1e-9)
    assert sum(float(value.sum()) for value in found.values()) > 0


def test_no_path_turns_back_over_a_very_short_link():
    # h and y are so close that the way x, h, y, h ties with x, h but for rounding.
    layers = [Layer("x", 1, "input"), Layer("h", 1, "hidden"), Layer("y", 1, "output")]
    links = [
        Link("x", "h", torch.tensor([[1e-4]], dtype=torch.float64)),
        Link("h", "y", torch.tensor([[1e9]], dtype=torch.float64)),
    ]
    graph = FlowGraph(layers, links)
    found = betweenness_centrality(graph, "inverse", directed=False)
    assert {name: values.item() for name, values in found.items()} == {
        "x": 0.0,
        "h": 1.0,
        "y": 0.0,
    }


@pytest.mark.parametrize("distance", DISTANCES)
def test_weights_may_span_all_of_float64(distance):
    # The least positive number has no reciprocal; 1e-300 has.
    layers = [Layer("x", 1, "input"), Layer("h", 2, "hidden"), Layer("y", 1, "output")]
    links = [
        Link("x", "h", torch.tensor([[1e300, 5e-324]], dtype=torch.float64)),
        Link("h", "y", torch.tensor([[1e-300], [1.0]], dtype=torch.float64)),
    ]
    found = betweenness_centrality(FlowGraph(layers, links), distance)
    assert found["h"].tolist() == [1.0, 0.0]


def test_dtype_and_layout_do_not_matter():
    graph = random_graph(4)
    half = [Link(*k.ends, k.weight.half()) for k in graph.links]
    wanted = betweenness_centrality(FlowGraph(graph.layers, half))
    for convert in (torch.Tensor.double, torch.Tensor.to_sparse):
        links = [Link(*link.ends, convert(link.weight)) for link in half]
        found = betweenness_centrality(FlowGraph(graph.layers, links))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_threads_and_random_state(rng_untouched):
    graph = random_graph(5)
    with rng_untouched():
        single = betweenness_centrality(graph)
    torch.set_num_threads(2)
    try:
        double = betweenness_centrality(graph)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(single[name], double[name]) for name in single)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"distance": "raw"}, ValueError, "distance must be one of.*'log'.*'raw'"),
        ({"endpoints": "input"}, ValueError, "endpoints must be one of.*'input'"),
        ({"graph": nx.DiGraph()}, TypeError, "must be a FlowGraph, got DiGraph"),
        (
            {
                "graph": FlowGraph([Layer("x", 1, "input")], []),
                "endpoints": "input-output",
            },
            ValueError,
            r"has \['input'\]; use endpoints='all'",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        betweenness_centrality(**{"graph": random_graph(0), **arguments})
