"""Graphs from node values: blocks of samples, chains, ticks, and what is left out."""

import pytest
import torch
from torch import Tensor

from captum_nif import Layer, MixedKSG
from captum_nif.flow import information as flow_module
from captum_nif.flow.feature_groups import FeatureGroups
from captum_nif.flow.information import Flow
from captum_nif.flow.link_weights import LinkRule
from captum_nif.tracing.tracer import Structure

KSG = MixedKSG(k=3)
LAYERS = (
    Layer("x", 4, "input", shape=(2, 2)),
    Layer("ids", 3, "input"),
    Layer("h", 3, "hidden"),
    Layer("y", 2, "output"),
)
DAG = Structure(LAYERS, (("x", "h"), ("x", "y"), ("h", "y")))
CHAIN = Structure(LAYERS, (("x", "h"), ("h", "y")))


def values(n: int, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    drawn = {s.name: torch.randn(n, s.size, generator=rng) for s in LAYERS}
    return drawn | {"ids": torch.randint(0, 9, (n, 3), generator=rng)}


@pytest.fixture
def flow() -> Flow:
    return Flow(DAG, values(30, 0), LinkRule(KSG))


def test_links_carry_what_the_estimator_says(flow):
    population, query = values(30, 0), values(4, 1)
    graphs = flow.instance_graphs(query, "y", None)
    assert len(graphs) == 4
    for i, (a, b) in enumerate(DAG.links):
        pmi = KSG.pmi(population[a], population[b], (query[a], query[b]))
        for s in range(4):
            assert graphs[s].links[i].ends == (a, b)
            assert torch.equal(graphs[s].links[i].weight, pmi[s])
        mi = flow.population_graph("y").links[i].weight
        assert torch.equal(mi, KSG.mi(population[a], population[b]))


@pytest.mark.parametrize("by", [None, "node", "layer"])
@pytest.mark.parametrize("budget", [1, 40, 1 << 25])
def test_blocks_of_samples_do_not_show(flow, by, budget, monkeypatch):
    query, nodes = values(7, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    whole = flow.attributions(query, "y", nodes, by)
    graphs = flow.instance_graphs(query, "y", nodes)
    monkeypatch.setattr(flow_module, "_BUDGET", budget)
    ticks = []
    cut = flow.attributions(query, "y", nodes, by, lambda: ticks.append(1))
    assert len(ticks) == flow.steps(query)
    assert list(cut) == ["x", "ids"]
    torch.testing.assert_close(cut["x"], whole["x"], rtol=1e-14, atol=1e-15)
    assert cut["ids"].shape == (7, 3)
    assert not cut["ids"].any()
    assert flow.instance_graphs(query, "y", nodes) == graphs


def test_progress_counts_links(flow):
    ticks = []
    flow.population_graph("y", advance=lambda: ticks.append(1))
    assert len(ticks) == flow.steps(None) == 3
    flow.attributions(None, "y", torch.zeros(30).long(), None, lambda: ticks.append(1))
    assert len(ticks) == 6


def test_only_what_flows_into_one_node(flow):
    full, only = flow.population_graph("y"), flow.population_graph("h", 1)
    assert [layer.name for layer in only.layers] == ["x", "ids", "h"]
    assert [layer.kind for layer in only.layers] == ["input", "input", "output"]
    [link] = only.links
    assert torch.equal(link.weight[:, 1], full.links[0].weight[:, 1])
    assert not link.weight[:, [0, 2]].any()


def test_chains(flow):
    rule, population = LinkRule(KSG), values(30, 0)
    assert Flow(CHAIN, population, rule).is_chain
    assert not flow.is_chain
    joined = Structure(LAYERS, (("x", "h"), ("ids", "h"), ("h", "y")))
    assert not Flow(joined, population, rule).is_chain


def test_integers_that_are_read_as_numbers_are_nodes():
    population = values(30, 0)
    read = Structure(LAYERS, (("ids", "y"),))
    graph = Flow(read, population, LinkRule(KSG)).population_graph("y")
    assert torch.equal(
        graph.links[0].weight, KSG.mi(population["ids"].double(), population["y"])
    )


def test_double_precision_is_kept():
    population = {name: x.double() for name, x in values(30, 0).items()}
    population["x"] = 1.0 + 1e-12 * population["x"]
    groups = {"x": FeatureGroups(torch.arange(4), 4)}
    for grouped in (None, groups):
        graph = Flow(DAG, population, LinkRule(KSG), grouped).population_graph("y")
        expected = KSG.mi(population["x"], population["y"])
        assert torch.equal(graph.links[1].weight, expected)


def test_groups_replace_the_elements_of_an_input():
    population, query = values(30, 0), values(3, 1)
    groups = FeatureGroups(torch.tensor([0, 1, 0, 1]), 2)
    grouped = Flow(DAG, population, LinkRule(KSG), {"x": groups})
    assert (grouped.layers[0].size, grouped.layers[0].shape) == (2, (2,))
    means = {
        name: torch.stack([v[:, 0] + v[:, 2], v[:, 1] + v[:, 3]], 1) / 2
        for name, v in (("population", population["x"]), ("query", query["x"]))
    }
    graph = grouped.instance_graphs(query, "y", None)[2]
    expected = KSG.pmi(
        means["population"], population["y"], (means["query"], query["y"])
    )
    assert torch.equal(graph.links[1].weight, expected[2])
    found = grouped.attributions(query, "y", torch.tensor([1, 0, 1]), None)["x"]
    sums = graph.path_sums(1)
    torch.testing.assert_close(found[2], sums[[0, 1, 0, 1]], rtol=1e-14, atol=1e-15)


def test_a_large_batch_is_no_population_of_its_own(flow, monkeypatch):
    monkeypatch.setattr(flow_module, "_UNFITTED_BUDGET", 30 * 14 - 1)
    with pytest.raises(ValueError, match=r"30 samples.*420 link weights.*fit"):
        flow.instance_graphs(None, "y", None)
    monkeypatch.setattr(flow_module, "_UNFITTED_BUDGET", 30 * 14)
    assert len(flow.instance_graphs(None, "y", None)) == 30


def test_a_layer_is_prepared_once(flow, monkeypatch):
    prepared = []
    original = MixedKSG.prepare

    def counted(self: MixedKSG, x: Tensor) -> object:
        prepared.append(x.shape[1])
        return original(self, x)

    monkeypatch.setattr(MixedKSG, "prepare", counted)
    flow.prepare()
    flow.population_graph("y")
    flow.attributions(values(3, 1), "y", torch.zeros(3).long(), None)
    assert sorted(prepared) == [2, 3, 4]
