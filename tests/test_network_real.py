"""The network half on trained networks: what must hold on every graph of a real one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.bench_attribution import photograph_patches
from benchmarks.data.datasets import Dataset, load_dataset, load_mnist
from benchmarks.data.models import cnn, mlp, train
from benchmarks.data.published import load_network
from captum_nif import (
    FlowGraph,
    NIFAttribution,
    betweenness_centrality,
    communities,
    gamma_sweep,
    modularity,
    plot_flow,
    save_html,
    summarize,
    write_gexf,
    write_graphml,
    write_json,
)

NETWORKS = ("iris", "banknote", "digits", "mnist", "resnet20")
READERS: dict[Callable[..., None], Callable[[Path], nx.DiGraph]] = {
    write_json: lambda path: nx.node_link_graph(
        json.loads(path.read_text()), edges="edges"
    ),
    write_graphml: nx.read_graphml,
    write_gexf: nx.read_gexf,
}


class Network(NamedTuple):
    graph: FlowGraph
    betweenness: dict[str, torch.Tensor]
    community: dict[str, torch.Tensor]


def small_network(dataset: Dataset) -> tuple[nn.Module, torch.Tensor]:
    """A trained one with its background; for tables it is the paper's."""
    if dataset.name == "digits":
        model = train(cnn((1, 8, 8), 10), dataset, epochs=3, learning_rate=2e-3)
    else:
        model = mlp(4, len(dataset.class_names), (10, 5))
        epochs = 60 if dataset.name == "iris" else 15
        train(model, dataset, epochs=epochs, learning_rate=0.01)
    return model, dataset.x_train[:200]


def published_network(name: str, data_dir: Path) -> tuple[nn.Module, torch.Tensor]:
    """One of the data folder, with its background."""
    if name == "mnist":
        mnist = load_mnist(data_dir, n_train=100, n_test=1, download=False)
        return load_network("mnist_fc_3layer", data_dir, download=False), mnist.x_train
    patches = photograph_patches(60, str(data_dir), seed=0)
    return load_network(name, data_dir, download=False), patches


@pytest.fixture(scope="module", params=NETWORKS)
def network(request) -> Network:
    name = request.param
    if name in ("iris", "digits"):
        model, background = small_network(load_dataset(name))
    else:
        data_dir = request.getfixturevalue("data_dir")
        if name == "banknote":
            model, background = small_network(load_dataset(name, data_dir))
        else:
            model, background = published_network(name, data_dir)
    graph = NIFAttribution(model).fit(background).flow()
    return Network(graph, betweenness_centrality(graph), communities(graph))


def test_betweenness_is_finite_and_dead_nodes_have_none(network):
    graph, betweenness, _ = network
    measures = [
        betweenness_centrality(graph, distance, endpoints)
        for distance in ("log", "inverse")
        for endpoints in ("all", "input-output")
    ]
    dead = {layer.name: layer.dead for layer in summarize(*network).layers}
    for measure in measures:
        for layer in graph.layers:
            values = measure[layer.name]
            assert values.shape == (layer.size,)
            assert values.isfinite().all()
            assert (values >= 0).all()
            for label, value in zip(layer.node_labels(), values, strict=True):
                assert label not in dead[layer.name] or value == 0
            # nothing comes before the inputs, nor after the outputs
            assert layer.kind == "hidden" or not values.any()
    # some hidden node lies between others, or nothing was tested
    assert any(values.any() for values in betweenness.values())
    # of paths between some ends, no node has more than of those between all
    everywhere, from_inputs = measures[:2]
    for name, values in from_inputs.items():
        assert (values <= everywhere[name] + 1e-9).all()


def test_communities_cover_all_nodes_and_follow_equation_two(network):
    graph, _, community = network
    labels = torch.cat([community[layer.name] for layer in graph.layers]).numpy()
    assert [len(community[layer.name]) for layer in graph.layers] == [
        layer.size for layer in graph.layers
    ]
    assert np.unique(labels).tolist() == [*range(labels.max() + 1)]
    everyone = nx.Graph(graph.to_networkx())
    everyone.remove_edges_from(
        [(a, b) for a, b, w in everyone.edges(data="weight") if w <= 0]
    )
    groups = [set() for _ in range(labels.max() + 1)]
    for node, label in zip(everyone, labels.tolist(), strict=True):
        groups[label].add(node)
    found = modularity(graph, community)
    assert found == pytest.approx(nx.community.modularity(everyone, groups), abs=1e-9)
    assert 0 < found < 1
    alone = {next(iter(group)) for group in groups if len(group) == 1}
    assert {node for node, degree in everyone.degree if degree == 0} <= alone


def test_less_gamma_gives_more_communities(network):
    fine, coarse = gamma_sweep(network.graph, (0.5, 2.0))
    assert fine.count > coarse.count
    for step in (fine, coarse):
        assert step.modularity == modularity(network.graph, step.partition, step.gamma)


def test_the_summary_adds_up(network):
    graph, betweenness, community = network
    summary = summarize(graph, betweenness, community)
    assert sum(summary.communities) == sum(layer.size for layer in graph.layers)
    flow_in = sum(layer.flow_in for layer in summary.layers)
    flow_out = sum(layer.flow_out for layer in summary.layers)
    total = sum(float(link.weight.double().abs().sum()) for link in graph.links)
    assert flow_in == pytest.approx(total)
    assert flow_out == pytest.approx(total)
    for layer in summary.layers:
        assert 1 <= layer.effective_size <= layer.size + 1e-9
    assert summary.bottleneck in {x.name for x in summary.layers if x.kind == "hidden"}


def test_exports_come_back_equal(network, tmp_path):
    graph, betweenness, community = network
    graph = graph.top(0.2) if graph.layers[0].size > 64 else graph  # XML is slow
    wanted = graph.to_networkx()
    for write, read in READERS.items():
        path = tmp_path / write.__name__
        write(graph, path, betweenness, community)
        found = read(path)
        assert {
            node: (data["label"], data["betweenness"], data["community"])
            for node, data in found.nodes(data=True)
        } == {
            f"{name}:{index}": (label, float(between), int(group))
            for layer in graph.layers
            for name in [layer.name]
            for index, (label, between, group) in enumerate(
                zip(
                    layer.node_labels(), betweenness[name], community[name], strict=True
                )
            )
        }
        assert {(a, b): w for a, b, w in found.edges(data="weight")} == {
            (f"{a}:{i}", f"{b}:{j}"): w
            for (a, i), (b, j), w in wanted.edges(data="weight")
        }
    graph.save(tmp_path / "flow")
    assert FlowGraph.load(tmp_path / "flow") == graph


def test_it_is_drawn_and_written_as_a_page(network, tmp_path):
    graph, betweenness, community = network
    figure = Figure(figsize=(12, 5.6))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    plot_flow(graph, axes, betweenness=betweenness, community=community)
    figure.savefig(tmp_path / "flow.png")
    (shares,) = [x.get_text() for x in axes.texts if x.get_text().startswith("Drawn")]
    links = sum(len(link.entries()[0]) for link in graph.links)
    assert f"of {links:,} links" in shares
    save_html(graph, tmp_path / "flow.html", gammas=(1.0,), max_links=2000)
    page = (tmp_path / "flow.html").read_text()
    assert f'"total":{links}' in page
