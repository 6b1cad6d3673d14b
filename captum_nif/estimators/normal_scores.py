"""Normal scores: the scale that all ranked variables share."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SCORE_BITS = 26
"""Normal scores are integers in units of 2^-26: all of (-8, 8), and the difference of
any two scores, fit into int32."""


@lru_cache(maxsize=64)
def normal_scores(samples: int) -> Tensor:
    r"""
    Table of the normal scores of N samples, indexed by *twice* the mean rank.

    Twice, because tied samples share half-integer mean ranks. The entry for 2r is
    :math:`\Phi^{-1}((r - 1/2)/N)` (the rank-based inverse normal transform with Hazen's
    plotting position), rounded to a multiple of 2^-26 and stored as that integer
    multiple. The upper half mirrors the lower one, so that the table is exactly
    antisymmetric. Entries 0 and 1 are padding.

    Args:

        samples (int): Number N of samples that are ranked together.

    Returns:

        **Tensor** of shape [2N + 1], int32, on the CPU.

    Examples::

        >>> normal_scores(3)[2::2] / 2**SCORE_BITS
        tensor([-0.9674,  0.0000,  0.9674])
    """
    doubled = torch.arange(2, samples + 1, dtype=torch.float64, device="cpu")
    below = torch.special.ndtri((doubled - 1) / (2 * samples))
    below = torch.round(below * 2**SCORE_BITS).int()
    padding, median = below.new_zeros(2), below.new_zeros(1)
    return torch.cat([padding, below, median, -below.flip(0)])
