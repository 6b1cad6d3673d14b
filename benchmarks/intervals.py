"""What several trainings say of a number: its mean, and how far that may be off."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import scipy.stats


class Interval(NamedTuple):
    """A mean, and half of its 95 % confidence interval by Student's t."""

    mean: float
    half: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return ""
        return f"{self.mean:.3f}" + (
            "" if math.isnan(self.half) else f" ± {self.half:.3f}"
        )


def interval(values: Sequence[float]) -> Interval:
    r"""
    The mean over trainings, and how far it may be off.

    Args:

        values (Sequence[float]): One value for each training.

    Returns:

        Interval: The half width is NaN for a single value.

    Examples::

        >>> print(interval([1.0, 2.0, 3.0]))
        2.000 ± 2.484
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1 or math.isnan(mean):
        return Interval(mean, math.nan)
    quantile = float(scipy.stats.t.ppf(0.975, n - 1))
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(n))
