r"""How alike two lists of feature scores are, in four ways, and the scores' yardstick.

Davis et al. (2020, Table 1) compare attributions with raw mutual information by a
two-sample Kolmogorov-Smirnov test. Its statistic is the largest gap between two
empirical distribution functions,

.. math:: D = \max_t |F_a(t) - F_b(t)|,

so it sees the values and not which feature has which: rank correlation and the
agreement of the highest features stand beside it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import special, stats
from sklearn.feature_selection import mutual_info_classif
from torch import Tensor

from captum_nif import MixedKSG

Values = npt.NDArray[np.float64]

RESAMPLES = 999
"""Random splits of a permutation test; all splits where there are no more than that."""


def ks_distance(a: Values, b: Values, axis: int = -1) -> Values:
    r"""
    The two-sample Kolmogorov-Smirnov statistic, without a loop over several pairs.

    Args:

        a (ndarray): Values, n along ``axis``.
        b (ndarray): Values, m along ``axis``, otherwise of the shape of ``a``.
        axis (int, optional): Along which axis the scores of a sample are.
            Default: -1

    Returns:

        ndarray: Largest gaps, in [0, 1]; without ``axis``.

    Examples::

        >>> float(ks_distance(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 9.0])))
        0.5
    """
    a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    n, m = a.shape[-1], b.shape[-1]
    pooled = np.concatenate([a, b], axis=-1)
    order = pooled.argsort(axis=-1)
    # In units of 1 / (n m), so that equal gaps are equal to the last bit.
    gaps = np.where(order < n, m, -n).cumsum(axis=-1)
    ranked = np.take_along_axis(pooled, order, axis=-1)
    # Within a tie neither function has reached its height yet.
    complete = np.ones(gaps.shape, dtype=bool)
    complete[..., :-1] = ranked[..., 1:] != ranked[..., :-1]
    largest: Values = np.where(complete, np.abs(gaps), 0).max(axis=-1) / (n * m)
    return largest


def asymptotic_p(distance: float, n: int, m: int) -> float:
    r"""
    The p-value that SciPy gave before version 1.3, from the limit of many samples.

    With :math:`e = \sqrt{nm / (n + m)}` it is the upper tail of Kolmogorov's
    distribution at :math:`(e + 0.12 + 0.11 / e) D` (Stephens 1970). It is far off for
    small samples, and is what the paper's p-values are.

    Args:

        distance (float): The statistic D.
        n (int): Size of one sample.
        m (int): Size of the other.

    Returns:

        float: The p-value, in [0, 1].

    Examples::

        >>> [round(asymptotic_p(d, 4, 4), 4) for d in (1.0, 0.75, 0.25)]
        [0.0111, 0.1075, 0.9969]
    """
    e = np.sqrt(n * m / (n + m))
    return float(special.kolmogorov((e + 0.12 + 0.11 / e) * distance))


def permutation_p(a: Values, b: Values, seed: int) -> float:
    r"""
    How often a random split of all values has a D as large as the one between a and b.

    Unlike the tables of the exact test it allows for ties. It takes the values as
    exchangeable, which scores of the same features hardly are: read it as a scale.

    Args:

        a (ndarray): Values, ``[n]``.
        b (ndarray): Values, ``[m]``.
        seed (int): Draws the splits, where there are more than :data:`RESAMPLES`.

    Returns:

        float: The p-value, in (0, 1].

    Examples::

        >>> a, b = np.arange(4.0), np.arange(4.0) + 10
        >>> round(permutation_p(a, b, seed=0), 4)  # 2 of the 70 splits
        0.0286
    """
    tested = stats.permutation_test(
        (a, b),
        ks_distance,
        permutation_type="independent",
        alternative="greater",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(tested.pvalue)


def unit_sum(a: Values) -> Values:
    r"""
    Scores as shares: divided by the sum of their absolute values, signs kept.

    Args:

        a (ndarray): Values, ``[n]``.

    Returns:

        ndarray: The shares; zeros stay zeros.

    Examples::

        >>> unit_sum(np.array([3.0, -1.0])).tolist()
        [0.75, -0.25]
    """
    total = math.fsum(np.abs(a))  # the same whatever the order, or ties would part
    return a / total if total > 0 else a


def top_agreement(a: Values, b: Values) -> float:
    r"""
    The share of the highest quarter of features that both lists name.

    Args:

        a (ndarray): Values, ``[n]``.
        b (ndarray): Values of the same features. Of equal scores the first is higher.

    Returns:

        float: The share, in [0, 1]. By chance a quarter is expected, if 4 divides n.

    Examples::

        >>> a, b = np.array([5.0, 1.0, 2.0, 3.0]), np.array([3.0, 9.0, 0.0, 1.0])
        >>> top_agreement(a, b)
        0.0
    """
    highest = -(-len(a) // 4)
    chosen = [set((-s).argsort(kind="stable")[:highest].tolist()) for s in (a, b)]
    return len(chosen[0] & chosen[1]) / highest


def raw_mi(x: Tensor, y: Tensor, classes: int) -> Tensor:
    r"""
    The yardstick: what each feature tells about whether a sample is of a class.

    :math:`I(x_i; 1[y = c])` by :class:`captum_nif.MixedKSG` with its defaults.

    Args:

        x (Tensor): Samples, ``[N, ...]``.
        y (Tensor): Their classes, int64, ``[N]``.
        classes (int): How many classes there are, C.

    Returns:

        Tensor: Nats, float64, ``[C, features]``; slightly negative values are noise.
    """
    return MixedKSG().mi(x.flatten(1), F.one_hot(y, classes).to(x.dtype)).T


def raw_mi_by_sklearn(x: Tensor, y: Tensor, classes: int, seed: int) -> Tensor:
    r"""
    The same by scikit-learn, which adds noise to break ties and cuts off below 0.

    Args:

        x (Tensor): Samples, ``[N, ...]``.
        y (Tensor): Their classes, int64, ``[N]``.
        classes (int): How many classes there are, C.
        seed (int): Draws the noise.

    Returns:

        Tensor: Nats, float64, ``[C, features]``.
    """
    columns: Any = x.flatten(1).double().numpy()
    neighbors = MixedKSG().neighbors(len(x) - 1)
    found = [
        mutual_info_classif(
            columns, (y == c).numpy(), n_neighbors=neighbors, random_state=seed
        )
        for c in range(classes)
    ]
    return torch.from_numpy(np.stack(found))
