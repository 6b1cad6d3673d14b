"""The fast engine for values as they are, or standardised: kernels on the CPU.

It finds what the plain engine finds, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from captum_nif._blocks import blocks
from captum_nif.estimators.marginals import ScaledPoints
from captum_nif.estimators.parallel import in_threads
from captum_nif.estimators.terms import Sums, Terms, Values

if TYPE_CHECKING:
    from captum_nif.estimators.kernels.scaled import Axis

_SIDE = 64
"""Variables of each set in a block, where memory allows."""

_BUDGET = 1 << 22
"""Values in a block of results held at a time."""


def sum_blocks(
    x: ScaledPoints, y: ScaledPoints, k: int, terms: Terms
) -> Iterator[Sums]:
    """See :func:`captum_nif.estimators.engine_plain.sum_blocks`."""
    for _, columns, others, pmi in pmi_blocks(x, y, k, terms):
        yield columns, others, len(pmi), pmi.sum(0)


def pmi_blocks(
    x: ScaledPoints, y: ScaledPoints, k: int, terms: Terms
) -> Iterator[Values]:
    """See :func:`captum_nif.estimators.engine_plain.pmi_blocks`."""
    from captum_nif.estimators.kernels import scaled

    tables = terms.joint.numpy(), terms.margin.numpy()
    roundoff = max(x.roundoff, y.roundoff)
    everyone, own = slice(0, x.count), int(x.are_samples)
    side = max(1, min(_SIDE, int((_BUDGET // max(1, x.count)) ** 0.5)))
    for others in blocks(y.size, side):
        along_y = _axis(y, others)

        def work(
            columns: slice, others: slice = others, along_y: Axis = along_y
        ) -> Values:
            along_x = _axis(x, columns)
            pmi = scaled.pointwise(along_x, along_y, own, k, roundoff, *tables)
            return everyone, columns, others, torch.from_numpy(pmi)

        yield from in_threads(work, blocks(x.size, side))


def _axis(points: ScaledPoints, columns: slice) -> Axis:
    from captum_nif.estimators.kernels.scaled import Axis

    values = points.values[:, columns].t().double().contiguous()
    ordered, order = values.sort(dim=-1)
    everyone = slice(0, points.count)
    scale = points.scale_of(everyone, columns).t().expand(-1, points.count)
    at = points.points[:, columns].t().double()
    tensors = values, ordered, order, at.contiguous(), scale.contiguous()
    return Axis(*(tensor.numpy() for tensor in tensors))
