r"""Moments of samples and queries, exact: the same to the last bit in any order.

A query is explained as sample N + 1, so its moments are those of a population of its
own: all samples and itself. Samples share one population.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_nif.estimators.base import Points
from captum_nif.estimators.marginals import RankedVariables, ScaledVariables
from captum_nif.estimators.normal_scores import SCORE_BITS, normal_scores


class Moments(NamedTuple):
    """Moments of some variables in S populations of P points each, or in one.

    Attributes:
        values (Tensor): of all points, whole numbers, [S, P, n].
        total (Tensor): sums over points, [S, n].
        spread (Tensor): P standard deviations, 0 for constants, [S, n].
        scores (Tensor): standardized, of the points explained, [S, n], or of all points
            of the one population, [P, n]. 0 for constants.
    """

    values: Tensor
    total: Tensor
    spread: Tensor
    scores: Tensor

    @property
    def points(self) -> int:
        """Number of points P of a population."""
        return self.values.shape[1]


class Populations:
    """What moments are of: all samples, or for each query the samples and itself.

    Their coordinates are whole numbers, so small that sums of products stay below 2^53.
    Sums of such numbers are exact in float64, whatever their order.
    """

    def __init__(self, points: Points) -> None:
        variables, query = points
        self.size, self.device = variables.size, variables.device
        self.one = query is None
        self.points = variables.samples + (query is not None)
        self.count = variables.samples if query is None else len(query)
        self._variables, self._query = variables, query
        bits = (53 - (self.points - 1).bit_length()) // 2
        self._unit = 2.0**-bits
        if isinstance(variables, RankedVariables):
            table = normal_scores(self.points).double() / 2**SCORE_BITS
            self._scores = torch.round(table / self._unit).to(self.device)
            self._query = None if query is None else variables.ranks_of(query)

    def moments(self, rows: slice, columns: slice) -> Moments:
        """Moments of the points that the samples or queries ``rows`` belong to."""
        if self.one or self.device.type != "cpu":
            values = self._values(rows, columns)
            total, squares = values.sum(1), values.square().sum(1)
        else:
            values, total, squares = self._around_queries(rows, columns)
        points = values.shape[1]
        spread = (points * squares - total.square()).sqrt()
        explained = values[0, rows] if self.one else values[:, -1]
        scores = (points * explained - total) / _or_one(spread)
        return Moments(values, total, spread, scores)

    def _around_queries(
        self, rows: slice, columns: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates, their sums and sums of squares, by a compiled kernel."""
        from captum_nif.estimators.kernels import coordinates

        assert self._query is not None
        query = self._query[rows, columns].contiguous()
        sums = torch.zeros((2, *query.shape), dtype=torch.float64, device="cpu")
        values = sums.new_empty(len(query), self.points, query.shape[1])
        result = values, *sums
        arrays = [tensor.numpy() for tensor in result]
        if isinstance(self._variables, RankedVariables):
            ranks = self._variables.ranks.numpy()
            table = self._scores.numpy()
            coordinates.of_ranks(ranks, columns.start, query.numpy(), table, *arrays)
            return result
        assert isinstance(self._variables, ScaledVariables)
        low, high = (bound[columns].numpy() for bound in self._variables.bounds)
        samples = self._variables.values.contiguous().numpy()
        coordinates.of_values(
            samples,
            columns.start,
            query.double().numpy(),
            low,
            high,
            self._unit,
            *arrays,
        )
        return result

    def _values(self, rows: slice, columns: slice) -> Tensor:
        query = None if self._query is None else self._query[rows, columns][:, None]
        if isinstance(self._variables, RankedVariables):
            ranks = self._variables.ranks[None, :, columns].int()
            if query is not None:
                # A query pushes samples above it up by a rank, those equal by a half.
                ranks = ranks + 2 * (ranks >= query) + (ranks == query - 1).int()
                ranks = torch.cat([ranks, query], dim=1)
            return self._scores[ranks]
        assert isinstance(self._variables, ScaledVariables)
        values = self._variables.values[None, :, columns]
        if query is not None:
            query = query.to(values.dtype)
            values = torch.cat([values.expand(len(query), -1, -1), query], dim=1)
        low, high = values.double().aminmax(dim=1, keepdim=True)
        return torch.round((values - low) / _or_one(high - low) / self._unit)


def correlation(x: Moments, y: Moments) -> tuple[Tensor, Tensor]:
    """Correlations r, [S, a, b], and whether neither variable is constant."""
    spread = x.spread[:, :, None] * y.spread[:, None]
    products = x.values.mT @ y.values
    covariance = x.points * products - x.total[:, :, None] * y.total[:, None]
    return covariance / _or_one(spread), spread > 0


def _or_one(divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, divisor, 1.0)
