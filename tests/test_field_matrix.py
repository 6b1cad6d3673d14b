"""Matrices of blocks between places, against full matrices and single entries."""

from types import SimpleNamespace

import pytest
import torch

from captum_nif.graph import field_matrix
from captum_nif.graph.elements import Layer
from captum_nif.graph.field_matrix import FieldMatrix
from captum_nif.graph.path_sums import backward_sums, incoming_totals

SHAPES = [  # channels and places of the source, and of the target
    ((1, 1), (1, 1)),
    ((2, 4), (3, 5)),
    ((3, 1), (2, 6)),
    ((1, 6), (4, 1)),
]


def made(source, target, density=0.4, seed=0):
    """A matrix by blocks, and the same with one entry set after the other."""
    generator = torch.Generator().manual_seed(seed)
    (channels, here), (others, there) = source, target
    field = torch.rand(here, there, generator=generator) < density
    rows, columns = field.nonzero(as_tuple=True)
    blocks = torch.randn(
        len(rows), channels, others, generator=generator, dtype=torch.float64
    )
    full = torch.zeros(channels * here, others * there, dtype=torch.float64)
    for block, row, column in zip(blocks, rows.tolist(), columns.tolist(), strict=True):
        for i in range(channels):
            for j in range(others):
                full[i * here + row, j * there + column] = block[i, j]
    return FieldMatrix(blocks, rows, columns, (here, there)), full


@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_shape_entries_and_transpose(source, target, density):
    matrix, full = made(source, target, density)
    assert matrix.shape == tuple(full.shape)
    assert matrix.mT.shape == tuple(full.mT.shape)
    assert torch.equal(matrix.to_tensor().to_dense(), full)
    assert torch.equal(matrix.mT.to_tensor().to_dense(), full.mT)
    assert matrix.mT.blocks.data_ptr() == matrix.blocks.data_ptr(), "nothing is copied"


@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("budget", [1, 40, 1 << 23])
def test_products(source, target, budget, monkeypatch):
    monkeypatch.setattr(field_matrix, "_BUDGET", budget)
    matrix, full = made(source, target)
    for left, right in ((matrix, full), (matrix.mT, full.mT)):
        for columns in (0, 1, 7):
            other = torch.randn(right.shape[1], columns, dtype=torch.float64)
            torch.testing.assert_close(left @ other, right @ other)
            strided = torch.randn(columns, right.shape[1], dtype=torch.float64).mT
            torch.testing.assert_close(left @ strided, right @ strided)


def test_sparse_entries_are_in_order_and_full_where_that_takes_less():
    matrix, full = made((2, 6), (3, 5), density=0.3)
    sparse = matrix.to_tensor()
    assert sparse.is_sparse
    assert sparse.is_coalesced()
    flat = sparse.indices()[0] * full.shape[1] + sparse.indices()[1]
    assert (flat.diff() > 0).all()
    assert sparse.values().numel() == matrix.blocks.numel()
    matrix, full = made((2, 6), (3, 5), density=0.8)
    assert matrix.to_tensor().layout == torch.strided


@pytest.mark.parametrize("normalize", [None, "node", "layer"])
def test_path_sums_are_those_of_full_matrices(normalize):
    layers = [Layer("x", 8, "input"), Layer("h", 15, "hidden"), Layer("y", 2, "output")]
    links = [SimpleNamespace(source=a, target=b) for a, b in ("xh", "hy")]
    first, full = made((2, 4), (3, 5))
    last = torch.randn(15, 2, dtype=torch.float64)
    seed = torch.randn(3, 2, dtype=torch.float64)
    found, wanted = (
        backward_sums(
            layers,
            links,
            "y",
            seed,
            lambda link, weight=weight: weight if link.target == "h" else last,
            normalize,
        )
        for weight in (first, full)
    )
    for name, sums in wanted.items():
        torch.testing.assert_close(found[name], sums)
    if normalize is not None:
        torch.testing.assert_close(
            incoming_totals([first], normalize), incoming_totals([full], normalize)
        )
