"""The fast engine: compiled kernels for the CPU, in as many threads as torch uses.

It computes what the plain engine does, to the last bit, on any scale. Here are normal
scores, up to some number of neighbors; other scales are in
:mod:`~captum_nif.estimators.engine_cpu_scaled`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_nif._blocks import block_length, block_side, blocks
from captum_nif.estimators import engine_cpu_scaled
from captum_nif.estimators.marginals import (
    QueryPoints,
    RankedQueries,
    RankedSamples,
    ScaledPoints,
)
from captum_nif.estimators.parallel import in_threads
from captum_nif.estimators.terms import PMIBlock, SumBlock, Terms

CAPACITIES = (4, 8, 12, 16, 24, 32, 64)
"""Lengths of the lists of nearest distances that kernels keep: one more than k at
least. Each is compiled by itself, when it is first needed."""

_SIDE = 32
"""Variables of each set in a block of the population workload, where memory allows."""

_BYTES = 32
"""Of temporary arrays for each result, and for each distance to a query."""

_RESULTS = 1 << 16
"""Results of a block of queries: so few that their memory is used again and again."""


def takes(x: QueryPoints, y: QueryPoints, k: int) -> bool:
    """Whether this engine is for these points and this many neighbors."""
    if x.device.type != "cpu":
        return False
    if isinstance(x, ScaledPoints) and isinstance(y, ScaledPoints):
        return True
    kinds = (RankedSamples, RankedQueries)
    return isinstance(x, kinds) and isinstance(y, kinds) and k < CAPACITIES[-1]


def sum_blocks(
    x: QueryPoints, y: QueryPoints, k: int, terms: Terms
) -> Iterator[SumBlock]:
    """See :func:`captum_nif.estimators.engine_plain.sum_blocks`; samples only."""
    if isinstance(x, ScaledPoints) and isinstance(y, ScaledPoints):
        return engine_cpu_scaled.sum_blocks(x, y, k, terms)
    assert isinstance(x, RankedSamples)
    assert isinstance(y, RankedSamples)
    return _sums(x, y, k, terms)


def pmi_blocks(
    x: QueryPoints, y: QueryPoints, k: int, terms: Terms
) -> Iterator[PMIBlock]:
    """See :func:`captum_nif.estimators.engine_plain.pmi_blocks`."""
    if isinstance(x, ScaledPoints) and isinstance(y, ScaledPoints):
        return engine_cpu_scaled.pmi_blocks(x, y, k, terms)
    if isinstance(x, RankedSamples) and isinstance(y, RankedSamples):
        return _samples(x, y, k, terms)
    assert isinstance(x, RankedQueries)
    assert isinstance(y, RankedQueries)
    return _queries(x, y, k, terms)


def _sums(
    x: RankedSamples, y: RankedSamples, k: int, terms: Terms
) -> Iterator[SumBlock]:
    from captum_nif.estimators.kernels import population
    from captum_nif.estimators.kernels.grid import grid_of

    grid, capacity = grid_of(x.count), _capacity_for(k)
    tables = terms.joint.numpy().reshape(-1), terms.margin.numpy().reshape(-1)

    def work(pairs: tuple[slice, slice]) -> SumBlock:
        columns_x, columns_y = pairs
        total, _ = population.mutual_information(
            _by_variable(x.ranks[:, columns_x]),
            _by_variable(y.ranks[:, columns_y]),
            k,
            capacity,
            grid,
            *tables,
        )
        return columns_x, columns_y, x.count, torch.from_numpy(total)

    side = block_length(_BYTES * (x.count + 1), _SIDE)
    yield from in_threads(work, product(blocks(x.size, side), blocks(y.size, side)))


def _samples(
    x: RankedSamples, y: RankedSamples, k: int, terms: Terms
) -> Iterator[PMIBlock]:
    from captum_nif.estimators.kernels import population
    from captum_nif.estimators.kernels.grid import grid_of

    grid, capacity = grid_of(x.count), _capacity_for(k)
    tables = terms.joint.numpy().reshape(-1), terms.margin.numpy().reshape(-1)
    all_rows = slice(0, x.count)

    def work(pairs: tuple[slice, slice]) -> PMIBlock:
        columns_x, columns_y = pairs
        _, pmi = population.mutual_information(
            _by_variable(x.ranks[:, columns_x]),
            _by_variable(y.ranks[:, columns_y]),
            k,
            capacity,
            grid,
            *tables,
            pointwise=True,
        )
        return all_rows, columns_x, columns_y, torch.from_numpy(pmi).permute(2, 0, 1)

    side = block_side(_BYTES * x.count, _SIDE)
    yield from in_threads(work, product(blocks(x.size, side), blocks(y.size, side)))


def _queries(
    x: RankedQueries, y: RankedQueries, k: int, terms: Terms
) -> Iterator[PMIBlock]:
    from captum_nif.estimators.kernels import instance
    from captum_nif.estimators.kernels.grid import grid_of
    from captum_nif.estimators.kernels.scan import nowhere

    grid, capacity = grid_of(x.references + 1), _capacity_for(k)
    empty_lists = nowhere(k, len(capacity))
    tables = terms.joint.numpy().reshape(-1), terms.margin.numpy().reshape(-1)
    ranks_x, untied_x = x.ranks.numpy().reshape(-1), x.untied.numpy()
    queries_x = _contiguous(x.query_ranks)

    # Few rows at a time, then as many variables of y as the distances to them allow.
    each = _BYTES * x.references
    height = block_length(each, max(x.count, 1))
    width_y = block_length(height * each, max(y.size, 1))
    width_x = max(64, min(512, _RESULTS // (height * width_y)))
    for rows, columns_y in product(blocks(x.count, height), blocks(y.size, width_y)):
        ranks_y = _by_variable(y.ranks[:, columns_y])
        order = instance.order_around(
            _contiguous(y.query_ranks[rows, columns_y]),
            y.untied[columns_y].numpy(),
            grid,
            x.references,
        )

        def lead(
            columns: slice,
            ranks: NDArray[Any] = ranks_y,
            order: instance.VisitOrder = order,
        ) -> None:
            instance.fill(order, ranks, columns.start, columns.stop, grid)

        per_variable = order.samples.size // len(ranks_y)
        for _ in in_threads(lead, blocks(len(ranks_y), 1 + _RESULTS // per_variable)):
            pass

        def work(
            columns_x: slice,
            rows: slice = rows,
            columns_y: slice = columns_y,
            order: instance.VisitOrder = order,
        ) -> PMIBlock:
            pmi = instance.pointwise(
                ranks_x,
                untied_x,
                columns_x.start,
                columns_x.stop,
                queries_x[rows],
                order,
                k,
                capacity,
                empty_lists,
                grid,
                *tables,
            )
            return rows, columns_x, columns_y, torch.from_numpy(pmi)

        yield from in_threads(work, blocks(x.size, width_x))


def _capacity_for(k: int) -> tuple[int, ...]:
    """The least capacity that holds k neighbors and one more, as a tuple's length."""
    return (0,) * next(capacity for capacity in CAPACITIES if capacity > k)


def _by_variable(ranks: Tensor) -> NDArray[np.int16] | NDArray[np.int32]:
    """Ranks [N, n] as an array [n, N]."""
    return _contiguous(ranks.t())


def _contiguous(values: Tensor) -> NDArray[Any]:
    return values.contiguous().numpy()
