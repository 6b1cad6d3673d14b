"""The fast engine for values as they are, or standardized: kernels on the CPU.

It computes what the plain engine does, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from captum_nif._blocks import block_side, blocks
from captum_nif.estimators.marginals import ScaledPoints
from captum_nif.estimators.parallel import in_threads
from captum_nif.estimators.terms import PMIBlock, SumBlock, Terms

if TYPE_CHECKING:
    from captum_nif.estimators.kernels.scaled import ScaledAxis

_SIDE = 64
"""Variables of each set in a block, where memory allows."""

_BYTES = 32
"""Of temporary arrays for each result."""


def sum_blocks(
    x: ScaledPoints, y: ScaledPoints, k: int, terms: Terms
) -> Iterator[SumBlock]:
    """See :func:`captum_nif.estimators.engine_plain.sum_blocks`."""
    for _, columns_x, columns_y, pmi in pmi_blocks(x, y, k, terms):
        yield columns_x, columns_y, len(pmi), pmi.sum(0)


def pmi_blocks(
    x: ScaledPoints, y: ScaledPoints, k: int, terms: Terms
) -> Iterator[PMIBlock]:
    """See :func:`captum_nif.estimators.engine_plain.pmi_blocks`."""
    from captum_nif.estimators.kernels import scaled

    tables = terms.joint.numpy(), terms.margin.numpy()
    all_rows, own = slice(0, x.count), int(x.are_samples)
    side = block_side(_BYTES * x.count, _SIDE)
    for columns_y in blocks(y.size, side):
        along_y = _axis(y, columns_y)

        def work(
            columns_x: slice,
            columns_y: slice = columns_y,
            along_y: ScaledAxis = along_y,
        ) -> PMIBlock:
            along_x = _axis(x, columns_x)
            pmi = scaled.pointwise(
                along_x, along_y, own, k, x.roundoff, y.roundoff, *tables
            )
            return all_rows, columns_x, columns_y, torch.from_numpy(pmi)

        yield from in_threads(work, blocks(x.size, side))


def _axis(points: ScaledPoints, columns: slice) -> ScaledAxis:
    from captum_nif.estimators.kernels.scaled import ScaledAxis

    values = points.values[:, columns].t().double().contiguous()
    ordered, order = values.sort(dim=-1)
    all_rows = slice(0, points.count)
    scale = points.scale_of(all_rows, columns).t().expand(-1, points.count)
    at = points.points[:, columns].t().double()
    tensors = values, ordered, order, at.contiguous(), scale.contiguous()
    return ScaledAxis(*(tensor.numpy() for tensor in tensors))
