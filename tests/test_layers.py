import pytest
import torch

from captum_nif.graph.elements import Layer, Link


def test_default_shape_and_labels_follow_the_nodes():
    layer = Layer("image", 6, "input", shape=[1, 2, 3])
    assert layer.shape == (1, 2, 3)
    assert layer.node_labels() == (
        "image[0, 0, 0]",
        "image[0, 0, 1]",
        "image[0, 0, 2]",
        "image[0, 1, 0]",
        "image[0, 1, 1]",
        "image[0, 1, 2]",
    )
    assert Layer("fc", 2, "hidden").shape == (2,)
    assert Layer("fc", 2, "hidden").node_labels() == ("fc[0]", "fc[1]")
    assert Layer("y", 2, "output", labels=["cat", "dog"]).node_labels() == (
        "cat",
        "dog",
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, 1, "input"), TypeError, "name must be a str, got int"),
        (("", 1, "input"), ValueError, "must not be empty"),
        (("x", 2.0, "input"), TypeError, "size must be an int, got float"),
        (("x", True, "input"), TypeError, "size must be an int, got bool"),
        (("x", 0, "input"), ValueError, "at least 1, got 0"),
        (("x", 1, "middle"), ValueError, "'input', 'hidden', 'output'.*'middle'"),
        (("x", 6, "input", (2, 2)), ValueError, r"shape \(2, 2\).*6 nodes"),
        (("x", 4, "input", (-2, -2)), ValueError, "does not arrange"),
        (("x", 4, "input", (2.0, 2)), TypeError, "shape must hold ints"),
        (("x", 2, "input", (), ("a",)), ValueError, "1 labels for 2 nodes"),
        (("x", 2, "input", (), "ab"), TypeError, "single str 'ab'"),
        (("x", 2, "input", (), ("a", 1)), TypeError, "every label must be a str"),
    ],
)
def test_layer_refuses_what_is_no_layer(arguments, error, message):
    with pytest.raises(error, match=message):
        Layer(*arguments)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([[1.0]], TypeError, "must be a Tensor, got list"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.ones(2, 2, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.ones(2), ValueError, r"must be a matrix.*got shape \(2,\)"),
        (torch.ones(1, 2, 2), ValueError, r"got shape \(1, 2, 2\)"),
        (torch.tensor([[float("nan")]]), ValueError, "'a' -> 'b'.*NaN or infinity"),
        (torch.tensor([[float("inf")]]).to_sparse(), ValueError, "NaN or infinity"),
        (torch.ones(2, 2).to_sparse(1), ValueError, "two sparse dimensions"),
    ],
)
def test_link_refuses_weights_that_are_none(weight, error, message):
    with pytest.raises(error, match=message):
        Link("a", "b", weight)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_link_refuses_other_sparse_layouts():
    with pytest.raises(ValueError, match=r"sparse_csr; convert it with to_dense\(\)"):
        Link("a", "b", torch.ones(2, 2).to_sparse_csr())


@pytest.mark.parametrize(
    ("pvalue", "error", "message"),
    [
        ([[0.5]], TypeError, "pvalue must be a Tensor or None, got list"),
        (torch.ones(1, 2).long(), TypeError, "got torch.int64"),
        (torch.ones(1, 2).to_sparse(), TypeError, "must be dense.*sparse_coo"),
        (torch.ones(2, 1), ValueError, r"shape \(2, 1\) .* its weight \(1, 2\)"),
        (torch.tensor([[0.5, 1.1]]), ValueError, "a number from 0 to 1"),
        (torch.tensor([[-0.1, 1.0]]), ValueError, "a number from 0 to 1"),
        (torch.tensor([[float("nan"), 1.0]]), ValueError, "a number from 0 to 1"),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_link_refuses_pvalues_that_are_none(sparse, pvalue, error, message):
    weight = torch.tensor([[1.0, 0.0]])
    with pytest.raises(error, match=message):
        Link("a", "b", weight.to_sparse() if sparse else weight, pvalue)


def test_links_with_other_pvalues_are_not_equal():
    weight, pvalue = torch.ones(1, 2), torch.tensor([[0.0, 1.0]])
    link = Link("a", "b", weight, pvalue)
    assert link == Link("a", "b", weight, pvalue.clone())
    for other in (None, pvalue.double(), pvalue.flip(1)):
        assert link != Link("a", "b", weight, other)
        assert Link("a", "b", weight, other) != link


def test_link_refuses_names_that_are_none():
    with pytest.raises(TypeError, match="names of layers"):
        Link("a", 1, torch.ones(1, 1))


def test_duplicate_sparse_entries_add_up():
    twice = torch.sparse_coo_tensor(
        [[1, 0, 1], [0, 1, 0]], [1.0, 2.0, 3.0], (2, 2), check_invariants=True
    )
    link = Link("a", "b", twice)
    assert [part.tolist() for part in link.entries()] == [[0, 1], [1, 0], [2.0, 4.0]]


def test_entries_skip_zeros_dense_or_stored():
    matrix = torch.tensor([[0.0, -2.0], [-0.0, 3.0]])
    stored = torch.sparse_coo_tensor(
        [[0, 0, 1, 1], [0, 1, 0, 1]], matrix.flatten(), (2, 2), check_invariants=True
    )
    for weight in (matrix, matrix.to_sparse(), stored):
        rows, columns, values = Link("a", "b", weight).entries()
        assert rows.tolist() == [0, 1]
        assert columns.tolist() == [1, 1]
        assert values.tolist() == [-2.0, 3.0]
        assert rows.dtype == columns.dtype == torch.int64


def test_links_are_equal_by_value():
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    link = Link("a", "b", weight)
    assert link == Link("a", "b", weight.clone())
    assert Link("a", "b", weight.to_sparse()) == Link("a", "b", weight.to_sparse())
    for other in (
        Link("a", "c", weight),
        Link("b", "b", weight),
        Link("a", "b", weight + 1),
        Link("a", "b", weight.double()),
        Link("a", "b", weight.to_sparse()),
        Link("a", "b", weight[:1]),
        "a -> b",
    ):
        assert link != other
    moved = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse()
    assert Link("a", "b", weight.to_sparse()) != Link("a", "b", moved)
