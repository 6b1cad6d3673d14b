"""What a flow graph shows in numbers: one table, one line for each layer."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_nif._messages import renamed_argument
from captum_nif.graph.false_discovery import check_fdr
from captum_nif.graph.flow_graph import FlowGraph, Layer
from captum_nif.network.adjacency import (
    by_layer,
    check_by_layer,
    check_graph,
    dead_nodes,
    node_flows,
)
from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import communities, flat_partition
from captum_nif.network.node_flow import flow_shares

_CENTRAL = 3


@dataclass(frozen=True)
class LayerSummary:
    r"""The numbers of one layer.

    Args:
        name (str): Name of the layer.
        kind (str): ``"input"``, ``"hidden"`` or ``"output"``.
        size (int): Number of nodes.
        flow_in (float): Sum of :math:`|w|` over the links into the layer.
        flow_out (float): Sum of :math:`|w|` over the links out of the layer.
        dead (tuple of str): Labels of the nodes through which nothing flows: hidden
            ones without flow on one side, inputs without flow out, outputs without
            flow in.
        effective_size (float): How many nodes carry the flow to the outputs, from 1
            for a single node to ``size`` for all alike: :math:`\exp H` of their shares
            in it. 0 where nothing flows.
        central (tuple of str): Labels of the nodes with the largest betweenness, the
            largest first; without those of betweenness 0.
        communities (tuple of int): Number of the layer's nodes in each community, in
            the order of the graph's.
        links_in (int): Number of connections into the layer.
        significant_in (int or None): How many of them are significant; ``None`` where
            the graph has no p-values.
    """

    name: str
    kind: str
    size: int
    flow_in: float
    flow_out: float
    dead: tuple[str, ...]
    effective_size: float
    central: tuple[str, ...]
    communities: tuple[int, ...]
    links_in: int
    significant_in: int | None


@dataclass(frozen=True)
class GraphSummary:
    r"""The numbers of a graph; prints as a Markdown table.

    Args:
        layers (tuple of LayerSummary): One for each layer, in order.
        bottleneck (str or None): The hidden layer whose flow the fewest nodes carry
            (least ``effective_size``); ``None`` where no hidden layer carries any.
        communities (tuple of int): Number of nodes in each community.
        fdr (float or None): The false discovery rate at which links are significant;
            ``None`` where the graph has no p-values.
    """

    layers: tuple[LayerSummary, ...]
    bottleneck: str | None
    communities: tuple[int, ...]
    fdr: float | None

    def __str__(self) -> str:
        """The table in Markdown; nodes that are a community alone are only counted."""
        header, *rows = (
            "| " + " | ".join(map(_escaped, r)) + " |" for r in self._rows()
        )
        numbers = 5 if self.fdr is None else 6
        rule = "| --- | --- |" + " ---: |" * numbers + " --- | --- |"
        return "\n".join([header, rule, *rows, "", self._remarks()])

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        header, *rows = (list(map(html.escape, row)) for row in self._rows())
        lines = ["".join(f"<th>{cell}</th>" for cell in header)]
        lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table>{body}</table><p>{html.escape(self._remarks())}</p>"

    def _rows(self) -> list[tuple[str, ...]]:
        shared = [number for number, size in enumerate(self.communities) if size > 1]
        rows = [_HEADER, *(_cells(layer, shared) for layer in self.layers)]
        if self.fdr is None:
            unknown = _HEADER.index("significant in")
            rows = [row[:unknown] + row[unknown + 1 :] for row in rows]
        return rows

    def _remarks(self) -> str:
        shared = [str(size) for size in self.communities if size > 1]
        alone = len(self.communities) - len(shared)
        remarks = (
            f"Bottleneck: {f'layer {self.bottleneck}' if self.bottleneck else 'none'}. "
            f"Nodes in each community: {', '.join(shared) or 'none'}; alone: {alone}."
        )
        if self.fdr is None:
            return remarks
        found = sum(layer.significant_in or 0 for layer in self.layers)
        total = sum(layer.links_in for layer in self.layers)
        return (
            f"{remarks} Links that differ from independence at a false discovery rate "
            f"of {self.fdr:g}: {found:,} of {total:,}."
        )


_HEADER = (
    "layer",
    "kind",
    "nodes",
    "flow in",
    "flow out",
    "significant in",
    "dead",
    "effective nodes",
    "most central",
    "in communities",
)


@renamed_argument("level", "fdr")
def summarize(
    graph: FlowGraph,
    betweenness: Mapping[str, Tensor] | None = None,
    community: Mapping[str, Tensor] | None = None,
    fdr: float = 0.05,
) -> GraphSummary:
    r"""Sums a graph up: flow, dead and central nodes, bottlenecks, communities.

    Args:
        graph (FlowGraph): The graph.
        betweenness (mapping of str to Tensor, optional): For each layer by name the
            betweenness of its nodes.
            Default: ``None`` (``betweenness_centrality(graph)``)
        community (mapping of str to Tensor, optional): For each layer by name the
            community of its nodes.
            Default: ``None`` (``communities(graph)``, which takes seconds for 500,000
            links)
        fdr (float, optional): The false discovery rate at which links count as
            significant, where they have p-values. All other numbers are of all links:
            give ``graph.significant()`` for those of the significant ones.
            Default: ``0.05``

    Returns:
        GraphSummary: The numbers; printing it gives a Markdown table.

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph``.
        ValueError: If the numbers given have other layers or sizes than the graph, or
            ``fdr`` is not between 0 and 1.

    Examples::

        >>> from captum_nif import Layer, Link
        >>> graph = FlowGraph(
        ...     [
        ...         Layer("x", 2, "input", labels=("age", "fare")),
        ...         Layer("h", 3, "hidden"),
        ...         Layer("y", 1, "output"),
        ...     ],
        ...     [
        ...         Link("x", "h", torch.tensor([[0.5, 0.1, 0.0], [0.2, 0.1, 0.0]])),
        ...         Link("h", "y", torch.tensor([[0.6], [0.6], [0.0]])),
        ...     ],
        ... )
        >>> summary = summarize(graph)
        >>> summary.layers[1].dead, summary.layers[1].central[0], summary.bottleneck
        (('h[2]',), 'h[0]', 'h')
    """
    check_graph(graph)
    check_fdr(fdr)
    if betweenness is None:
        betweenness = betweenness_centrality(graph)
    if community is None:
        community = communities(graph)
    check_by_layer(graph, betweenness, "betweenness")
    groups, labels = np.unique(flat_partition(graph, community), return_inverse=True)
    sizes = {
        name: torch.bincount(label, minlength=len(groups)).tolist()
        for name, label in by_layer(graph, labels).items()
    }
    flow_in, flow_out = node_flows(graph)
    dead = by_layer(graph, dead_nodes(graph))
    shares = flow_shares(graph)
    links_in = _links_in(graph)
    significant_in: dict[str, int] = {}
    if graph.has_pvalues:
        significant_in = _links_in(graph.significant(fdr))
    layers = tuple(
        LayerSummary(
            name=layer.name,
            kind=layer.kind,
            size=layer.size,
            flow_in=float(flow_in[layer.name].sum()),
            flow_out=float(flow_out[layer.name].sum()),
            dead=_labels(layer, dead[layer.name].nonzero().flatten()),
            effective_size=_effective_size(shares[layer.name]),
            central=_central(layer, betweenness[layer.name]),
            communities=tuple(sizes[layer.name]),
            links_in=links_in[layer.name],
            significant_in=significant_in.get(layer.name),
        )
        for layer in graph.layers
    )
    carrying = [
        each for each in layers if each.kind == "hidden" and each.effective_size
    ]
    narrowest = min(carrying, key=lambda each: each.effective_size, default=None)
    return GraphSummary(
        layers=layers,
        bottleneck=narrowest.name if narrowest else None,
        communities=tuple(np.bincount(labels).tolist()),
        fdr=fdr if graph.has_pvalues else None,
    )


def _links_in(graph: FlowGraph) -> dict[str, int]:
    counts = {layer.name: 0 for layer in graph.layers}
    for link in graph.links:
        counts[link.target] += len(link.entries()[0])
    return counts


def _central(layer: Layer, betweenness: Tensor) -> tuple[str, ...]:
    descending = betweenness.argsort(descending=True, stable=True)[:_CENTRAL]
    return _labels(layer, descending[betweenness[descending] > 0])


def _labels(layer: Layer, indices: Tensor) -> tuple[str, ...]:
    labels = layer.node_labels()
    return tuple(labels[index] for index in indices.tolist())


def _effective_size(shares: Tensor) -> float:
    total = shares.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(shares / total).sum().exp())


def _cells(layer: LayerSummary, shared: Sequence[int]) -> tuple[str, ...]:
    return (
        layer.name,
        layer.kind,
        str(layer.size),
        f"{layer.flow_in:.3g}",
        f"{layer.flow_out:.3g}",
        _significant(layer),
        str(len(layer.dead)),
        f"{layer.effective_size:.1f}",
        ", ".join(layer.central) or "-",
        ", ".join(str(layer.communities[number]) for number in shared) or "-",
    )


def _significant(layer: LayerSummary) -> str:
    if layer.significant_in is None or not layer.links_in:
        return "-"
    return f"{layer.significant_in:,} of {layer.links_in:,}"


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
