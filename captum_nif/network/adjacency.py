"""All nodes of a graph in one row, layer after layer, for algorithms on networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from captum_nif.graph.elements import stored_values
from captum_nif.graph.flow_graph import FlowGraph


def check_graph(graph: FlowGraph) -> None:
    """Refuses what is no flow graph, such as one that was converted to networkx."""
    if not isinstance(graph, FlowGraph):
        raise TypeError(f"graph must be a FlowGraph, got {type(graph).__name__}")


def node_spans(graph: FlowGraph) -> list[tuple[int, int]]:
    """First node, and last plus one, of each layer in the row of all nodes."""
    sizes = (layer.size for layer in graph.layers)
    return list(pairwise(accumulate(sizes, initial=0)))


def node_count(graph: FlowGraph) -> int:
    """Number of nodes of all layers together."""
    return sum(layer.size for layer in graph.layers)


def by_layer(
    graph: FlowGraph,
    values: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_],
) -> dict[str, Tensor]:
    """Splits values of all nodes, in the order of the row, among the layers."""
    return {
        layer.name: torch.from_numpy(values[start:stop].copy())
        for layer, (start, stop) in zip(graph.layers, node_spans(graph), strict=True)
    }


def entries(
    graph: FlowGraph,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Sources, targets and weights of all connections, link by link, in their order.

    Nodes are counted in the row of all nodes.
    """
    names = (layer.name for layer in graph.layers)
    spans = dict(zip(names, node_spans(graph), strict=True))
    sources, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    weights = [np.zeros(0)]
    for link in graph.links:
        rows, columns, values = (part.detach().cpu() for part in link.entries())
        sources.append(rows.numpy() + spans[link.source][0])
        targets.append(columns.numpy() + spans[link.target][0])
        weights.append(values.double().numpy())
    return np.concatenate(sources), np.concatenate(targets), np.concatenate(weights)


def positive_adjacency(graph: FlowGraph) -> csr_array:
    """Weights of all connections that carry flow (more than 0), as one matrix.

    Row u holds the connections that leave node u. Less than 0 is no flow: where a
    (pointwise) information is negative, the two nodes tell nothing about each other.
    """
    sources, targets, weights = entries(graph)
    kept, count = weights > 0, node_count(graph)
    places = (sources[kept], targets[kept])
    return csr_array((weights[kept], places), shape=(count, count))


def scaled_in_range(weights: csr_array) -> csr_array:
    """Weights times a power of 2, if the largest is too extreme to be squared."""
    if weights.nnz:
        weights.data = np.ldexp(weights.data, -_excess(weights.data.max()))
    return weights


def in_range(graph: FlowGraph) -> FlowGraph:
    """A graph whose products and quotients of weights are sure to be numbers.

    The weights into a layer are scaled by a power of 2 where the largest is so extreme
    that squares overflow or vanish; shares of flow do not depend on that.
    """
    largest: dict[str, float] = {}
    for link in graph.links:
        values = stored_values(link.weight).detach().double().abs()
        top = float(values.max()) if values.numel() else 0.0
        largest[link.target] = max(largest.get(link.target, 0.0), top)
    excess = {name: _excess(top) for name, top in largest.items()}
    if not any(excess.values()):
        return graph
    links = [
        replace(link, weight=_shifted(link.weight, -excess[link.target]))
        for link in graph.links
    ]
    return FlowGraph(graph.layers, links, graph.unit)


def _shifted(weight: Tensor, exponent: int) -> Tensor:
    """A weight times a power of 2, which may be too large or small to be a number."""
    half = exponent // 2
    return weight.double() * 2.0**half * 2.0 ** (exponent - half)


_MODERATE = 200
"""Exponents of 2 up to which weights are taken as they are."""


def _excess(largest: float) -> int:
    """The power of 2 that brings a largest weight to about 1, if it is extreme."""
    exponent = math.frexp(largest)[1]
    return exponent if abs(exponent) > _MODERATE else 0


def node_flows(graph: FlowGraph) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums of absolute weights into, and out of, each node, by layer, as float64."""
    sizes = {layer.name: layer.size for layer in graph.layers}
    into = {
        name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()
    }
    out_of = {name: flow.clone() for name, flow in into.items()}
    for link in graph.links:
        rows, columns, weights = (part.detach().cpu() for part in link.entries())
        flow = weights.double().abs()
        into[link.target].index_add_(0, columns, flow)
        out_of[link.source].index_add_(0, rows, flow)
    return into, out_of


def dead_nodes(graph: FlowGraph) -> NDArray[np.bool_]:
    """For each node in the row of all nodes whether nothing flows through it.

    Dead are hidden nodes without flow on one side, inputs without flow out, and outputs
    without flow in.
    """
    into, out_of = node_flows(graph)
    dead = []
    for layer in graph.layers:
        unreached, unread = into[layer.name] == 0, out_of[layer.name] == 0
        if layer.kind == "input":
            dead.append(unread)
        else:
            dead.append(unreached if layer.kind == "output" else unreached | unread)
    return torch.cat(dead).numpy()


def check_by_layer(graph: FlowGraph, values: Mapping[str, Tensor], name: str) -> None:
    """Refuses numbers of nodes that have other layers or sizes than the graph."""
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{name} must be a mapping from layers to Tensors, "
            f"got {type(values).__name__}"
        )
    names = [layer.name for layer in graph.layers]
    if set(values) != set(names):
        raise ValueError(
            f"{name} has the layers {sorted(values)}, the graph {sorted(names)}"
        )
    for layer in graph.layers:
        given = values[layer.name]
        if not isinstance(given, Tensor):
            raise TypeError(
                f"{name}: layer {layer.name!r} must have a Tensor, "
                f"got {type(given).__name__}"
            )
        if given.shape != (layer.size,):
            raise ValueError(
                f"{name}: layer {layer.name!r} has {layer.size} nodes, "
                f"and its values shape {tuple(given.shape)}"
            )
        if not given.isfinite().all():
            raise ValueError(f"{name}: layer {layer.name!r} holds NaN or infinity")
