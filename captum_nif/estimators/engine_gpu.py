"""The engine for GPUs: a kernel written in Triton, for all marginals.

It computes what the plain engine does, to the last bit, and never holds the distances
in a plane. The plain engine remains for more samples, and for GPUs on which Triton is
missing, does not compile, or is wrong about a small problem.

Not run on a GPU so far: Triton's interpreter showed on the CPU what the kernel
computes, and its compiler made code for several kinds of GPU. Nothing is known about
speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import get_args

import torch

from captum_nif._blocks import block_length, blocks
from captum_nif.estimators import engine_plain
from captum_nif.estimators.marginals import Marginals, QueryPoints, prepare_variables
from captum_nif.estimators.terms import PMIBlock, SumBlock, Terms, assemble_pmi

LARGEST = 1 << 14
"""Samples whose distances fit into the registers of the threads of one program."""

_BYTES = 8
"""Of a distance along either axis, and of a result."""

_SIDE = 128
"""Variables of y in a block, where memory allows."""


def takes(x: QueryPoints, y: QueryPoints, k: int) -> bool:
    """Whether this engine is for these points and this many neighbors."""
    return x.device.type == "cuda" and x.references < LARGEST and _works(x.device)


def sum_blocks(
    x: QueryPoints, y: QueryPoints, k: int, terms: Terms
) -> Iterator[SumBlock]:
    """See :func:`captum_nif.estimators.engine_plain.sum_blocks`."""
    for rows, columns_x, columns_y, pmi in pmi_blocks(x, y, k, terms):
        yield columns_x, columns_y, rows.stop - rows.start, pmi.sum(0)


def pmi_blocks(
    x: QueryPoints, y: QueryPoints, k: int, terms: Terms
) -> Iterator[PMIBlock]:
    """See :func:`captum_nif.estimators.engine_plain.pmi_blocks`."""
    from captum_nif.estimators.kernels import triton_plane

    roundoff = x.roundoff, y.roundoff
    tables = terms.joint, terms.margin
    # Few variables of y, so that many points fit, then as many variables of x as do.
    each = _BYTES * (x.references + 1)
    width_y = block_length(each, min(max(y.size, 1), _SIDE))
    height = block_length(each * width_y, max(x.count, 1))
    width_x = block_length(height * max(_BYTES * width_y, each))
    for rows in blocks(x.count, height):
        for columns_x in blocks(x.size, width_x):
            along_x = x.distances(rows, columns_x), x.magnitudes(rows, columns_x)
            for columns_y in blocks(y.size, width_y):
                along_y = y.distances(rows, columns_y), y.magnitudes(rows, columns_y)
                shape = *along_x[1].shape, along_y[1].shape[1]
                pmi = torch.empty(shape, dtype=torch.int64, device=x.device)
                with torch.cuda.device_of(pmi):
                    triton_plane.solve(along_x, along_y, roundoff, k, tables, pmi)
                yield rows, columns_x, columns_y, pmi


@lru_cache(maxsize=16)
def _works(device: torch.device) -> bool:
    """Whether Triton is there, compiles for a device, and is right about three samples.

    It fails in as many ways, and types of error, as there are drivers and compilers.
    """
    samples = [[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]]
    x = torch.tensor(samples, dtype=torch.float32, device=device)
    table = torch.arange(6, dtype=torch.int64, device=device).view(2, 3)
    terms = Terms(table, table * 10)
    try:
        for scale in get_args(Marginals):
            points = prepare_variables(x, scale).leave_one_out()
            result, right = (
                assemble_pmi(engine(points, points, 1, terms), (3, 2, 2), device, None)
                for engine in (pmi_blocks, engine_plain.pmi_blocks)
            )
            if not torch.equal(result, right):
                return False
    except Exception:
        return False
    return True
