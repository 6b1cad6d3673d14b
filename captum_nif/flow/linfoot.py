r"""Links on the scale of correlation, on which paths may be multiplied.

Mutual information is not multiplicative along a chain, Linfoot's informational
correlation is: in a Gaussian Markov chain X - Y - Z with

.. math:: r = \sqrt{1 - e^{-2 I}}, \qquad r_{xz} = r_{xy} \, r_{yz}

(Linfoot, *An informational measure of correlation*, Information and Control 1, 1957).
With the sign of the ordinary correlation it also tells excitation from inhibition.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from captum_nif.estimators import GaussianCopula, PMIEstimator
from captum_nif.estimators.gaussian import gaussian_information
from captum_nif.graph.field_matrix import FieldMatrix


@overload
def signed_linfoot(
    estimator: PMIEstimator, x: Tensor, y: Tensor, field: None = None
) -> Tensor: ...


@overload
def signed_linfoot(
    estimator: PMIEstimator, x: Tensor, y: Tensor, field: Tensor
) -> FieldMatrix: ...


@overload
def signed_linfoot(
    estimator: PMIEstimator, x: Tensor, y: Tensor, field: Tensor | None
) -> Tensor | FieldMatrix: ...


def signed_linfoot(
    estimator: PMIEstimator,
    x: Tensor,
    y: Tensor,
    field: Tensor | None = None,
) -> Tensor | FieldMatrix:
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
        Tensor: float64, [a, b], in [-1, 1]; with a field a FieldMatrix.
    """
    if field is None:
        return _of_all_pairs(estimator, x.mT, y.mT)
    here, there = field.shape
    columns, rows = field.mT.nonzero(as_tuple=True)  # target after target
    rows, columns = rows.to(x.device), columns.to(x.device)
    xs, ys = x.mT.contiguous(), y.mT.contiguous()  # a node's samples lie together
    channels = torch.arange(0, len(xs), here, device=x.device)
    found = x.new_empty(len(rows), len(channels), len(ys) // there, dtype=torch.float64)
    parts = field.sum(0).tolist()
    for place, (seen, block) in enumerate(
        zip(rows.split(parts), found.split(parts), strict=True)
    ):
        if len(seen):
            sources = xs[(seen[:, None] + channels).flatten()]
            pairs = _of_all_pairs(estimator, sources, ys[place::there])
            block.copy_(pairs.view_as(block))
    return FieldMatrix(found, rows, columns, (here, there))


def _of_all_pairs(estimator: PMIEstimator, x: Tensor, y: Tensor) -> Tensor:
    """As :func:`signed_linfoot`, from variables in rows, [a, N] and [b, N]."""
    r = _pearson(x, y)
    if estimator == GaussianCopula("standard"):
        information = gaussian_information(r, x.shape[1])  # what it would find from r
    else:
        information = estimator.mi(x.mT, y.mT).to(x.device)
    return r.sign() * (-torch.expm1(-2 * information.clamp(min=0))).sqrt()


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of every pair of variables, float64, [a, b]; 0 for constants."""
    (x, a), (y, b) = (_centered(values) for values in (x, y))
    return x @ y.mT / (a[:, None] * b)


def _centered(values: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the mean, and their norm: inf for a constant, whose are 0."""
    values = values.double() - values[:, :1]  # exact, so that constants are exactly 0
    values -= values.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(values, dim=1)
    return values, torch.where(norm > 0, norm, torch.inf)
