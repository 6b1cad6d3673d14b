r"""
Cells: the plane of two variables cut into squares, and the samples in them counted.

Cells are cut on the scale of normal scores, so that a cell along an axis is an interval
of ranks. A binning is one way of cutting; its terms are what a count adds to PMI:

    PMI of a sample = terms[n_xy] + terms[P] - terms[n_x] - terms[n_y]

where n_x, n_y and n_xy of the P points share its cells along x, along y, and in both.
Every point counts itself, a query with the samples that it is ranked with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product

import torch
from torch import Tensor

from captum_nif._blocks import block_length, block_side, blocks
from captum_nif.estimators.marginals import RankedVariables
from captum_nif.estimators.normal_scores import SCORE_BITS, normal_scores
from captum_nif.estimators.terms import PMIBlock, SumBlock, fixed_point

_BYTES = 32
"""Of temporary tensors for each sample, or each product of matrices."""

_SIDE = 64
"""Variables of each set in a block of samples, where memory allows."""

_WIDE = 1024
"""Variables of each set in a block of queries, where memory allows."""

_ENSEMBLE = ((1, 4 / 3), (2, -1 / 3))
"""Widths of cells, as multiples of the narrowest, and their weights. Smoothing by cells
of width w errs by c w^2 + O(w^4); these weights cancel c (Richardson, 1911)."""


@dataclass(frozen=True)
class Binning:
    """One way of cutting the plane.

    Attributes:
        x (Tensor): Cell along x of every doubled rank, ascending from 0, [2P + 1],
            int32.
        y (Tensor): Cell along y, likewise.
        terms (Tensor): Contribution of counts 0 to P, [P + 1], int64 in units of terms.
    """

    x: Tensor
    y: Tensor
    terms: Tensor

    @property
    def points(self) -> int:
        """Number of points P that are ranked together."""
        return len(self.terms) - 1

    def to(self, device: torch.device) -> Binning:
        """The same on another device."""
        return Binning(self.x.to(device), self.y.to(device), self.terms.to(device))


@lru_cache(maxsize=8)
def ensemble(points: int, width: float, shifts: int) -> tuple[Binning, ...]:
    """Binnings of two widths, in several positions, whose PMI add up to the estimate.

    Args:
        points (int): number of points P that are ranked together.
        width (float): of the narrowest cells, in normal scores.
        shifts (int): number S of positions.
    """
    counts = torch.arange(points + 1, dtype=torch.float64, device="cpu")
    psi = torch.digamma(counts.clamp(min=1))
    binnings = []
    for multiple, weight in _ENSEMBLE:
        terms = fixed_point(psi * (weight / shifts))
        pairs, levels = _positions(shifts)
        cuts = [
            _cut(points, multiple * width, (level + 0.5) / levels)
            for level in range((levels + 1) // 2)
        ]
        cuts += [_mirrored(cut) for cut in reversed(cuts[: levels // 2])]
        binnings += [Binning(cuts[i], cuts[j], terms) for i, j in pairs]
    return tuple(binnings)


def _positions(shifts: int) -> tuple[list[tuple[int, int]], int]:
    """Levels of x and of y for each of S positions, and the number of levels L.

    Level i shifts cells by (i + 1/2) / L. The levels form a lattice, (s, m s mod n) for
    s = 0, ..., n - 1; with m^2 = 1 mod n, x and y can change roles. If S is a multiple
    of 4, it fills a quarter of the plane, which is mirrored along both axes: then signs
    do not matter. Else it fills the plane.
    """
    size = shifts // 4 if shifts % 4 == 0 else shifts
    roots = [m for m in range(1, size + 1) if (m * m - 1) % size == 0]
    multiplier = min(roots, key=lambda m: abs(m - 0.38 * size))  # golden section
    lattice = [(s, multiplier * s % size) for s in range(size)]
    if size == shifts:
        return lattice, size
    last = 2 * size - 1
    mirrored = [
        (i, j) for s, t in lattice for i, j in product((s, last - s), (t, last - t))
    ]
    return mirrored, 2 * size


def _cut(points: int, width: float, shift: float) -> Tensor:
    """Cell of every doubled rank, [2P + 1], ascending from 0.

    The outermost cells begin no farther out than at the sqrt(P)-th point from the end:
    of two independent variables, even these then share a point by chance.
    """
    scores = normal_scores(points)[2:].double() / 2**SCORE_BITS
    share = torch.tensor(points, dtype=torch.float64, device="cpu") ** -0.5
    limit = -torch.special.ndtri(share)
    cells = torch.floor(scores.clamp(-limit, limit) / width + shift)
    numbered = (cells.diff() > 0).cumsum(0)
    return torch.cat([numbered.new_zeros(3), numbered]).int()


def _mirrored(cut: Tensor) -> Tensor:
    """The cells of ranks counted from the other end."""
    return torch.cat([cut[:2], cut[-1] - cut[2:].flip(0)])


@dataclass(frozen=True)
class SampleCells:
    """The cells of samples along an axis; if ``joint``, of all variables as one."""

    ranks: Tensor
    joint: bool = False

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.ranks)

    @property
    def size(self) -> int:
        """Number of variables."""
        return 1 if self.joint else self.ranks.shape[1]

    def cells(self, cut: Tensor, columns: slice) -> Tensor:
        """The cell of every sample, [N, columns]."""
        if not self.joint:
            return cut[self.ranks[:, columns].long()]
        boxes = self.ranks.new_zeros((self.count, 1), dtype=cut.dtype)
        for part in blocks(self.ranks.shape[1], _WIDE):
            sides = torch.cat([boxes, cut[self.ranks[:, part].long()]], dim=1)
            numbered: Tensor = torch.unique(sides, dim=0, return_inverse=True)[1]
            boxes = numbered[:, None].to(cut.dtype)
        return boxes


class QueryCells:
    """The samples in a query's cell along an axis; if ``joint``, in those along all."""

    def __init__(
        self, samples: RankedVariables, query: Tensor, joint: bool = False
    ) -> None:
        self.count = len(query)
        self.size = 1 if joint else samples.size
        self._ranks, self._joint = samples.ranks, joint
        self._query_ranks = samples.ranks_of(query)

    def sharing(self, cut: Tensor, rows: slice, columns: slice) -> Tensor:
        """Whether each sample shares each query's cell, [rows, columns, N].

        As float32, for counting by products of matrices.
        """
        if not self._joint:
            return self._inside(cut, rows, columns).float()
        shared: Tensor | None = None
        for part in blocks(self._ranks.shape[1], _WIDE):
            here = self._inside(cut, rows, part).all(dim=1, keepdim=True)
            shared = here if shared is None else shared & here
        assert shared is not None, "a vector has at least one variable"
        return shared.float()

    def _inside(self, cut: Tensor, rows: slice, columns: slice) -> Tensor:
        query = self._query_ranks[rows, columns].contiguous()
        cell = cut[query]
        first = torch.searchsorted(cut, cell)
        last = torch.searchsorted(cut, cell, right=True) - 1
        # Among the samples alone, those above the query have a doubled rank less by
        # two, and those equal to it the query's less one.
        low = torch.minimum(first, query - 1)[:, :, None]
        high = torch.maximum(last - 2, query - 1)[:, :, None]
        ranks = self._ranks[:, columns].t()
        return (ranks >= low) & (ranks <= high)


def sum_blocks(
    x: SampleCells, y: SampleCells, binnings: Sequence[Binning]
) -> Iterator[SumBlock]:
    """Sum of PMI over all samples, block by block of pairs."""
    for columns_x, columns_y in _pairs_of_samples(x, y):
        parts = (
            _sum(
                x.cells(binning.x, columns_x),
                y.cells(binning.y, columns_y),
                binning.terms,
            )
            for binning in binnings
        )
        yield columns_x, columns_y, x.count, reduce(Tensor.add_, parts)


def pmi_blocks(
    x: SampleCells | QueryCells,
    y: SampleCells | QueryCells,
    binnings: Sequence[Binning],
) -> Iterator[PMIBlock]:
    """PMI of every sample or query, block by block."""
    if isinstance(x, SampleCells) and isinstance(y, SampleCells):
        return _samples(x, y, binnings)
    assert isinstance(x, QueryCells)
    assert isinstance(y, QueryCells)
    return _queries(x, y, binnings)


def _samples(
    x: SampleCells, y: SampleCells, binnings: Sequence[Binning]
) -> Iterator[PMIBlock]:
    for columns_x, columns_y in _pairs_of_samples(x, y):
        parts = (
            _pmi(
                x.cells(binning.x, columns_x),
                y.cells(binning.y, columns_y),
                binning.terms,
            )
            for binning in binnings
        )
        yield slice(0, x.count), columns_x, columns_y, reduce(Tensor.add_, parts)


def _pairs_of_samples(x: SampleCells, y: SampleCells) -> Iterator[tuple[slice, slice]]:
    side = block_side(_BYTES * x.count, _SIDE, in_cache=True)
    yield from product(blocks(x.size, side), blocks(y.size, side))


def _sum(x: Tensor, y: Tensor, terms: Tensor) -> Tensor:
    """Sum of PMI over samples on one binning, by cells [N, a] and [N, b]: [a, b]."""

    def summed(cells: Tensor) -> Tensor:
        _, counts = _counted(cells)
        return (counts * terms[counts]).sum(1).view(cells.shape[1:])

    total = summed(_in_plane(x, y)) + len(x) * terms[-1]
    return total - summed(x)[:, None] - summed(y)


def _pmi(x: Tensor, y: Tensor, terms: Tensor) -> Tensor:
    """PMI of samples on one binning, by cells [N, a] and [N, b]: [N, a, b]."""

    def each(cells: Tensor) -> Tensor:
        keys, counts = _counted(cells)
        return terms[counts].flatten().index_select(0, keys).view_as(cells)

    pmi = each(_in_plane(x, y))
    pmi -= (each(x) - terms[-1])[:, :, None]
    pmi -= each(y)[:, None]
    return pmi


def _in_plane(x: Tensor, y: Tensor) -> Tensor:
    """Cells in the plane, [N, a, b], by those along its axes."""
    return x[:, :, None] * (1 + y.max()) + y[:, None]


def _counted(cells: Tensor) -> tuple[Tensor, Tensor]:
    """A key to each sample's count, [N M], and counts by cell, [M, cells].

    Products of one-hot matrices would give the same counts, but take longer, the more
    so the larger N is, as there are more cells.
    """
    columns = cells.flatten(1)
    size, span = columns.shape[1], 1 + int(columns.max())
    offsets = span * torch.arange(size, dtype=cells.dtype, device=cells.device)
    keys = (columns + offsets).flatten()
    return keys, torch.bincount(keys, minlength=size * span).view(size, span)


def _queries(
    x: QueryCells, y: QueryCells, binnings: Sequence[Binning]
) -> Iterator[PMIBlock]:
    samples = binnings[0].points - 1
    side = block_length(_BYTES * samples, _WIDE, in_cache=True)
    width = max(1, min(side, max(x.size, y.size)))
    height = block_length(_BYTES * width * max(width, samples), in_cache=True)
    for rows in blocks(x.count, height):
        for columns_x, columns_y in product(blocks(x.size, side), blocks(y.size, side)):
            parts = (
                _pmi_of_queries(
                    x.sharing(binning.x, rows, columns_x),
                    y.sharing(binning.y, rows, columns_y),
                    binning.terms,
                )
                for binning in binnings
            )
            yield rows, columns_x, columns_y, reduce(Tensor.add_, parts)


def _pmi_of_queries(x: Tensor, y: Tensor, terms: Tensor) -> Tensor:
    """PMI of queries on one binning, by who shares a cell: [S, a, N], [S, b, N]."""
    with torch.autocast(x.device.type, enabled=False):
        joint_counts = x @ y.mT
    joint, margin_x, margin_y = (
        terms[1 + counts.int()] for counts in (joint_counts, x.sum(-1), y.sum(-1))
    )
    joint -= (margin_x - terms[-1])[:, :, None]
    joint -= margin_y[:, None]
    return joint
