"""Which nodes the flow runs through: betweenness (Eq. 1 of the paper)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from captum_nif.graph.elements import Kind
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.adjacency import (
    by_layer,
    check_graph,
    node_count,
    node_spans,
    positive_adjacency,
)

Distance = Literal["log", "inverse"]
Endpoints = Literal["all", "input-output"]

# Lengths are sums of rounded numbers, and tie if they agree to this precision: sums of
# reciprocals relative to their size, sums of logarithms as the products they stand for.
_TOLERANCES = {
    "log": {"relative": 0.0, "absolute": 1e-12},
    "inverse": {"relative": 1e-12, "absolute": 0.0},
}

# Without direction, links of length 0 could be walked to and fro for nothing.
_SHORTEST = 1e-9


def betweenness_centrality(
    graph: FlowGraph,
    distance: Distance = "log",
    endpoints: Endpoints = "all",
    directed: bool = True,
) -> dict[str, Tensor]:
    r"""Counts the shortest paths on which each node lies (Eq. 1).

    .. math::
        B(v) = \sum_{s \ne t \ne v} \frac{\sigma_{st}(v)}{\sigma_{st}}

    (Freeman, 1977; Davis et al., 2020, Eq. 1), not normalized, where
    :math:`\sigma_{st}` counts the shortest paths from s to t and
    :math:`\sigma_{st}(v)` those through v. Strong links are short. Links of weight 0
    or less are left out; a node that nothing reaches has betweenness 0.

    Directed graphs are solved exactly, ties included, by sweeps over the layers
    (Brandes, 2001). Without direction paths may zigzag between layers, and every source
    takes a run of Dijkstra's algorithm: about a hundred times slower. Paths tie if
    their lengths differ by rounding only (1e-12).

    Args:
        graph (FlowGraph): The graph.
        distance (str, optional): Length of a link of weight w: ``"log"`` for
            :math:`-\log(w / w_{\max})`, with the graph's largest weight, or
            ``"inverse"`` for :math:`1 / w`. With ``"log"`` the shortest path between
            two layers of a chain is the one with the largest product of weights, as
            in Eq. 4; on a graph with skip links a route pays :math:`\log w_{\max}`
            for each link.
            Default: ``"log"``
        endpoints (str, optional): Which s and t count: ``"all"`` nodes as in Eq. 1,
            or ``"input-output"`` for paths from inputs to outputs only.
            Default: ``"all"``
        directed (bool, optional): Whether paths follow the flow. If not, they may run
            along links both ways, each unordered pair s, t counts once, and no link
            is shorter than 1e-9 (the strongest has length 0 under ``"log"``).
            Default: ``True``

    Returns:
        dict of str to Tensor: For each layer by name the betweenness of its nodes,
        shape [size of the layer], float64, on the CPU.

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph``.
        ValueError: If ``distance`` or ``endpoints`` is unknown, or if
            ``"input-output"`` is asked of a graph that lacks inputs or outputs.

    Examples::

        >>> import torch
        >>> from captum_nif import Layer, Link
        >>> graph = FlowGraph(
        ...     [
        ...         Layer("x", 2, "input"),
        ...         Layer("h", 2, "hidden"),
        ...         Layer("y", 1, "output"),
        ...     ],
        ...     [
        ...         Link("x", "h", torch.tensor([[0.9, 0.2], [0.8, 0.1]])),
        ...         Link("h", "y", torch.tensor([[0.7], [0.6]])),
        ...     ],
        ... )
        >>> betweenness_centrality(graph)["h"]
        tensor([2., 0.], dtype=torch.float64)
    """
    # here, so that importing the package does not import numba
    from captum_nif.network import brandes

    check_graph(graph)
    for name, value, known in (
        ("distance", distance, get_args(Distance)),
        ("endpoints", endpoints, get_args(Endpoints)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    source_kinds, end_kinds = _endpoint_kinds(graph, endpoints)
    lengths = _lengths(positive_adjacency(graph), distance)
    ends = _nodes_of(graph, end_kinds)
    tolerance = brandes.Tolerance(**_TOLERANCES[distance])
    if directed:
        spans = zip(graph.layers, node_spans(graph), strict=True)
        starts = [span for layer, span in spans if layer.kind in source_kinds]
        betweenness = brandes.layered_betweenness(lengths, starts, ends, tolerance)
    else:
        sources = _nodes_of(graph, source_kinds).nonzero()[0]
        lengths.data = lengths.data.clip(min=_SHORTEST)
        both_ways = csr_array(lengths + lengths.T)
        betweenness = brandes.undirected_betweenness(
            both_ways, sources, ends, tolerance
        )
        if endpoints == "all":
            betweenness /= 2.0  # every pair was met from both its ends
    return by_layer(graph, betweenness)


def _endpoint_kinds(
    graph: FlowGraph, endpoints: Endpoints
) -> tuple[Collection[str], Collection[str]]:
    if endpoints == "all":
        return get_args(Kind), get_args(Kind)
    there = {layer.kind for layer in graph.layers}
    if not {"input", "output"} <= there:
        raise ValueError(
            "endpoints='input-output' needs layers of both kinds, the graph has "
            f"{sorted(there)}; use endpoints='all'"
        )
    return ["input"], ["output"]


def _nodes_of(graph: FlowGraph, kinds: Collection[str]) -> NDArray[np.bool_]:
    chosen = np.zeros(node_count(graph), dtype=bool)
    for layer, (start, stop) in zip(graph.layers, node_spans(graph), strict=True):
        chosen[start:stop] = layer.kind in kinds
    return chosen


def _lengths(weights: csr_array, distance: Distance) -> csr_array:
    if distance == "inverse":
        # A weight too small to invert gets an infinite length: as good as no link.
        with np.errstate(over="ignore"):
            weights.data = 1.0 / weights.data
    elif weights.nnz:
        weights.data = np.log(weights.data.max()) - np.log(weights.data)
    return weights
