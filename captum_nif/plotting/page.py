"""Flow graphs as one interactive page, which opens offline and in notebooks.

The page holds its data, style and script, and its content security policy lets it load
nothing else and run no other script, so that it is safe to send and to open.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_nif._files import whole_or_nothing
from captum_nif._messages import renamed_argument
from captum_nif.graph.elements import Layer
from captum_nif.graph.false_discovery import check_fdr
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import is_chain
from captum_nif.network.adjacency import dead_nodes, node_flows
from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import gamma_sweep
from captum_nif.network.export import PALETTE
from captum_nif.network.node_flow import paths_both_ways
from captum_nif.network.summary import GraphSummary, summarize
from captum_nif.plotting.columns import (
    Connections,
    among,
    connections,
    image_planes,
    layer_columns,
    layer_of_nodes,
)

GAMMAS = (0.5, 0.8, 1.0, 1.25, 2.0)
_IN_NOTEBOOKS = 20_000  # links; every copy of a notebook carries them
_PROMPT = 20_000  # links up to which five gammas take about a second
_PATIENT = 200_000  # links up to which one does


@renamed_argument("level", "fdr")
def save_html(
    graph: FlowGraph | Mapping[str, FlowGraph],
    path: str | os.PathLike[str],
    *,
    title: str = "Neural information flow",
    gammas: Sequence[float] = GAMMAS,
    max_links: int = 100_000,
    fdr: float = 0.05,
) -> None:
    r"""Writes flow graphs as one self-contained, interactive page.

    The page shows layers from left to right (on a narrow screen from top to bottom):
    the width of a link is its flow, the size of a node its betweenness, its color its
    community. Pointing at a node tells its numbers; clicking one lights its strongest
    paths, with their shares in the path sum (Eq. 4). It can be used by mouse, touch
    and keyboard, in light and dark, and loads nothing from anywhere.

    Args:
        graph (FlowGraph or mapping of str to FlowGraph): The graph, or several of the
            same layers to switch between, by name, such as the population and some
            samples.
        path (str or os.PathLike): The file, written whole or not at all.
        title (str, optional): Title of the page.
            Default: ``"Neural information flow"``
        gammas (sequence of float, optional): Resolutions at which communities can be
            seen; see :func:`~captum_nif.gamma_sweep`. Each takes seconds
            where there are 100,000 links.
            Default: five from 0.5 to 2
        max_links (int, optional): How many links of each graph the page holds at most,
            the strongest of each layer. The page says what it leaves out; numbers of
            nodes count everything.
            Default: ``100_000``
        fdr (float, optional): The false discovery rate at which links are
            significant, where they have p-values. Other links are faint, dashed on
            the strongest paths, and can be hidden, which leaves paths through them
            out; numbers count them, as they are not in ``graph.significant()``.
            Default: ``0.05``

    Raises:
        TypeError: If something is no ``FlowGraph``.
        ValueError: If there is no graph, or no ``gamma``, if ``max_links`` is below 1,
            if ``fdr`` is not between 0 and 1, or if the graphs have different layers.
        OSError: If the file cannot be written; nothing is left behind then.

    Examples::

        >>> import tempfile
        >>> from captum_nif import Layer, Link
        >>> layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
        >>> graph = FlowGraph(layers, [Link("x", "y", torch.rand(2, 1))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_html({"population": graph}, f"{folder}/flow.html")
    """
    page = to_html(graph, title=title, gammas=gammas, max_links=max_links, fdr=fdr)
    with whole_or_nothing(path) as file:
        file.write(page.encode())


@renamed_argument("level", "fdr")
def to_html(
    graph: FlowGraph | Mapping[str, FlowGraph],
    *,
    title: str = "Neural information flow",
    gammas: Sequence[float] = GAMMAS,
    max_links: int = 100_000,
    fdr: float = 0.05,
) -> str:
    r"""Returns the page that :func:`save_html` writes.

    Args:
        graph (FlowGraph or mapping of str to FlowGraph): As for :func:`save_html`.
        title (str, optional): As for :func:`save_html`.
        gammas (sequence of float, optional): As for :func:`save_html`.
        max_links (int, optional): As for :func:`save_html`.
        fdr (float, optional): As for :func:`save_html`.

    Returns:
        str: A document in HTML, to be encoded as UTF-8.

    Raises:
        TypeError, ValueError: As :func:`save_html`.
    """
    graphs = dict(graph) if isinstance(graph, Mapping) else {"population": graph}
    _check(graphs, gammas, max_links)
    check_fdr(fdr)
    some = next(iter(graphs.values()))
    data = {
        "title": title,
        "gammas": list(gammas),
        "fdr": fdr,
        "palette": ["rgb({}, {}, {})".format(*color) for color in PALETTE],
        "layers": [
            _layer_data(layer, column)
            for layer, column in zip(some.layers, layer_columns(some), strict=True)
        ],
        "graphs": [
            {"name": name, **_graph_data(each, gammas, max_links, fdr)}
            for name, each in graphs.items()
        ],
    }
    return _page(data)


def notebook_html(graph: FlowGraph) -> str | None:
    """The page in a frame, for notebooks; ``None`` for graphs too large for one.

    The page holds at most 20,000 links. Graphs of more than that show communities at
    one resolution, and those of more than 200,000 are left to :func:`save_html`.
    """
    count = sum(len(link.entries()[0]) for link in graph.links)
    if count > _PATIENT:
        return None
    gammas = GAMMAS if count <= _PROMPT else (1.0,)
    page = to_html(graph, gammas=gammas, max_links=_IN_NOTEBOOKS)
    return (
        '<iframe title="Flow graph" sandbox="allow-scripts" '
        'style="width: 100%; height: 640px; border: 0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def _check(
    graphs: Mapping[str, FlowGraph], gammas: Sequence[float], max_links: int
) -> None:
    for each in graphs.values():
        if not isinstance(each, FlowGraph):
            raise TypeError(f"expected a FlowGraph, got {type(each).__name__}")
    if not graphs:
        raise ValueError("there is no graph to show, got an empty mapping")
    if not gammas:
        raise ValueError("give at least one gamma, got none")
    if max_links < 1:
        raise ValueError(f"max_links must be at least 1, got {max_links}")
    first, *others = graphs.items()
    for name, each in others:
        if each.layers != first[1].layers:
            raise ValueError(
                f"the graphs {first[0]!r} and {name!r} have different layers; write "
                "a page for each"
            )


def _page(data: Mapping[str, Any]) -> str:
    # As these escapes, no name can end the script element or open another.
    escapes = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}
    inlined = json.dumps(data, allow_nan=False, separators=(",", ":"))
    assets = files("captum_nif.plotting").joinpath("assets")

    def read(*names: str) -> str:
        return "".join(assets.joinpath(name).read_text("utf-8") for name in names)

    parts = {
        "style": read("page.css"),
        "script": read("graph.js", "layout.js", "drawing.js", "page.js"),
    }
    policy = (
        f"default-src 'none'; script-src {_hash(parts['script'])}; "
        f"style-src {_hash(parts['style'])}; base-uri 'none'; form-action 'none'"
    )
    parts |= {"policy": policy, "data": inlined.translate(escapes)}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], read("page.html"))


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _layer_data(layer: Layer, column: int) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "size": layer.size,
        "shape": layer.shape,
        "labels": layer.labels,
        "image": image_planes(layer),
        "column": column,
    }


def _graph_data(
    graph: FlowGraph, gammas: Sequence[float], max_links: int, fdr: float
) -> dict[str, Any]:
    links = connections(graph)
    flow_in, flow_out = node_flows(graph)
    betweenness = betweenness_centrality(graph)
    steps = gamma_sweep(graph, gammas)
    middle = min(steps, key=lambda step: abs(np.log(step.gamma)))
    paths_in, paths_out = (_row(graph, x) for x in paths_both_ways(graph))
    kept = links.where(_by_rank(graph, links)[:max_links])
    significant = graph.significant(fdr) if graph.has_pvalues else graph
    insignificant = ~among(graph, kept, connections(significant))
    reached = layer_of_nodes(graph)[links.target]
    into = np.bincount(reached, np.abs(links.weight), len(graph.layers))
    return {
        "source": kept.source.tolist(),
        "target": kept.target.tolist(),
        "weight": _rounded(kept.weight),
        "insignificant": insignificant.nonzero()[0].tolist(),
        "total": len(links.weight),
        "intoLayer": _rounded(into),
        "isChain": is_chain(graph.links),
        "flowIn": _rounded(_row(graph, flow_in)),
        "flowOut": _rounded(_row(graph, flow_out)),
        "betweenness": _rounded(_row(graph, betweenness)),
        "dead": dead_nodes(graph).nonzero()[0].tolist(),
        "pathsIn": _rounded(paths_in),
        "pathsOut": _rounded(paths_out),
        "communities": [_row(graph, step.partition).tolist() for step in steps],
        "modularity": _rounded(np.array([step.standard_modularity for step in steps])),
        "summary": _summary_data(summarize(graph, betweenness, middle.partition, fdr)),
    }


def _by_rank(graph: FlowGraph, links: Connections) -> NDArray[np.int64]:
    """Orders links so that any first part of them carries one share of every layer.

    A link's rank is the share that stronger links into its layer carry, so this is the
    order in which ``FlowGraph.top`` adds links.
    """
    reached = layer_of_nodes(graph)[links.target]
    order = np.lexsort((-links.share, reached))
    ordered = links.share[order]
    carried = np.cumsum(ordered) - ordered
    first = np.searchsorted(reached[order], reached[order])
    return order[np.argsort(carried - carried[first], kind="stable")]


def _row(graph: FlowGraph, values: Mapping[str, Tensor]) -> NDArray[Any]:
    row: NDArray[Any] = torch.cat(
        [values[layer.name] for layer in graph.layers]
    ).numpy()
    return row


def _rounded(values: NDArray[Any]) -> list[float]:
    """Numbers with five digits: more make the page larger and show nothing."""
    return [float(f"{value:.5g}") for value in values.tolist()]


def _summary_data(summary: GraphSummary) -> dict[str, Any]:
    return {
        "bottleneck": summary.bottleneck,
        "layers": [
            {
                "flow": float(f"{each.flow_in or each.flow_out:.3g}"),
                "dead": len(each.dead),
                "effective": round(each.effective_size, 1),
                "central": each.central,
            }
            for each in summary.layers
        ],
    }
