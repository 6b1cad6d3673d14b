"""Random layered graphs, small enough for tests to enumerate every path."""

import torch
from hypothesis import strategies as st

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link

# Multiples of 1/8: sums and products of a few are exact in float64, so tests compare
# with == and never with a tolerance.
EIGHTHS = st.integers(-8, 8).map(lambda n: n / 8)
POSITIVE_EIGHTHS = st.integers(0, 8).map(lambda n: n / 8)


@st.composite
def weights(draw, rows, columns, values=EIGHTHS):
    row = st.lists(values, min_size=columns, max_size=columns)
    weight = torch.tensor(
        draw(st.lists(row, min_size=rows, max_size=rows)), dtype=torch.float64
    )
    return weight.to_sparse() if draw(st.booleans()) else weight


@st.composite
def flow_graphs(draw, values=EIGHTHS, max_layers=5, max_size=3):
    """Draws a graph with late inputs, skip links and layers that nothing reaches."""
    count = draw(st.integers(2, max_layers))
    kinds = ["input", *(["hidden"] * (count - 2)), "output"]
    for position in range(1, count - 1):
        kinds[position] = draw(st.sampled_from(["hidden", "hidden", "input"]))
    layers = [
        Layer(f"layer{n}", draw(st.integers(1, max_size)), kind)
        for n, kind in enumerate(kinds)
    ]
    links = [
        Link(a.name, b.name, draw(weights(a.size, b.size, values)))
        for n, b in enumerate(layers)
        for a in layers[:n]
        if b.kind != "input" and draw(st.booleans())
    ]
    return FlowGraph(layers, draw(st.permutations(links)))


def dense(graph):
    """Weights by pair of layers, as nested lists."""
    return {
        (link.source, link.target): link.weight.to_dense().tolist()
        for link in graph.links
    }


def paths(graph, start, end):
    """Lists all paths between two nodes (layer name, index), as lists of nodes."""
    found, stack = [], [[start]]
    weight = dense(graph)
    while stack:
        path = stack.pop()
        name, index = path[-1]
        if path[-1] == end:
            found.append(path)
            continue
        for (source, target), matrix in weight.items():
            if source == name:
                stack.extend(
                    [*path, (target, column)]
                    for column in range(graph.layer(target).size)
                    if matrix[index][column] != 0
                )
    return found
