"""Flow graphs as files for other programs: JSON, and XML for Gephi and Cytoscape.

Every format holds the whole graph, which networkx builds in memory first, some
kilobytes for each link: write ``graph.top(fraction)`` of a large one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from captum_nif._files import whole_or_nothing
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.adjacency import check_by_layer, check_graph, node_flows

if TYPE_CHECKING:
    import networkx as nx

PALETTE = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
"""Colors that color-blind readers tell apart (Okabe and Ito, 2008), as red, green,
blue from 0 to 255: one for each community in turn."""

_NO_COLOUR = (153, 153, 153)

# Gephi's units: distance between layers, their height, diameters of nodes, and the
# thickness of an edge that carries all the flow into a layer.
_WIDTH, _HEIGHT = 300.0, 1000.0
_SMALLEST, _LARGEST = 4.0, 40.0
_THICKEST = 100.0

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_json(
    graph: FlowGraph,
    path: str | os.PathLike[str],
    betweenness: Mapping[str, Tensor] | None = None,
    community: Mapping[str, Tensor] | None = None,
) -> None:
    r"""Writes node-link JSON, which ``networkx.node_link_graph(edges="edges")`` reads.

    Nodes are called ``"layer:index"`` and carry ``layer``, ``index``, ``kind``,
    ``label``, ``flow_in`` and ``flow_out`` (sums of :math:`|w|`), and where given
    ``betweenness`` and ``community``. Edges carry ``weight`` and ``share``, their part
    in the flow into their target's layer, and if all links have p-values ``pvalue`` and
    ``adjusted_pvalue`` (:meth:`~captum_nif.FlowGraph.adjusted_pvalues`). Entries
    of exactly 0 are no edges.

    Args:
        graph (FlowGraph): The graph.
        path (str or os.PathLike): The file, written whole or not at all.
        betweenness (mapping of str to Tensor, optional): For each layer by name a
            number for each node, as from ``betweenness_centrality``.
            Default: ``None``
        community (mapping of str to Tensor, optional): For each layer by name the
            community of each node, as from ``communities``.
            Default: ``None``

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph``.
        ValueError: If the numbers given have other layers or sizes than the graph, or
            are not finite.
        OSError: If the file cannot be written; nothing is left behind then.

    Examples::

        >>> import tempfile, torch
        >>> from captum_nif import Layer, Link
        >>> layers = [Layer("x", 1, "input"), Layer("y", 1, "output")]
        >>> graph = FlowGraph(layers, [Link("x", "y", torch.tensor([[0.5]]))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(graph, f"{folder}/flow.json")
        ...     with open(f"{folder}/flow.json") as file:
        ...         json.load(file)["edges"]
        [{'weight': 0.5, 'share': 1.0, 'source': 'x:0', 'target': 'y:0'}]
    """
    import networkx as nx

    network = _annotated(graph, betweenness, community)
    data = nx.node_link_data(network, edges="edges")
    with whole_or_nothing(path) as file:
        file.write(json.dumps(data, allow_nan=False).encode())


def write_graphml(
    graph: FlowGraph,
    path: str | os.PathLike[str],
    betweenness: Mapping[str, Tensor] | None = None,
    community: Mapping[str, Tensor] | None = None,
) -> None:
    r"""Writes GraphML, with the names and attributes of :func:`write_json`.

    Args:
        graph (FlowGraph): The graph.
        path (str or os.PathLike): The file, written whole or not at all.
        betweenness (mapping of str to Tensor, optional): As for :func:`write_json`.
            Default: ``None``
        community (mapping of str to Tensor, optional): As for :func:`write_json`.
            Default: ``None``

    Raises:
        TypeError, ValueError, OSError: As :func:`write_json`; a ``ValueError`` also if
            a name holds characters that XML cannot.
    """
    import networkx as nx

    network = _annotated(graph, betweenness, community)
    _check_xml(network)
    with whole_or_nothing(path) as file:
        nx.write_graphml(network, file)


def write_gexf(
    graph: FlowGraph,
    path: str | os.PathLike[str],
    betweenness: Mapping[str, Tensor] | None = None,
    community: Mapping[str, Tensor] | None = None,
) -> None:
    r"""Writes GEXF, Gephi's format, with a layout that can be looked at right away.

    Beside the attributes of :func:`write_json`: layers stand from left to right, the
    size of a node is its ``betweenness`` (or else its flow), its color its
    ``community``, and the thickness of an edge its share of its layer's flow.

    Args:
        graph (FlowGraph): The graph.
        path (str or os.PathLike): The file, written whole or not at all.
        betweenness (mapping of str to Tensor, optional): As for :func:`write_json`.
            Default: ``None``
        community (mapping of str to Tensor, optional): As for :func:`write_json`.
            Default: ``None``

    Raises:
        TypeError, ValueError, OSError: As :func:`write_graphml`.
    """
    import networkx as nx

    network = _annotated(graph, betweenness, community)
    _check_xml(network)
    _draw(network, graph)
    with whole_or_nothing(path) as file:
        nx.write_gexf(network, file)


def _annotated(
    graph: FlowGraph,
    betweenness: Mapping[str, Tensor] | None,
    community: Mapping[str, Tensor] | None,
) -> nx.DiGraph[str]:
    import networkx as nx

    check_graph(graph)
    flow_in, flow_out = node_flows(graph)
    attributes: dict[str, Mapping[str, Tensor]] = {
        "flow_in": flow_in,
        "flow_out": flow_out,
    }
    for name, values in (("betweenness", betweenness), ("community", community)):
        if values is not None:
            check_by_layer(graph, values, name)
            attributes[name] = values
    network = graph.to_networkx()
    for name, values in attributes.items():
        for layer in graph.layers:
            for index, value in enumerate(values[layer.name].tolist()):
                network.nodes[layer.name, index][name] = value
    totals = {name: float(flow.sum()) for name, flow in flow_in.items()}
    adjusted = graph.adjusted_pvalues() if graph.has_pvalues else {}
    for (source, row), (target, column), data in network.edges(data=True):
        data["share"] = abs(data["weight"]) / totals[target]
        if adjusted:
            data["adjusted_pvalue"] = adjusted[source, target][row, column].item()
    names = {(layer, index): f"{layer}:{index}" for layer, index in network}
    return nx.relabel_nodes(network, names)


def _check_xml(network: nx.DiGraph[str]) -> None:
    for node, data in network.nodes(data=True):
        for text in (node, data["label"]):
            if _NOT_XML.search(text):
                raise ValueError(
                    f"XML cannot hold the name {text!r}; rename the node, or write JSON"
                )


def _draw(network: nx.DiGraph[str], graph: FlowGraph) -> None:
    strengths = [
        data.get("betweenness", data["flow_in"] + data["flow_out"])
        for _, data in network.nodes(data=True)
    ]
    largest = max(strengths) or 1.0
    column = {layer.name: number for number, layer in enumerate(graph.layers)}
    size = {layer.name: layer.size for layer in graph.layers}
    for (_, data), strength in zip(network.nodes(data=True), strengths, strict=True):
        color = _NO_COLOUR
        if "community" in data:
            color = PALETTE[data["community"] % len(PALETTE)]
        # Wide layers are as tall as narrow ones, row 0 at the top.
        height = 0.5 - (data["index"] + 0.5) / size[data["layer"]]
        data["viz"] = {
            "size": _SMALLEST + (_LARGEST - _SMALLEST) * strength / largest,
            "color": dict(zip("rgb", color, strict=True)) | {"a": 1.0},
            "position": {
                "x": _WIDTH * column[data["layer"]],
                "y": _HEIGHT * height,
                "z": 0.0,
            },
        }
    for _, _, data in network.edges(data=True):
        data["viz"] = {"thickness": _THICKEST * data["share"]}
