"""How long do betweenness and communities take, beside networkx and igraph?

Random graphs in the shape of networks: one as wide as a small MNIST network (784, 512,
256 and 10 nodes), and narrower ones, with or without links that skip layers. The
betweenness of both libraries is compared number by number.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec

import networkx as nx
import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.report import Report, Row, argument_parser
from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.adjacency import by_layer, positive_adjacency
from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import communities

SHAPE = (784, 512, 256, 10)
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
REPEATS = 5

# networkx takes minutes for the next larger undirected graph.
LARGEST_UNDIRECTED_PEER = 0.25

Values = dict[str, torch.Tensor]
Peers = dict[str, Callable[[FlowGraph, bool], Callable[[], Values]]]


def random_graph(fraction: float, skips: bool, seed: int) -> FlowGraph:
    """A graph with a fraction of the nodes of ``SHAPE`` in each layer."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [max(1, round(size * fraction)) for size in SHAPE]
    kinds = ["input", "hidden", "hidden", "output"]
    layers = [
        Layer(f"layer{n}", size, kind)
        for n, (size, kind) in enumerate(zip(sizes, kinds, strict=True))
    ]
    pairs = itertools.combinations(layers, 2) if skips else itertools.pairwise(layers)
    return FlowGraph(
        layers,
        [
            Link(a.name, b.name, torch.rand(a.size, b.size, generator=generator))
            for a, b in pairs
        ],
    )


def networkx_betweenness(graph: FlowGraph, directed: bool) -> Callable[[], Values]:
    """The same numbers by networkx; the conversion is not part of the time."""
    kind = nx.DiGraph if directed else nx.Graph
    weights = positive_adjacency(graph)
    weights.data = 1.0 / weights.data
    network = nx.from_scipy_sparse_array(weights, create_using=kind)

    def run() -> Values:
        found = nx.betweenness_centrality(network, normalized=False, weight="weight")
        return by_layer(graph, np.array([found[node] for node in range(len(found))]))

    return run


def igraph_betweenness(graph: FlowGraph, directed: bool) -> Callable[[], Values]:
    """The same numbers by igraph, where it is installed."""
    import igraph

    weights = positive_adjacency(graph).tocoo()
    network = igraph.Graph(
        weights.shape[0],
        np.stack((weights.row, weights.col), axis=1),
        directed=directed,
    )

    def run() -> Values:
        found = network.betweenness(directed=directed, weights=1.0 / weights.data)
        return by_layer(graph, np.array(found))

    return run


def timed(run: Callable[[], Values], repeats: int = 1) -> tuple[float, Values]:
    """Median processor time in seconds, and the result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        values = run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), values


def betweenness_rows(graph: FlowGraph, directed: bool, peers: Peers) -> list[Row]:
    """One row for captum_nif and one for each peer, on one graph."""

    def run() -> Values:
        return betweenness_centrality(graph, "inverse", directed=directed)

    run()  # compiles, or loads what was compiled before
    own_seconds, ours = timed(run, repeats=REPEATS if directed else 1)
    results = {"captum_nif": (own_seconds, ours)}
    results |= {name: timed(peer(graph, directed)) for name, peer in peers.items()}
    return [
        {
            "paths": "directed" if directed else "undirected",
            "nodes": sum(layer.size for layer in graph.layers),
            "links": positive_adjacency(graph).nnz,
            "library": name,
            "seconds": seconds,
            "times captum_nif": seconds / own_seconds,
            "largest difference": max(
                float((ours[layer] - values[layer]).abs().max()) for layer in ours
            ),
        }
        for name, (seconds, values) in results.items()
    ]


def plotted(rows: list[Row]) -> Figure:
    """Time against links, one line for each library and kind of path."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[tuple[object, object], list[Row]] = defaultdict(list)
    for row in rows:
        lines[row["library"], row["paths"]].append(row)
    libraries = dict.fromkeys(library for library, _ in lines)
    colors = {library: f"C{number}" for number, library in enumerate(libraries)}
    for (library, paths), points in lines.items():
        axes.plot(
            [row["links"] for row in points],
            [row["seconds"] for row in points],
            "o-" if paths == "directed" else "s--",
            color=colors[library],
            label=f"{library}, {paths}",
        )
    axes.set(xscale="log", yscale="log", xlabel="links", ylabel="seconds (processor)")
    axes.legend(fontsize="small", loc="upper left")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints the page and writes it."""
    parser = argument_parser("bench_network", __doc__ or "", ["chain", "skip"])
    parser.add_argument(
        "--largest",
        type=float,
        choices=FRACTIONS,
        default=FRACTIONS[-1],
        help="width of the largest graph, relative to that of an MNIST network",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    peers: Peers = {"networkx": networkx_betweenness}
    if find_spec("igraph"):
        peers["igraph"] = igraph_betweenness

    rows: list[Row] = []
    grouping: list[Row] = []
    fractions = [fraction for fraction in FRACTIONS if fraction <= options.largest]
    with tqdm(total=3 * len(fractions), unit="step") as progress:
        for fraction in fractions:
            graph = random_graph(fraction, options.dataset == "skip", options.seed)
            for directed in (True, False):
                compared = directed or fraction <= LARGEST_UNDIRECTED_PEER
                rows += betweenness_rows(graph, directed, peers if compared else {})
                progress.update()
            seconds, found = timed(functools.partial(communities, graph))
            grouping.append(
                {
                    "nodes": rows[-1]["nodes"],
                    "links": rows[-1]["links"],
                    "Louvain [s]": seconds,
                    "communities": int(torch.cat([*found.values()]).max()) + 1,
                }
            )
            progress.update()

    report = Report("bench_network", "Betweenness and communities", options.seed)
    report.text(
        "Processor time on one thread. Lengths are 1 / w, all pairs count. "
        f"captum_nif directed: median of {REPEATS} runs after the first; everything "
        "else: one run. Conversion to a peer's format is not counted."
    )
    report.table(rows, caption="Betweenness:")
    report.figure(plotted(rows), caption="Time against the number of links")
    report.table(grouping, "communities", "Communities, by networkx:")
    for path in report.write(options.out):
        print(path)


if __name__ == "__main__":
    main()
