import json
import math
import os
import xml.etree.ElementTree as ET

import networkx as nx
import pytest
import torch
from hypothesis import given
from random_graphs import flow_graphs

from captum_nif.graph.flow_graph import FlowGraph, Layer, Link
from captum_nif.network.centrality import betweenness_centrality
from captum_nif.network.community import communities
from captum_nif.network.export import PALETTE, write_gexf, write_graphml, write_json

WRITERS = [write_json, write_graphml, write_gexf]


def read(path):
    """Reads any of the formats; all nodes are str, as written."""
    text = path.read_text()
    if text.startswith("{"):
        return nx.node_link_graph(json.loads(text), edges="edges")
    return nx.read_graphml(path) if "graphml" in text else nx.read_gexf(path)


def attributes(graph):
    """What every format must say, written down plainly."""
    network = graph.to_networkx()
    nodes = {
        f"{layer}:{index}": {
            "layer": layer,
            "index": index,
            "kind": data["kind"],
            "label": data["label"],
            "flow_in": sum(
                abs(w) for *_, w in network.in_edges((layer, index), data="weight")
            ),
            "flow_out": sum(
                abs(w) for *_, w in network.out_edges((layer, index), data="weight")
            ),
        }
        for (layer, index), data in network.nodes(data=True)
    }
    edges = {}
    for (a, i), (b, j), weight in network.edges(data="weight"):
        total = sum(
            abs(w)
            for node in network
            if node[0] == b
            for *_, w in network.in_edges(node, data="weight")
        )
        edges[f"{a}:{i}", f"{b}:{j}"] = {"weight": weight, "share": abs(weight) / total}
    return nodes, edges


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("write", WRITERS)
@given(graph=flow_graphs())
def test_every_node_and_link_comes_back(scratch, write, graph):
    path = scratch / write.__name__
    betweenness, community = betweenness_centrality(graph), communities(graph)
    write(graph, path, betweenness=betweenness, community=community)
    found = read(path)
    nodes, edges = attributes(graph)
    for name, data in nodes.items():
        layer, index = data["layer"], data["index"]
        data["betweenness"] = betweenness[layer][index].item()
        data["community"] = community[layer][index].item()
        assert {key: found.nodes[name][key] for key in data} == data
    assert [*found.nodes] == [*nodes]
    # GEXF numbers its edges besides.
    assert {
        (a, b): {key: value for key, value in data.items() if key != "id"}
        for a, b, data in found.edges(data=True)
    } == edges


@pytest.mark.parametrize("write", WRITERS)
def test_pvalues_are_written_with_those_adjusted_for_all_links(tmp_path, write):
    pvalue = torch.tensor([[0.01, 0.2], [0.5, 0.04]], dtype=torch.float64)
    # By Benjamini and Hochberg: least of p_j 4 / j for j = 1, ..., 4.
    adjusted = torch.tensor([[0.04, 0.8 / 3], [0.5, 0.08]], dtype=torch.float64)
    weight = torch.tensor([[0.3, 0.0], [0.1, 0.2]])
    layers = [Layer("x", 2, "input"), Layer("y", 2, "output")]
    for stored in (weight, weight.to_sparse()):
        write(FlowGraph(layers, [Link("x", "y", stored, pvalue)]), tmp_path / "graph")
        edges = list(read(tmp_path / "graph").edges(data=True))
        assert len(edges) == 3
        for source, target, data in edges:
            i, j = int(source[-1]), int(target[-1])
            assert data["pvalue"] == pvalue[i, j].item()
            assert data["adjusted_pvalue"] == pytest.approx(adjusted[i, j].item())


@pytest.mark.parametrize("write", WRITERS)
def test_values_not_given_are_left_out(tmp_path, write):
    graph = FlowGraph([Layer("x", 2, "input")], [])
    write(graph, tmp_path / "plain")
    for _, data in read(tmp_path / "plain").nodes(data=True):
        assert set(data) - {"viz"} == {
            "layer",
            "index",
            "kind",
            "label",
            "flow_in",
            "flow_out",
        }


def test_json_holds_nothing_but_json_numbers(tmp_path):
    layers = [Layer("x", 1, "input"), Layer("y", 1, "output")]
    weight = torch.tensor([[0.1]], dtype=torch.float16)
    write_json(FlowGraph(layers, [Link("x", "y", weight)]), tmp_path / "f.json")
    data = json.loads((tmp_path / "f.json").read_text())
    assert data["directed"] is True
    assert data["edges"][0]["weight"] == float(weight)
    assert data["nodes"][0]["id"] == "x:0"


def test_gexf_can_be_looked_at(tmp_path):
    graph = FlowGraph(
        [Layer("x", 2, "input"), Layer("h", 1, "hidden"), Layer("y", 1, "output")],
        [
            Link("x", "h", torch.tensor([[3.0], [1.0]])),
            Link("h", "y", torch.tensor([[2.0]])),
        ],
    )
    community = {
        "x": torch.tensor([0, 7]),
        "h": torch.tensor([0]),
        "y": torch.tensor([1]),
    }
    path = tmp_path / "flow.gexf"
    write_gexf(graph, path, betweenness_centrality(graph), community)
    viz = {name: data["viz"] for name, data in read(path).nodes(data=True)}
    xs = [viz[name]["position"]["x"] for name in ("x:0", "h:0", "y:0")]
    assert xs == sorted(set(xs))
    assert viz["x:0"]["position"]["x"] == viz["x:1"]["position"]["x"]
    assert viz["x:0"]["position"]["y"] == -viz["x:1"]["position"]["y"] > 0
    assert viz["h:0"]["position"]["y"] == 0
    assert viz["h:0"]["size"] > viz["x:0"]["size"] == viz["y:0"]["size"] > 0
    colors = [tuple(viz[name]["color"][c] for c in "rgb") for name in viz]
    assert colors == [PALETTE[0], PALETTE[0], PALETTE[0], PALETTE[1]]
    thickness = [
        float(each.get("value"))
        for each in ET.parse(path).iter("{http://www.gexf.net/1.2draft/viz}thickness")
    ]
    assert thickness == [75.0, 25.0, 100.0]


def test_names_need_no_care_in_any_format(tmp_path):
    layers = [
        Layer('<x> & "y" \u00e9\U0001f642', 1, "input", labels=("a < b",)),
        Layer("a:0", 1, "hidden"),
        Layer("a", 11, "output"),
    ]
    for write in WRITERS:
        write(FlowGraph(layers, []), tmp_path / "names")
        found = read(tmp_path / "names")
        assert len(found) == 13
        assert found.nodes[f"{layers[0].name}:0"]["label"] == "a < b"


@pytest.mark.parametrize("write", [write_graphml, write_gexf])
@pytest.mark.parametrize("bad", ["\x00", "\x1b", "\ud800", "\uffff"])
def test_names_that_xml_cannot_hold_are_errors(tmp_path, write, bad):
    for layer in (
        Layer(f"x{bad}", 1, "input"),
        Layer("x", 1, "input", labels=(bad,)),
    ):
        with pytest.raises(ValueError, match="XML cannot hold the name"):
            write(FlowGraph([layer], []), tmp_path / "bad")
        write_json(FlowGraph([layer], []), tmp_path / "good")
        assert len(read(tmp_path / "good")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.parametrize("write", WRITERS)
def test_bad_input_writes_nothing(tmp_path, write):
    graph = FlowGraph([Layer("x", 2, "input")], [])
    path = tmp_path / "flow"
    with pytest.raises(TypeError, match="must be a FlowGraph, got DiGraph"):
        write(nx.DiGraph(), path)
    with pytest.raises(ValueError, match=r"betweenness.*'x' has 2 nodes.*\(3,\)"):
        write(graph, path, betweenness={"x": torch.zeros(3)})
    with pytest.raises(ValueError, match="'x' holds NaN or infinity"):
        write(graph, path, betweenness={"x": torch.tensor([0.0, math.nan])})
    with pytest.raises(ValueError, match=r"community has the layers \['y'\]"):
        write(graph, path, community={"y": torch.zeros(2).long()})
    with pytest.raises(TypeError, match="betweenness: layer 'x' must have a Tensor"):
        write(graph, path, betweenness={"x": [0.0, 1.0]})
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        write(graph, tmp_path / "missing" / "flow")
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file"):
        write(graph, tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("write", WRITERS)
def test_a_read_only_folder_stays_as_it_was(tmp_path, write):
    path = tmp_path / "flow"
    path.write_text("kept")
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(PermissionError):
            write(FlowGraph([Layer("x", 2, "input")], []), path)
        assert [file.name for file in tmp_path.iterdir()] == ["flow"]
        assert path.read_text() == "kept"
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("write", WRITERS)
def test_what_fails_late_leaves_the_older_file(tmp_path, write):
    """Flows add up to more than float64 holds: no number that JSON could write."""
    path = tmp_path / "flow"
    path.write_text("kept")
    layers = [Layer("x", 2, "input"), Layer("y", 1, "output", labels=("\x00",))]
    weight = torch.full((2, 1), 1.7e308, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"not JSON compliant|XML cannot hold"):
        write(FlowGraph(layers, [Link("x", "y", weight)]), path)
    assert [file.name for file in tmp_path.iterdir()] == ["flow"]
    assert path.read_text() == "kept"


@pytest.mark.parametrize("write", WRITERS)
def test_negative_links_keep_their_sign(tmp_path, write):
    layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
    weight = torch.tensor([[-0.75], [0.25]], dtype=torch.float64)
    write(FlowGraph(layers, [Link("x", "y", weight)]), tmp_path / "flow")
    edges = read(tmp_path / "flow").edges(data=True)
    assert [(data["weight"], data["share"]) for *_, data in edges] == [
        (-0.75, 0.75),
        (0.25, 0.25),
    ]
