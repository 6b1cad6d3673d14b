"""The engine for GPUs: a kernel written in Triton, for all marginals.

It finds what the plain engine finds, to the last bit, and never holds the distances in
a plane. The plain engine remains for more samples, and for GPUs on which Triton is
missing, does not compile, or is wrong about a small problem.

Not run on a GPU so far: Triton's interpreter showed on the CPU what the kernel finds,
and its compiler made code for several kinds of GPU. Nothing is known about speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import get_args

import torch

from captum_nif._blocks import blocks
from captum_nif.estimators import engine_plain
from captum_nif.estimators.marginals import Centres, Marginals, prepare_variables
from captum_nif.estimators.terms import Sums, Terms, Values

LARGEST = 1 << 14
"""Samples whose distances fit into the registers of the threads of one program."""

_BUDGET = 1 << 24
"""Distances along either axis, and results, in a block."""

_SIDE = 128
"""Variables of y in a block, where the budget allows."""


def takes(x: Centres, y: Centres, k: int) -> bool:
    """Whether this engine is for these points and this many neighbours."""
    return x.device.type == "cuda" and x.others < LARGEST and _works(x.device)


def sum_blocks(x: Centres, y: Centres, k: int, terms: Terms) -> Iterator[Sums]:
    """See :func:`captum_nif.estimators.engine_plain.sum_blocks`."""
    for rows, columns, others, pmi in pmi_blocks(x, y, k, terms):
        yield columns, others, rows.stop - rows.start, pmi.sum(0)


def pmi_blocks(x: Centres, y: Centres, k: int, terms: Terms) -> Iterator[Values]:
    """See :func:`captum_nif.estimators.engine_plain.pmi_blocks`."""
    from captum_nif.estimators.kernels import triton_plane

    roundoff = max(x.roundoff, y.roundoff)
    tables = terms.joint, terms.margin
    # Few variables of y, so that many points fit, then as many variables of x as do.
    width_y = max(1, min(y.size, _SIDE, _BUDGET // (x.others + 1)))
    height = max(1, min(x.count, _BUDGET // (width_y * (x.others + 1))))
    width_x = max(1, _BUDGET // (height * max(width_y, x.others + 1)))
    for rows in blocks(x.count, height):
        for columns in blocks(x.size, width_x):
            along_x = x.distances(rows, columns), x.magnitudes(rows, columns)
            for others in blocks(y.size, width_y):
                along_y = y.distances(rows, others), y.magnitudes(rows, others)
                shape = *along_x[1].shape, along_y[1].shape[1]
                pmi = torch.empty(shape, dtype=torch.int64, device=x.device)
                with torch.cuda.device_of(pmi):
                    triton_plane.solve(along_x, along_y, roundoff, k, tables, pmi)
                yield rows, columns, others, pmi


@lru_cache(maxsize=16)
def _works(device: torch.device) -> bool:
    """Whether Triton is there, compiles for a device, and is right about three samples.

    It fails in as many ways, and types of error, as there are drivers and compilers.
    """
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]], device=device)
    table = torch.arange(6, device=device).view(2, 3)
    terms = Terms(table, table * 10)
    try:
        for scale in get_args(Marginals):
            points = prepare_variables(x, scale).leave_one_out()
            (block,) = pmi_blocks(points, points, 1, terms)
            (right,) = engine_plain.pmi_blocks(points, points, 1, terms)
            if not torch.equal(block[-1], right[-1]):
                return False
    except Exception:
        return False
    return True
