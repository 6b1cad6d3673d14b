r"""Links on the scale of correlation, on which paths may be multiplied.

Mutual information is not multiplicative along a chain, Linfoot's informational
correlation is: in a Gaussian Markov chain X - Y - Z with

.. math:: r = \sqrt{1 - e^{-2 I}}, \qquad r_{xz} = r_{xy} \, r_{yz}

(Linfoot, *An informational measure of correlation*, Information and Control 1, 1957).
With the sign of the ordinary correlation it also tells excitation from inhibition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_nif.estimators import PMIEstimator
from captum_nif.layers import sorted_sparse

_DENSE = 0.5
"""Share of the pairs of nodes above which a link is stored as a full matrix."""


def signed_linfoot(
    estimator: PMIEstimator,
    x: Tensor,
    y: Tensor,
    field: Tensor | None = None,
) -> Tensor:
    r"""
    Linfoot's correlation of every pair of variables, with the sign of Pearson's.

    .. math:: w = \operatorname{sign}(\operatorname{corr}(x, y))
        \sqrt{1 - e^{-2 \max(I(x; y), 0)}}

    Args:
        estimator (PMIEstimator): of the mutual information I.
        x (Tensor): N samples of the source layer's a nodes, [N, a].
        y (Tensor): N samples of the target layer's b nodes, [N, b].
        field (Tensor, optional): bool, [places of the source, places of the target]:
            the places between which there are links. The nodes of a layer are ordered
            by channel, then by place.

    Returns:
        Tensor: float64, [a, b], in [-1, 1]; sparse (COO) where fields are small.
    """
    if field is None:
        return _of_all_pairs(estimator, x, y)
    places, others = field.shape
    a, b = x.shape[1], y.shape[1]
    dense = (
        x.new_zeros(a, b, dtype=torch.float64)
        if field.double().mean() > _DENSE
        else None
    )
    # an empty part each, for targets that no place of the source reaches
    indices, values = [x.new_zeros(0, dtype=torch.long)], [x.new_zeros(0).double()]
    for place in range(others):
        seen = field[:, place].nonzero().flatten().to(x.device)
        if not len(seen):
            continue
        rows = (torch.arange(0, a, places, device=x.device)[:, None] + seen).flatten()
        columns = torch.arange(place, b, others, device=x.device)
        block = _of_all_pairs(estimator, x[:, rows], y[:, columns])
        if dense is not None:
            dense[rows[:, None], columns] = block
            continue
        at = (rows[:, None] * b + columns).flatten()
        indices.append(at)
        values.append(block.flatten())
    if dense is not None:
        return dense
    order = torch.cat(indices).argsort()
    at = torch.cat(indices)[order]
    return sorted_sparse(
        torch.stack([at // b, at % b]), torch.cat(values)[order], (a, b)
    )


def _of_all_pairs(estimator: PMIEstimator, x: Tensor, y: Tensor) -> Tensor:
    information = estimator.mi(x, y)
    size = (-torch.expm1(-2 * information.clamp(min=0))).sqrt()
    return size.to(x.device) * _covariance(x, y).sign()


def _covariance(x: Tensor, y: Tensor) -> Tensor:
    """Covariance of every pair of variables, float64, [a, b]."""
    x, y = (v.double() - v.double().mean(0) for v in (x, y))
    return x.mT @ y / len(x)
