"""The geometry of a static picture: which nodes and links are drawn, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captum_nif.graph.elements import Layer
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.adjacency import dead_nodes, node_count, node_spans
from captum_nif.network.node_flow import flow_shares
from captum_nif.plotting.columns import (
    Connections,
    among,
    connections,
    image_planes,
    layer_columns,
    layer_of_nodes,
    strongest,
)

Number = TypeVar("Number", float, NDArray[np.float64])

_GAP = 0.2  # largest distance between nodes of a layer; the picture's height is 1
_LIKE_AN_IMAGE = 10  # nodes in a column that take as much height as an image
_ALONG = np.linspace(0.0, 1.0, 33)  # from the source of a link to its target


class Places(NamedTuple):
    """Where things stand: columns of layers from left to right, heights from 0 to 1.

    Args:
        x (array): For each node in the row of all nodes; NaN where it is not drawn.
        y (array): The same.
        tops (list): For each layer the height that its name stands above.
        boxes (dict): Left, right, bottom and top of each layer that is drawn as an
            image, by its place in the graph.
        folded (dict): x, y and number of the nodes left out, by the place of a layer.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    tops: list[float]
    boxes: dict[int, tuple[float, float, float, float]]
    folded: dict[int, tuple[float, float, int]]


@dataclass(frozen=True, eq=False)
class Picture:
    """All that is drawn of a graph.

    Args:
        graph (FlowGraph): Without weak links.
        places (Places): Where its nodes stand.
        flow (Connections): The links drawn.
        weak (Connections): The weak links that are drawn.
        weakness (str): What makes links weak.
        betweenness (array): Of each node in the row of all nodes.
        group (array): For each node the place of its community in ``names``, or the
            length of ``names`` for the communities without a color.
        names (array): The communities that have a color.
        scale (float): Size of letters and nodes: 1, or less in a small axes.
    """

    graph: FlowGraph
    places: Places
    flow: Connections
    weak: Connections
    weakness: str
    betweenness: NDArray[np.float64]
    group: NDArray[np.int64]
    names: NDArray[np.int64]
    scale: float

    @cached_property
    def dots(self) -> NDArray[np.bool_]:
        """Which nodes are drawn one by one, not as pixels."""
        pixels = np.isin(layer_of_nodes(self.graph), list(self.places.boxes))
        return ~(np.isnan(self.places.x) | pixels)

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """Which nodes nothing flows through."""
        return dead_nodes(self.graph)

    @cached_property
    def size(self) -> NDArray[np.float64]:
        """Betweenness of each node relative to the largest that is drawn."""
        return self.betweenness / (self.largest or 1.0)

    @cached_property
    def largest(self) -> float:
        """The largest betweenness that is drawn."""
        return float(self.betweenness[self.dots].max(initial=0.0))

    def area(self, size: Number) -> Number:
        """Area in square points of nodes of that relative betweenness."""
        return (16.0 + 244.0 * size) * self.scale**2

    @cached_property
    def total(self) -> int:
        """Number of links, drawn or not, that are not weak."""
        return len(connections(self.graph).weight)

    @cached_property
    def shares(self) -> dict[int, float]:
        """Drawn share of the flow into each layer that any enters, by its place."""
        reached = layer_of_nodes(self.graph)
        drawn = np.bincount(
            reached[self.flow.target],
            weights=self.flow.share,
            minlength=len(self.graph.layers),
        )
        entered = np.unique(reached[connections(self.graph).target])
        return {int(n): float(drawn[n]) for n in entered}


def place_nodes(graph: FlowGraph, max_nodes: int, width: float) -> Places:
    """Places the nodes; the last column is ``width`` to the right of the first."""
    columns = layer_columns(graph)
    step = width / max(max(columns), 1)
    shares = flow_shares(graph)
    x, y = np.full((2, node_count(graph)), np.nan)
    places = Places(x, y, [0.0] * len(columns), {}, {})
    for column in sorted(set(columns)):
        members = [n for n, at in enumerate(columns) if at == column]
        shown = {n: _shown(graph.layers[n], shares, max_nodes) for n in members}
        rows = {n: min(len(nodes), _LIKE_AN_IMAGE) + 1 for n, nodes in shown.items()}
        top = 1.0
        for n, nodes in shown.items():
            height = rows[n] / sum(rows.values())
            _place_layer(graph, n, nodes, column * step, (top - height, top), places)
            top -= height
    return places


def _shown(
    layer: Layer, shares: Mapping[str, Tensor], max_nodes: int
) -> NDArray[np.int64]:
    if image_planes(layer) or layer.size <= max_nodes:
        return np.arange(layer.size)
    share = shares[layer.name].numpy()
    return np.sort(np.argsort(-share, kind="stable")[:max_nodes])


def _place_layer(
    graph: FlowGraph,
    n: int,
    nodes: NDArray[np.int64],
    x: float,
    band: tuple[float, float],
    places: Places,
) -> None:
    layer, (start, stop) = graph.layers[n], node_spans(graph)[n]
    middle, height = (band[0] + band[1]) / 2, band[1] - band[0]
    # Alone in its column a layer's name stands in line with those of the others.
    alone = height == 1.0
    if planes := image_planes(layer):
        _, rows, columns = planes
        pixel = min(0.6, 0.8 * height) / max(rows, columns)
        left, top = x - pixel * columns, middle + pixel * rows / 2
        places.boxes[n] = (left, x, top - pixel * rows, top)
        row, column = np.divmod(np.arange(layer.size) % (rows * columns), columns)
        places.x[start:stop] = left + pixel * (column + 0.5)
        places.y[start:stop] = top - pixel * (row + 0.5)
        places.tops[n] = 1.0 if alone else top
        return
    gap = min(_GAP, (0.96 if alone else 0.8) * height / len(nodes))
    steps = (len(nodes) - 1) / 2 - np.arange(len(nodes))
    places.x[start + nodes] = x
    places.y[start + nodes] = middle + gap * steps
    places.tops[n] = 1.0 if alone else middle + gap * (steps[0] + 0.5)
    if len(nodes) < layer.size:
        below = middle + gap * (steps[-1] - 0.5)
        places.folded[n] = (x, below, layer.size - len(nodes))


def links_to_draw(
    graph: FlowGraph, strong: FlowGraph, places: Places, links_per_node: int
) -> tuple[Connections, Connections]:
    """The strongest links between drawn nodes: those of ``strong``, and the others."""
    everything, counting = connections(graph), connections(strong)
    drawn = ~np.isnan(places.x)
    links = everything.where(drawn[everything.source] & drawn[everything.target])
    kept = strongest(links.target, links.weight, links_per_node)
    # The strongest link out of each of hundreds of pixels would bury the picture.
    pixels = np.isin(layer_of_nodes(graph), list(places.boxes))[links.source]
    kept |= strongest(links.source, links.weight, 1) & ~pixels
    chosen = links.where(kept)
    flow = counting.where(among(graph, counting, chosen))
    return flow, chosen.where(~among(graph, chosen, counting))


def relative_flow(graph: FlowGraph, links: Connections) -> NDArray[np.float64]:
    """Absolute flow of each link relative to the strongest into the same layer."""
    reached = layer_of_nodes(graph)[links.target]
    largest = np.zeros(len(graph.layers))
    np.maximum.at(largest, reached, np.abs(links.weight))
    return np.abs(links.weight) / largest[reached]


def link_curves(
    graph: FlowGraph, places: Places, links: Connections
) -> NDArray[np.float64]:
    """Points on each link, [links, points, 2]: level at both ends, bent over skips."""
    x, y = (
        at[links.source][:, None] + (at[links.target] - at[links.source])[:, None] * way
        for at, way in (
            (places.x, _ALONG),
            (places.y, _ALONG**2 * (3.0 - 2.0 * _ALONG)),
        )
    )
    column = np.array(layer_columns(graph))[layer_of_nodes(graph)]
    skipped = (column[links.target] - column[links.source] - 1).clip(min=0)
    # Up, for as far as they stay clear of the names above.
    room = 1.05 - np.maximum(places.y[links.source], places.y[links.target])
    y += np.minimum(0.16 * np.sqrt(skipped), room)[:, None] * np.sin(np.pi * _ALONG)
    return np.stack((x, y), axis=-1)
