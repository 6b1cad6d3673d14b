"""Flow graphs as static pictures, for print and slides (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_nif._messages import renamed_argument
from captum_nif.graph.false_discovery import check_fdr
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.adjacency import check_by_layer, node_flows
from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import communities, flat_partition
from captum_nif.network.export import PALETTE
from captum_nif.plotting.captions import (
    FLOW,
    INK,
    MUTED,
    NEGATIVE,
    WEAK,
    Margins,
    community_style,
    is_crowded,
    link_alpha,
    link_width,
    write_legends,
    write_names,
    write_share,
)
from captum_nif.plotting.columns import (
    Threshold,
    image_planes,
    layer_columns,
    without_weak,
)
from captum_nif.plotting.geometry import (
    Picture,
    link_curves,
    links_to_draw,
    place_nodes,
    relative_flow,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@renamed_argument("level", "fdr")
def plot_flow(
    graph: FlowGraph,
    ax: Axes | None = None,
    *,
    betweenness: Mapping[str, Tensor] | None = None,
    community: Mapping[str, Tensor] | None = None,
    threshold: Threshold = None,
    fdr: float = 0.05,
    links_per_node: int | None = None,
    max_nodes: int = 12,
) -> Axes:
    r"""Draws a flow graph: layers from left to right, as in the paper's Fig. 1 and 2.

    The width of a link is its flow, relative to the strongest link drawn into the same
    layer; negative flow (most of it of single samples) is red. The size of a node is
    its betweenness, its color and shape are its community, and hollow nodes are dead:
    no flow runs through them. Small numbers count a hidden layer's nodes from 0.

    Of wide layers only the nodes with the largest share in the flow to the outputs are
    drawn (:func:`~captum_nif.flow_shares`), and of the links between drawn
    nodes only the strongest into each, and the strongest out of each. The share of the
    flow into a layer that they carry stands below its name. An input that is an image
    is drawn as its pixels, darker where more flow leaves them, summed over colors.

    Args:
        graph (FlowGraph): The graph.
        ax (matplotlib.axes.Axes, optional): Where to draw, with space for legends.
            Default: ``None`` (a new pyplot figure as wide as the graph is deep)
        betweenness (mapping of str to Tensor, optional): For each layer by name a
            number for each node.
            Default: ``None`` (``betweenness_centrality`` of the graph)
        community (mapping of str to Tensor, optional): For each layer by name the
            community of each node. The seven largest have colors.
            Default: ``None`` (``communities`` of the graph)
        threshold (float or mapping, optional): Absolute flow in nats below which a
            link cannot be told from independence; a mapping gives it by (source,
            target) layer. Weaker links are grey, and count as flow in nothing else
            above.
            Default: ``None``
        fdr (float, optional): The false discovery rate at which links are
            significant, if the graph has p-values. Other links are gray too, and count
            as little.
            Default: ``0.05``
        links_per_node (int, optional): How many of the strongest links into each node
            are drawn.
            Default: ``None`` (3, or 1 where there are more than ten columns)
        max_nodes (int, optional): How many nodes of a layer are drawn.
            Default: ``12``

    Returns:
        matplotlib.axes.Axes: Where it was drawn.

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph``.
        ValueError: If numbers given have other layers or sizes than the graph,
            ``threshold`` is negative or names an unknown link, ``fdr`` is not between
            0 and 1, or a count is below 1.

    Examples::

        >>> from matplotlib.figure import Figure
        >>> from captum_nif import Layer, Link
        >>> graph = FlowGraph(
        ...     [Layer("x", 2, "input"), Layer("y", 2, "output")],
        ...     [Link("x", "y", torch.tensor([[0.9, 0.1], [0.1, 0.9]]))],
        ... )
        >>> ax = plot_flow(graph, Figure().subplots())
        >>> ax.texts[0].get_text()
        'Drawn: 4 of 4 links, 100 % of the flow (mean over layers)'
    """
    if not isinstance(graph, FlowGraph):
        raise TypeError(f"graph must be a FlowGraph, got {type(graph).__name__}")
    if links_per_node is None:
        links_per_node = 1 if is_crowded(graph) else 3
    for name, count in (("links_per_node", links_per_node), ("max_nodes", max_nodes)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    check_fdr(fdr)
    strong = without_weak(graph, threshold)
    if graph.has_pvalues:
        strong = strong.significant(fdr)
    if betweenness is None:
        betweenness = betweenness_centrality(strong)
    if community is None:
        community = communities(strong)
    check_by_layer(graph, betweenness, "betweenness")
    group, names = _colored(flat_partition(graph, community))
    central = torch.cat([betweenness[layer.name] for layer in graph.layers])

    if ax is None:
        ax = _new_axes(max(layer_columns(graph)) + 1)
    margins = Margins.of(ax, graph)
    places = place_nodes(strong, max_nodes, margins.width)
    flow, weak = links_to_draw(graph, strong, places, links_per_node)
    picture = Picture(
        graph=strong,
        places=places,
        flow=flow,
        weak=weak,
        weakness=_weakness(graph, threshold),
        betweenness=central.double().cpu().numpy(),
        group=group,
        names=names,
        scale=margins.scale,
    )
    write_share(ax, picture)
    _draw_links(ax, picture)
    _draw_images(ax, picture)
    _draw_nodes(ax, picture)
    write_names(ax, picture)
    write_legends(ax, picture)
    margins.apply(ax)
    return ax


def _weakness(graph: FlowGraph, threshold: Threshold) -> str:
    reasons = []
    if threshold is not None:
        reasons.append("below threshold")
    if graph.has_pvalues:
        reasons.append("not significant")
    return " or ".join(reasons)


def _new_axes(columns: int) -> Axes:
    import matplotlib.pyplot as plt

    width = min(max(7.2, 1.6 * columns), max(10.0, 0.66 * columns), 32.0)
    figure = plt.figure(figsize=(width, 5.6))
    return figure.add_axes((0.01, 0.01, 0.98, 0.98))


def _colored(
    labels: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each node the place of its community among the largest, and their names."""
    names, sizes = np.unique(labels, return_counts=True)
    largest = np.sort(names[np.argsort(-sizes, kind="stable")][: len(PALETTE)])
    place = np.searchsorted(largest, labels).clip(max=len(largest) - 1)
    return np.where(largest[place] == labels, place, len(largest)), largest


def _draw_links(ax: Axes, picture: Picture) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    graph, places = picture.graph, picture.places
    # The strongest last, on top.
    flow = picture.flow.where(np.argsort(np.abs(picture.flow.weight), kind="stable"))
    relative = relative_flow(graph, flow)
    ax.add_collection(
        LineCollection(
            list(link_curves(graph, places, flow)),
            linewidths=link_width(relative, is_crowded(graph)),
            colors=[
                to_rgba(NEGATIVE if weight < 0 else FLOW, alpha)
                for weight, alpha in zip(flow.weight, link_alpha(relative), strict=True)
            ],
            capstyle="round",
            zorder=1,
        )
    )
    weak = list(link_curves(graph, places, picture.weak))
    ax.add_collection(LineCollection(weak, linewidths=0.6, colors=WEAK, zorder=0))


def _draw_images(ax: Axes, picture: Picture) -> None:
    _, out_of = node_flows(picture.graph)
    for n, (left, right, bottom, top) in picture.places.boxes.items():
        layer = picture.graph.layers[n]
        planes, rows, columns = image_planes(layer) or (1, 1, layer.size)
        flow = out_of[layer.name].view(planes, rows, columns).sum(0)
        ax.imshow(
            flow.numpy(),
            cmap="Greys",
            vmin=0.0,
            # Not black: the lines on it would drown.
            vmax=1.6 * max(float(flow.max()), 1e-300),
            extent=(left, right, bottom, top),
            zorder=0.5,
        ).set_label(layer.name)
        outline = ([left, right, right, left, left], [bottom, bottom, top, top, bottom])
        ax.plot(*outline, color=MUTED, lw=0.6, zorder=0.6)


def _draw_nodes(ax: Axes, picture: Picture) -> None:
    for group in np.unique(picture.group).tolist():
        style = community_style(group)
        chosen = picture.dots & ~picture.dead & (picture.group == group)
        _scatter(ax, picture, chosen, style["marker"], style["color"], INK)
    _scatter(ax, picture, picture.dots & picture.dead, "o", "white", MUTED)


def _scatter(
    ax: Axes,
    picture: Picture,
    chosen: NDArray[np.bool_],
    marker: str,
    fill: str,
    edge: str,
) -> None:
    ax.scatter(
        picture.places.x[chosen],
        picture.places.y[chosen],
        s=picture.area(picture.size[chosen]),
        marker=marker,
        facecolors=fill,
        edgecolors=edge,
        linewidths=0.7,
        zorder=3,
    )
