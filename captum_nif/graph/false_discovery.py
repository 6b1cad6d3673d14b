"""Many p-values at once: the false discovery rate (Benjamini and Hochberg)."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor


def false_discovery(pvalues: Sequence[Tensor]) -> list[Tensor]:
    r"""
    Adjust p-values for their number.

    Of n p-values in ascending order, that of rank i becomes

    .. math:: \min_{j \ge i} \; p_{(j)} \, n / j,

    at most 1 (Benjamini and Hochberg, *Controlling the false discovery rate*, J. R.
    Stat. Soc. B 57, 1995). Keep the links whose adjusted p-value is at most q, and at
    most a share q of those kept is expected to join independent nodes. That holds for
    p-values which are independent, or positively dependent (Benjamini and Yekutieli,
    2001), as those of links are that end at correlated nodes. For any dependence at
    all, multiply by the sum of 1/i over all links i = 1, 2, ... (about 10 for 10,000).

    Args:

        pvalues (sequence of Tensor): p-values that are looked at together.

    Returns:

        **list of Tensor**: adjusted p-values, float64, of the same shapes and devices.

    Examples::

        >>> false_discovery([torch.tensor([0.01, 0.5]), torch.tensor([0.02])])[0]
        tensor([0.0300, 0.5000], dtype=torch.float64)
    """
    together = torch.cat([values.double().flatten().cpu() for values in pvalues])
    ordered, order = together.sort()
    rank = torch.arange(1, len(together) + 1, dtype=torch.float64, device="cpu")
    scaled = ordered * (rank.new_tensor(len(together)) / rank)
    if len(together):  # torch refuses the minimum of nothing
        scaled = scaled.flip(0).cummin(0).values.flip(0).clamp(max=1)
    adjusted = torch.empty_like(together).scatter_(0, order, scaled)
    parts = adjusted.split([values.numel() for values in pvalues])
    return [
        part.view(values.shape).to(values.device)
        for part, values in zip(parts, pvalues, strict=True)
    ]


def check_fdr(fdr: float) -> None:
    """Refuse what is no false discovery rate."""
    if not isinstance(fdr, numbers.Real):
        raise TypeError(
            f"fdr, a false discovery rate, must be a number, got {type(fdr).__name__}."
        )
    if not 0 < fdr < 1:
        raise ValueError(
            f"fdr, a false discovery rate, must lie between 0 and 1, got {fdr}."
        )
