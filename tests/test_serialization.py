import io
import json
import os
import pickle
import resource
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from captum_nif.graph.elements import stored_values
from captum_nif.graph.flow_graph import FlowGraph, Layer, Link

DTYPES = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def small_graph():
    """Dense and sparse links, labels, a shape, a skip link."""
    return FlowGraph(
        [
            Layer("x", 4, "input", shape=(2, 2)),
            Layer("h", 2, "hidden"),
            Layer("y", 2, "output", labels=("cat", "dog")),
        ],
        [
            Link("x", "h", torch.arange(8.0).reshape(4, 2)),
            Link("x", "y", torch.eye(4, 2, dtype=torch.float16).to_sparse()),
            Link("h", "y", torch.rand(2, 2, dtype=torch.float64)),
        ],
    )


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """One folder for all examples of a property; they overwrite their file."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def saved(scratch):
    path = scratch / "valid"
    small_graph().save(path)
    return path.read_bytes()


@st.composite
def any_graphs(draw):
    """Any bits that make a finite number, in every dtype; names of any characters."""
    dtype = draw(st.sampled_from([*DTYPES]))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    width = torch.finfo(dtype).bits
    patterns = st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    bits = draw(st.lists(patterns, min_size=rows * columns, max_size=rows * columns))
    weight = torch.tensor(bits, dtype=DTYPES[dtype]).view(dtype).reshape(rows, columns)
    weight = torch.where(weight.isfinite(), weight, torch.tensor(-0.0, dtype=dtype))
    if draw(st.booleans()):
        # Every entry stored, -0.0 too.
        indices = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
        weight = torch.sparse_coo_tensor(
            indices, weight.flatten(), (rows, columns), check_invariants=True
        )
    elif draw(st.booleans()):
        weight = weight.T.contiguous().T
    labels = draw(
        st.none()
        | st.lists(
            st.text(st.characters(exclude_categories=[])),
            min_size=rows,
            max_size=rows,
        )
    )
    layers = draw(
        st.lists(
            st.text(st.characters(exclude_categories=[]), min_size=1),
            min_size=3,
            max_size=3,
            unique=True,
        )
    )
    return FlowGraph(
        [
            Layer(layers[0], rows, "input", labels=labels),
            Layer(layers[1], rows, "hidden"),
            Layer(layers[2], columns, "output"),
        ],
        [Link(layers[0], layers[2], weight), Link(layers[1], layers[2], weight)],
    )


@given(graph=any_graphs())
def test_graphs_come_back_bit_for_bit(scratch, graph):
    path = scratch / "any"
    graph.save(path)
    loaded = FlowGraph.load(path)
    assert loaded == graph
    for before, after in zip(graph.links, loaded.links, strict=True):
        bits = DTYPES[before.weight.dtype]
        assert torch.equal(
            stored_values(before.weight).contiguous().view(bits),
            stored_values(after.weight).view(bits),
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pvalues_come_back_bit_for_bit(tmp_path, dtype):
    graph = small_graph()
    links = [
        replace(link, pvalue=torch.rand(link.weight.shape).to(dtype))
        for link in graph.links
    ]
    links[1] = graph.links[1]
    graph = FlowGraph(graph.layers, links)
    graph.save(tmp_path / "flow")
    loaded = FlowGraph.load(tmp_path / "flow")
    assert loaded == graph
    assert [link.pvalue is None for link in loaded.links] == [False, True, False]


@pytest.mark.parametrize("name", ["flow", "flow.nif", "flow.npz", "a b", "f.pt.gz"])
def test_the_file_has_exactly_the_name_given(tmp_path, name):
    graph = small_graph()
    graph.save(str(tmp_path / name))
    assert names(tmp_path) == [name]
    assert FlowGraph.load(str(tmp_path / name)) == graph


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    graph = small_graph()
    graph.save(tmp_path / "a")
    graph.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_may_share_memory_or_need_gradients(tmp_path):
    weight = torch.rand(1, 2).expand(2, 2).requires_grad_()
    layers = [Layer("x", 2, "input"), Layer("h", 2, "hidden"), Layer("y", 2, "output")]
    graph = FlowGraph(layers, [Link("x", "h", weight), Link("h", "y", weight)])
    graph.save(tmp_path / "shared")
    assert FlowGraph.load(tmp_path / "shared") == graph


def test_loaded_weights_do_not_hang_on_the_file(tmp_path):
    graph = small_graph()
    graph.save(tmp_path / "flow")
    loaded = FlowGraph.load(tmp_path / "flow")
    size = (tmp_path / "flow").stat().st_size
    (tmp_path / "flow").write_bytes(b"\xff" * size)
    assert loaded == graph


def test_graphs_without_links_are_saved_too(tmp_path):
    graph = FlowGraph([Layer("x", 1, "input")], [])
    graph.save(tmp_path / "lonely")
    assert FlowGraph.load(tmp_path / "lonely") == graph


# Whole or not at all


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "flow"
    small_graph().save(path)
    before = path.read_bytes()
    large = FlowGraph(
        [Layer("x", 500, "input"), Layer("y", 500, "output")],
        [Link("x", "y", torch.rand(500, 500))],
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["flow"]
    assert path.read_bytes() == before


def test_places_that_are_no_files_are_refused(tmp_path):
    graph = small_graph()
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        graph.save(tmp_path / "missing" / "flow")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        graph.save(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        graph.save(tmp_path / "pipe")
    assert names(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_to_a_file_stays_a_link(tmp_path):
    real, alias = tmp_path / "real", tmp_path / "alias"
    real.write_bytes(b"old")
    alias.symlink_to(real)
    graph = small_graph()
    graph.save(alias)
    assert alias.is_symlink()
    assert FlowGraph.load(real) == graph


def test_files_get_the_usual_permissions(tmp_path):
    small_graph().save(tmp_path / "flow")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


# Files from strangers


def assert_graph_or_value_error(path):
    try:
        graph = FlowGraph.load(path)
    except ValueError:
        return
    assert isinstance(graph, FlowGraph)


@given(cut=st.integers(0, 10_000))
def test_every_cut_file_is_an_error(scratch, saved, cut):
    path = scratch / "cut"
    path.write_bytes(saved[: cut % len(saved)])
    with pytest.raises(ValueError, match="not a saved FlowGraph, or was cut"):
        FlowGraph.load(path)


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255))))
def test_flipped_bits_give_a_graph_or_an_error(scratch, saved, flips):
    content = bytearray(saved)
    for place, bits in flips:
        content[place % len(content)] ^= bits
    path = scratch / "flipped"
    path.write_bytes(content)
    assert_graph_or_value_error(path)


def test_each_byte_of_the_header_may_be_wrong(scratch, saved):
    path = scratch / "header"
    length = 8 + int.from_bytes(saved[:8], "little")
    for place in range(length):
        for bits in (0x01, 0x10, 0x80):
            content = bytearray(saved)
            content[place] ^= bits
            path.write_bytes(content)
            assert_graph_or_value_error(path)


@given(content=st.binary(max_size=200))
@example(content=b"")
@example(content=b"\xff" * 8 + b"{}")
@example(content=(2).to_bytes(8, "little") + b"{}")
def test_noise_is_an_error(scratch, content):
    path = scratch / "noise"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="noise"):
        FlowGraph.load(path)


def test_files_of_other_kinds_are_errors(tmp_path):
    path = tmp_path / "foreign"
    archive = io.BytesIO()
    np.savez(archive, weight=np.ones(3))
    for content in (pickle.dumps([1]), archive.getvalue(), b"<html></html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a saved FlowGraph"):
            FlowGraph.load(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"not written by FlowGraph\.save"):
        FlowGraph.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        FlowGraph.load(tmp_path / "missing")


LAYERS = [
    {"name": "x", "size": 1, "kind": "input", "shape": [1], "labels": None},
    {"name": "y", "size": 1, "kind": "output", "shape": [1], "labels": None},
]
LINK = {"source": "x", "target": "y", "shape": [1, 1], "sparse": False}
VALID = {"version": 1, "layers": LAYERS, "links": [LINK]}


def forged(**changes):
    return json.dumps({**VALID, **changes})


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("[" * 100_000, "damaged"),
        ("1" * 5000, "damaged"),
        ("null", "damaged"),
        ("{}", "version"),
        (forged(version=2), "version 2.*update"),
        (forged(layers=None), "damaged"),
        (forged(layers=[{**LAYERS[0], "size": 1.0}]), "size must be an int"),
        (forged(layers=[{**LAYERS[0], "size": 10**30}, LAYERS[1]]), "arrange"),
        (forged(layers=[{**LAYERS[0], "shape": 3}]), "damaged"),
        (forged(layers=[{**LAYERS[0], "run": "rm"}]), "run"),
        (forged(layers=LAYERS[::-1]), "topological"),
        (forged(links=[]), r"unexpected tensors \['0.weight'\]"),
        (forged(links=[LINK, LINK]), "1.weight"),
        (forged(links=[{**LINK, "shape": [1, 2]}]), "announced"),
        (forged(links=[{**LINK, "sparse": True}]), "0.indices"),
        (forged(links=[{**LINK, "pvalue": True}]), "0.pvalue"),
        (forged(links=[{**LINK, "target": "z"}]), "no layer 'z'"),
    ],
)
def test_forged_descriptions_are_errors(tmp_path, description, message):
    path = tmp_path / "forged"
    metadata = {"captum_nif.FlowGraph": description}
    save_file({"0.weight": torch.ones(1, 1)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        FlowGraph.load(path)


@pytest.mark.parametrize(
    ("indices", "shape"),
    [
        ([[0, 2], [0, 0]], [2, 2]),
        ([[0, -1], [0, 0]], [2, 2]),
        ([[1, 0], [0, 0]], [2, 2]),
        ([[0, 0], [0, 0]], [2, 2]),
        ([[0, 1]], [2]),
        ([[0.0, 1.0], [0.0, 1.0]], [2, 2]),
        ([[0, 1], [0, 1]], [10**30, 2]),
        ([[0, 1], [0, 1]], [2**40, 2**40]),
        ([[0, 1], [0, 1]], [-2, 2]),
        ([[0, 1], [0, 1]], "22"),
    ],
)
def test_forged_indices_are_errors(tmp_path, indices, shape):
    path = tmp_path / "forged"
    layers = [{**layer, "size": 2, "shape": [2]} for layer in LAYERS]
    links = [{**LINK, "sparse": True, "shape": shape}]
    metadata = {"captum_nif.FlowGraph": forged(layers=layers, links=links)}
    tensors = {"0.indices": torch.tensor(indices), "0.values": torch.ones(2)}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="damaged"):
        FlowGraph.load(path)


def test_forged_values_are_errors(tmp_path):
    path = tmp_path / "forged"
    metadata = {"captum_nif.FlowGraph": forged()}
    for weight in (torch.tensor([[torch.nan]]), torch.ones(1, 1, dtype=torch.int8)):
        save_file({"0.weight": weight}, path, metadata=metadata)
        with pytest.raises(ValueError, match="damaged"):
            FlowGraph.load(path)
