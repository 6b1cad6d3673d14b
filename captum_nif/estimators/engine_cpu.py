"""The fast engine: compiled kernels on the CPU, here for normal scores.

It finds what the plain engine finds, to the last bit. Kernels release the GIL and work
in threads, each on a block of pairs of variables at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_nif._blocks import blocks
from captum_nif.estimators import engine_cpu_scaled
from captum_nif.estimators.marginals import (
    Centres,
    RankedQueries,
    RankedSamples,
    ScaledPoints,
)
from captum_nif.estimators.parallel import in_threads
from captum_nif.estimators.terms import Sums, Terms, Values

CAPACITIES = (4, 8, 12, 16, 24, 32, 64)
"""Neighbours that a kernel keeps at hand, one more than k at least. Each is compiled by
itself, when it is first needed."""

_SIDE = 32
"""Variables of each set in a block of the population workload, where memory allows."""

_BUDGET = 1 << 22
"""Values in a block of results, and distances of a block of queries, held at a time."""

_RESULTS = 1 << 16
"""Results of a block of queries: so few that their memory is used again and again."""


def takes(x: Centres, y: Centres, k: int) -> bool:
    """Whether this engine is for these points and this many neighbours."""
    if x.device.type != "cpu":
        return False
    if isinstance(x, ScaledPoints) and isinstance(y, ScaledPoints):
        return True
    kinds = (RankedSamples, RankedQueries)
    return isinstance(x, kinds) and isinstance(y, kinds) and k < CAPACITIES[-1]


def sum_blocks(x: Centres, y: Centres, k: int, terms: Terms) -> Iterator[Sums]:
    """See :func:`captum_nif.estimators.engine_plain.sum_blocks`; samples only."""
    if isinstance(x, ScaledPoints) and isinstance(y, ScaledPoints):
        return engine_cpu_scaled.sum_blocks(x, y, k, terms)
    assert isinstance(x, RankedSamples)
    assert isinstance(y, RankedSamples)
    return _sums(x, y, k, terms)


def pmi_blocks(x: Centres, y: Centres, k: int, terms: Terms) -> Iterator[Values]:
    """See :func:`captum_nif.estimators.engine_plain.pmi_blocks`."""
    if isinstance(x, ScaledPoints) and isinstance(y, ScaledPoints):
        return engine_cpu_scaled.pmi_blocks(x, y, k, terms)
    if isinstance(x, RankedSamples) and isinstance(y, RankedSamples):
        return _samples(x, y, k, terms)
    assert isinstance(x, RankedQueries)
    assert isinstance(y, RankedQueries)
    return _queries(x, y, k, terms)


def _sums(x: RankedSamples, y: RankedSamples, k: int, terms: Terms) -> Iterator[Sums]:
    from captum_nif.estimators.kernels import population
    from captum_nif.estimators.kernels.grid import grid_of

    grid, room = grid_of(x.count), _room_for(k)
    tables = terms.joint.numpy().reshape(-1), terms.margin.numpy().reshape(-1)

    def work(pairs: tuple[slice, slice]) -> Sums:
        columns, others = pairs
        total, _ = population.mutual_information(
            _by_variable(x.ranks[:, columns]),
            _by_variable(y.ranks[:, others]),
            k,
            room,
            grid,
            *tables,
        )
        return columns, others, x.count, torch.from_numpy(total)

    side = max(1, min(_SIDE, _BUDGET // (x.count + 1)))
    yield from in_threads(work, product(blocks(x.size, side), blocks(y.size, side)))


def _samples(
    x: RankedSamples, y: RankedSamples, k: int, terms: Terms
) -> Iterator[Values]:
    from captum_nif.estimators.kernels import population
    from captum_nif.estimators.kernels.grid import grid_of

    grid, room = grid_of(x.count), _room_for(k)
    tables = terms.joint.numpy().reshape(-1), terms.margin.numpy().reshape(-1)
    everyone = slice(0, x.count)

    def work(pairs: tuple[slice, slice]) -> Values:
        columns, others = pairs
        _, pmi = population.mutual_information(
            _by_variable(x.ranks[:, columns]),
            _by_variable(y.ranks[:, others]),
            k,
            room,
            grid,
            *tables,
            pointwise=True,
        )
        return everyone, columns, others, torch.from_numpy(pmi).permute(2, 0, 1)

    side = max(1, min(_SIDE, int((_BUDGET // x.count) ** 0.5)))
    yield from in_threads(work, product(blocks(x.size, side), blocks(y.size, side)))


def _queries(
    x: RankedQueries, y: RankedQueries, k: int, terms: Terms
) -> Iterator[Values]:
    from captum_nif.estimators.kernels import instance
    from captum_nif.estimators.kernels.grid import grid_of
    from captum_nif.estimators.kernels.scan import nowhere

    grid, room = grid_of(x.others + 1), _room_for(k)
    none_found = nowhere(k, len(room))
    tables = terms.joint.numpy().reshape(-1), terms.margin.numpy().reshape(-1)
    ranks_x, untied_x = x.ranks.numpy().reshape(-1), x.untied.numpy()
    queries_x = _contiguous(x.query_ranks)

    # Few rows at a time, then as many variables of y as the distances to them allow.
    height = max(1, min(x.count, _BUDGET // x.others))
    width_y = max(1, min(y.size, _BUDGET // (height * x.others)))
    width_x = max(64, min(512, _RESULTS // (height * width_y)))
    for rows, others in product(blocks(x.count, height), blocks(y.size, width_y)):
        ranks_y = _by_variable(y.ranks[:, others])
        way = instance.approach_from(
            _contiguous(y.query_ranks[rows, others]),
            y.untied[others].numpy(),
            grid,
            x.others,
        )

        def lead(
            columns: slice,
            ranks: NDArray[Any] = ranks_y,
            way: instance.Approach = way,
        ) -> None:
            instance.fill(way, ranks, columns.start, columns.stop, grid)

        per_variable = way.order.size // len(ranks_y)
        for _ in in_threads(lead, blocks(len(ranks_y), 1 + _RESULTS // per_variable)):
            pass

        def work(
            columns: slice,
            rows: slice = rows,
            others: slice = others,
            way: instance.Approach = way,
        ) -> Values:
            pmi = instance.pointwise(
                ranks_x,
                untied_x,
                columns.start,
                columns.stop,
                queries_x[rows],
                way,
                k,
                room,
                none_found,
                grid,
                *tables,
            )
            return rows, columns, others, torch.from_numpy(pmi)

        yield from in_threads(work, blocks(x.size, width_x))


def _room_for(k: int) -> tuple[int, ...]:
    """The least capacity that holds k neighbours and one more, as a tuple's length."""
    return (0,) * next(capacity for capacity in CAPACITIES if capacity > k)


def _by_variable(ranks: Tensor) -> NDArray[np.int16] | NDArray[np.int32]:
    """Ranks [N, n] as an array [n, N]."""
    return _contiguous(ranks.t())


def _contiguous(values: Tensor) -> NDArray[Any]:
    return values.contiguous().numpy()
