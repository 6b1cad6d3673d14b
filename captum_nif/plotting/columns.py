"""What the static picture and the interactive page share: columns and links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captum_nif.graph.elements import Layer, Link, sorted_sparse
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.adjacency import entries, node_count

Threshold = float | Mapping[tuple[str, str], float] | None
"""Least flow that counts, in nats: for all links, or by (source, target) layer."""


class Connections(NamedTuple):
    """All connections of a graph, one entry each.

    Args:
        source (array): Node it starts from, in the row of all nodes, int64.
        target (array): Node it runs to, int64.
        weight (array): Its flow, float64.
        share (array): Its part, from 0 to 1, in the flow into the target's layer.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: NDArray[np.float64]
    share: NDArray[np.float64]

    def where(self, kept: NDArray[Any]) -> Connections:
        """The connections that a mask marks, or an order lists."""
        return Connections(
            self.source[kept], self.target[kept], self.weight[kept], self.share[kept]
        )


def connections(graph: FlowGraph) -> Connections:
    """Lists the connections of a graph, link by link, each in row-major order."""
    source, target, weight = entries(graph)
    reached = layer_of_nodes(graph)[target]
    flow = np.bincount(reached, weights=np.abs(weight), minlength=len(graph.layers))
    share = np.abs(weight) / flow[reached]
    return Connections(source, target, weight, share)


def among(
    graph: FlowGraph, links: Connections, others: Connections
) -> NDArray[np.bool_]:
    """Marks those of some links that are, by their ends, among others."""
    size = node_count(graph)
    names, wanted = (part.source * size + part.target for part in (links, others))
    return np.isin(names, wanted)


def layer_of_nodes(graph: FlowGraph) -> NDArray[np.int64]:
    """For each node in the row of all nodes the place of its layer in the graph."""
    sizes = [layer.size for layer in graph.layers]
    return np.repeat(np.arange(len(sizes)), sizes)


def without_weak(graph: FlowGraph, threshold: Threshold) -> FlowGraph:
    """Drops connections whose absolute flow is below a threshold.

    Raises:
        ValueError: If a threshold is negative or NaN, or names an unknown link.
    """
    if threshold is None:
        return graph
    ends = {link.ends for link in graph.links}
    if isinstance(threshold, Mapping):
        unknown = sorted(set(threshold) - ends)
        if unknown:
            raise ValueError(
                f"threshold names links that the graph has not: {unknown}; it has "
                f"{sorted(ends)}"
            )
        least = dict(threshold)
    else:
        least = dict.fromkeys(ends, float(threshold))
    for value in least.values():
        if not value >= 0:
            raise ValueError(f"threshold must be at least 0 nats, got {value}")
    return FlowGraph(
        graph.layers,
        [_at_least(link, least.get(link.ends, 0.0)) for link in graph.links],
        graph.unit,
    )


def _at_least(link: Link, least: float) -> Link:
    rows, columns, weights = link.entries()
    kept = weights.abs() >= least
    indices = rows.new_empty(2, int(kept.sum()))
    indices[0], indices[1] = rows[kept], columns[kept]
    weight = sorted_sparse(indices, weights[kept], link.weight.shape)
    return replace(link, weight=weight)


def layer_columns(graph: FlowGraph) -> list[int]:
    """For each layer the column it is drawn in, counted from the left.

    That is the length of the longest route to it; outputs stand together at the right.
    """
    depth = {layer.name: 0 for layer in graph.layers}
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    for link in sorted(graph.links, key=lambda link: order[link.source]):
        depth[link.target] = max(depth[link.target], depth[link.source] + 1)
    deepest = max(depth.values())
    return [
        deepest if layer.kind == "output" else depth[layer.name]
        for layer in graph.layers
    ]


def image_planes(layer: Layer) -> tuple[int, int, int] | None:
    """Channels, rows and columns of an input that is an image; else ``None``."""
    if layer.kind != "input" or len(layer.shape) not in (2, 3):
        return None
    planes, rows, columns = (1, *layer.shape)[-3:]
    return (planes, rows, columns) if min(rows, columns) > 1 else None


def strongest(
    groups: NDArray[np.int64], weight: NDArray[np.float64], count: int
) -> NDArray[np.bool_]:
    """Marks the ``count`` strongest entries of each group; of equals the first."""
    order = np.lexsort((-np.abs(weight), groups))
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered)
    marked = np.zeros(len(groups), dtype=bool)
    marked[order] = np.arange(len(groups)) - first < count
    return marked
