r"""The weight of a link: relevance less redundancy (Eq. 3 of the paper).

.. math::
    w_{ik} = R_{ik} - \beta \sum_{j < i} I(X_i; X_j)

where :math:`X_i` is node i of the source layer and :math:`Q_k` node k of the target
layer. The relevance R is :math:`I(X_i; Q_k)` (``"pairwise"``, as in Battiti's MIFS
criterion, 1994) or :math:`I(X; Q_k)` with X the whole source layer (``"joint"``, Eq. 3
as printed; it is then the same for every i). For one sample every mutual information is
the pointwise one. The redundancy depends on the order of the nodes, as in the paper.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from captum_nif.estimators import PMIEstimator, Prepared

Relevance = Literal["pairwise", "joint"]

MAX_REDUNDANCY_NODES = 1024
"""Largest source layer for beta > 0: its redundancy takes size^2 / 2 more pairs."""

_BUDGET = 1 << 23
"""Pointwise redundancies held at a time (64 MiB of float64)."""


@dataclass(frozen=True)
class LinkRule:
    """How the weights of links are computed from node values.

    Args:
        estimator (PMIEstimator): of the (pointwise) mutual information.
        relevance (str): ``"pairwise"`` or ``"joint"``.
        beta (float): weight of the redundancy, in [0, inf).
    """

    estimator: PMIEstimator
    relevance: Relevance = "pairwise"
    beta: float = 0.0

    def __post_init__(self) -> None:
        is_class = isinstance(self.estimator, type)
        if is_class or not isinstance(self.estimator, PMIEstimator):
            raise TypeError(
                "`estimator` must be a PMIEstimator such as MixedKSG(), got "
                f"{'the class ' * is_class}{self.estimator!r}."
            )
        if self.relevance not in get_args(Relevance):
            raise ValueError(
                f"`relevance` must be one of {get_args(Relevance)}, "
                f"got {self.relevance!r}."
            )
        if not isinstance(self.beta, numbers.Real):
            raise TypeError(f"`beta` must be a number, got {self.beta!r}.")
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"`beta` must be finite and >= 0, got {self.beta!r}.")

    def check_size(self, name: str, size: int) -> None:
        """Refuses a source layer whose redundancy would take too many pairs."""
        if self.beta > 0 and size > MAX_REDUNDANCY_NODES:
            raise ValueError(
                f"beta = {self.beta:g} needs the mutual information of every pair of "
                f"the {size} nodes of layer {name!r} ({size * (size - 1) // 2:,} "
                f"pairs; at most {MAX_REDUNDANCY_NODES} nodes are allowed): group its "
                "features with `feature_mask`, or set beta=0."
            )

    def population(
        self, x: Prepared, y: Prepared, redundancy: Tensor | float = 0.0
    ) -> Tensor:
        """Weights of a population graph, in nats, [a, b].

        Args:
            x (Prepared): the source layer's values, N samples of a nodes.
            y (Prepared): the target layer's values, N samples of b nodes.
            redundancy (Tensor): what :meth:`redundancy` gave for the source layer.
        """
        if self.relevance == "joint":
            weight = self.estimator.joint(x, y).mean(0).expand(x.size, -1)
        else:
            weight = self.estimator.mi(x, y)
        return self._less(weight, redundancy)

    def instances(
        self,
        x: Prepared,
        y: Prepared,
        query: tuple[Tensor, Tensor] | None,
        redundancy: Tensor | float = 0.0,
    ) -> Tensor:
        """Weights of one graph per sample, in nats, [S, a, b].

        Args:
            x (Prepared): the source layer's values, N samples of a nodes.
            y (Prepared): the target layer's values, N samples of b nodes.
            query (tuple of Tensor or None): values of the S samples explained, [S, a]
                and [S, b]; None explains each of the N samples against the others.
            redundancy (Tensor): what :meth:`redundancy` gave for the source layer.
        """
        if self.relevance == "joint":
            weight = self.estimator.joint(x, y, query).unsqueeze(1)
            weight = weight.expand(-1, x.size, -1)
        else:
            weight = self.estimator.pmi(x, y, query)
        return self._less(weight, redundancy)

    def redundancy(
        self, x: Tensor, query: Tensor | None = None, pointwise: bool = False
    ) -> Tensor | float:
        r"""The sum over j < i of :math:`I(X_i; X_j)`, in nats; 0 where beta is.

        Args:
            x (Tensor): values of the source layer, [N, a].
            query (Tensor, optional): values of the samples explained, [S, a].
            pointwise (bool): one sum per sample rather than for the population.

        Returns:
            Tensor: [a], or [S, a] if pointwise ([N, a] without a query).
        """
        if self.beta == 0:
            return 0.0
        samples = 1 if not pointwise else len(x if query is None else query)
        size = x.shape[1]
        step = max(1, _BUDGET // (samples * size))
        sums = []
        for start in range(0, size, step):
            stop = min(start + step, size)
            # i in [start, stop), j < stop: what lies above the diagonal is cut away
            if pointwise:
                part = (
                    None if query is None else (query[:, start:stop], query[:, :stop])
                )
                pairs = self.estimator.pmi(x[:, start:stop], x[:, :stop], part)
            else:
                pairs = self.estimator.mi(x[:, start:stop], x[:, :stop])
            sums.append(pairs.tril(start - 1).sum(-1))
        return torch.cat(sums, dim=-1)

    def _less(self, weight: Tensor, redundancy: Tensor | float) -> Tensor:
        if isinstance(redundancy, Tensor):
            return weight - self.beta * redundancy.unsqueeze(-1)
        return weight
