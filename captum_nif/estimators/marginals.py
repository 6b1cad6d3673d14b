r"""
Marginals: the scale on which distances between samples are measured.

``normal``
    Every variable is replaced by its normal scores: ranked (ties take the mean rank r),
    then mapped to :math:`\Phi^{-1}((r - 1/2)/N)`. Mutual information does not change
    under monotone maps, and units, skew and heavy tails stop mattering. All variables
    share one symmetric table of scores, kept as integers: equal steps in rank are
    equal distances exactly, so ties need no tolerance.
``standard``
    Values divided by their standard deviation.
``raw``
    Values as they are.

A query counts as sample N + 1: it is ranked, or takes part in the standard deviation,
together with the N samples it is compared with. Explaining sample i against the others,
and explaining it as a query against a population without it, are then the same
computation on the same numbers, and agree to the last bit.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from captum_nif._blocks import block_length, blocks
from captum_nif.estimators.normal_scores import normal_scores
from captum_nif.estimators.ranking import ranked, ranked_among

Marginals = Literal["normal", "standard", "raw"]

_Variables = TypeVar("_Variables", bound="Variables")

_ROUNDINGS = 8.0
"""How many roundings of its operands a distance may be off by and still tie: one from
storing each value, the rest for the arithmetic that made it (a division by 255, say)
and for the standard deviation.
"""

LEAST_DISTANCE = torch.finfo(torch.float64).tiny
"""Values less than this apart are equal, whatever the rounding errors of others."""

_HALF_WORD = 1 << 31
"""Steps in a fraction, and again in a step: sums of either fit into int64."""

_FAR = torch.iinfo(torch.int32).max


class QueryPoints(ABC):
    """Points whose neighbors among reference samples are counted.

    Attributes:
        count (int): Number of points.
        size (int): Number of variables.
        references (int): Number of samples that each point is compared with.
        roundoff (float): Relative error of a distance; 0 where distances are exact.
        device (torch.device): Where they are.
    """

    count: int
    size: int
    references: int
    roundoff: float
    device: torch.device

    @abstractmethod
    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Distances from points to samples, variable by variable: [rows, columns, N].

        Where the points are the samples, each is out of its own reach: its distance to
        itself is larger than any other.
        """

    @abstractmethod
    def magnitudes(self, rows: slice, columns: slice) -> Tensor:
        """Size of the points' own values, which rounding errors grow with."""


class JointVariable(QueryPoints):
    """All variables of some points as a single one, by their Chebyshev distance.

    Joint PMI of a vector is PMI of this variable.
    """

    size = 1

    def __init__(self, components: QueryPoints) -> None:
        self._components = components
        self.count, self.references = components.count, components.references
        self.roundoff, self.device = components.roundoff, components.device

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Largest distance over the components."""
        return self._largest(self._components.distances, rows, self.references)

    def magnitudes(self, rows: slice, columns: slice) -> Tensor:
        """Largest magnitude over the components."""
        return self._largest(self._components.magnitudes, rows, 1)

    def _largest(
        self, of: Callable[[slice, slice], Tensor], rows: slice, each: int
    ) -> Tensor:
        width = block_length(32 * each * (rows.stop - rows.start))
        largest: Tensor | None = None
        for columns in blocks(self._components.size, width):
            here = of(rows, columns).amax(dim=1, keepdim=True)
            largest = here if largest is None else torch.maximum(largest, here)
        assert largest is not None, "a vector has at least one variable"
        return largest


class Variables(ABC):
    """N samples of some variables on one scale; made by :func:`prepare_variables`.

    Attributes:
        marginals (str): The scale.
        samples (int): Number of samples N.
        size (int): Number of variables.
        dtype (torch.dtype): Of the samples they were made from.
        device (torch.device): Where they are.
    """

    marginals: Marginals
    samples: int
    size: int
    dtype: torch.dtype
    device: torch.device

    def select(self: _Variables, columns: Tensor) -> _Variables:
        """
        The same samples of some of the variables, without ranking or scaling anew.

        An estimator gives the same for them as for all, and of that the columns. What
        it keeps with samples, as :class:`~captum_nif.MINE` does its networks, it keeps
        with the result, which is to be kept, too, where it is used again.

        Args:

            columns (Tensor): Indices of variables, [m], int64, in any order.

        Returns:

            **Variables**: those of m variables.

        Raises:

            TypeError: If ``columns`` is not a vector of int64.
            IndexError: If an index is out of range.

        Examples::

            >>> import torch
            >>> from captum_nif import MixedKSG
            >>> ksg = MixedKSG(k=3)
            >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
            >>> y = ksg.prepare(x)
            >>> columns = torch.tensor([3, 0])
            >>> torch.equal(ksg.mi(y, y.select(columns)), ksg.mi(y, y)[:, columns])
            True
        """
        if columns.dtype != torch.int64 or columns.dim() != 1:
            raise TypeError(
                "columns must be a vector of int64, but is of "
                f"{columns.dtype} and shape {list(columns.shape)}."
            )
        columns = columns.to(self.device)
        selected = copy.copy(self)
        selected.size = len(columns)
        selected._keep(columns)
        return selected

    @abstractmethod
    def _keep(self, columns: Tensor) -> None:
        """Forget all other variables; ``size`` is up to date."""

    @abstractmethod
    def leave_one_out(self) -> QueryPoints:
        """Each sample as a point among the other N - 1."""

    @abstractmethod
    def around(self, query: Tensor) -> QueryPoints:
        """Each row of ``query``, [S, size], as a point among the N samples."""


def prepare_variables(x: Tensor, marginals: Marginals) -> Variables:
    """Put samples [N, n] of floating point on a scale, once for all queries."""
    if marginals == "normal":
        return RankedVariables(x)
    return ScaledVariables(x, marginals)


# --------------------------------------------------------------------- normal scores


class RankedVariables(Variables):
    """Variables on the scale of normal scores, known by their ranks.

    Attributes:
        ordered (Tensor): Each variable's values in ascending order, [size, N]: what a
            query is ranked among.
        ranks (Tensor): Twice the mean rank of every sample, [N, size], int16 or int32.
        untied (Tensor): Whether all samples of a variable differ, [size].
    """

    marginals: Marginals = "normal"

    def __init__(self, x: Tensor) -> None:
        self.samples, self.size = x.shape
        self.dtype, self.device = x.dtype, x.device
        self.ordered, self.ranks, self.untied = ranked(_widened(x))

    def _keep(self, columns: Tensor) -> None:
        self.ordered, self.untied = self.ordered[columns], self.untied[columns]
        self.ranks = self.ranks[:, columns].contiguous()

    def leave_one_out(self) -> QueryPoints:
        """Each sample, ranked among all N, as a point among the other N - 1."""
        return RankedSamples(self)

    def around(self, query: Tensor) -> QueryPoints:
        """Each query, ranked as sample N + 1, as a point among the N samples."""
        return RankedQueries(self, query)

    def ranks_of(self, query: Tensor) -> Tensor:
        """Twice the mean rank that each query takes as sample N + 1, [S, size]."""
        return ranked_among(self.ordered, _widened(query.to(self.dtype)))


class RankedSamples(QueryPoints):
    """Samples among the others, on the scale of normal scores."""

    roundoff = 0.0

    def __init__(self, variables: RankedVariables) -> None:
        self.count, self.size = variables.samples, variables.size
        self.references, self.device = variables.samples - 1, variables.device
        self.ranks = variables.ranks

    @cached_property
    def _scores(self) -> Tensor:
        return normal_scores(self.count).to(self.device)[self.ranks.int()]

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Distances between samples, by their scores among all N, int32."""
        scores = self._scores[:, columns].t()
        distances = (scores - self._scores[rows, columns][:, :, None]).abs_()
        return _out_of_own_reach(distances, rows)

    def magnitudes(self, rows: slice, columns: slice) -> Tensor:
        """Absolute scores, int32."""
        return self._scores[rows, columns].abs()


class RankedQueries(QueryPoints):
    """Queries among the samples, on the scale of normal scores of N + 1."""

    roundoff = 0.0

    def __init__(self, variables: RankedVariables, query: Tensor) -> None:
        self.count, self.size = query.shape
        self.references, self.device = variables.samples, variables.device
        self.ranks, self.untied = variables.ranks, variables.untied
        self.query_ranks = variables.ranks_of(query)

    @cached_property
    def _table(self) -> Tensor:
        return normal_scores(self.references + 1).to(self.device)

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Distances from queries, by scores among N + 1, int32."""
        query = self.query_ranks[rows, columns][:, :, None]
        ranks = self.ranks[:, columns].t().int()
        # The query pushes samples above it up by one rank and those equal to it, whose
        # doubled mean rank was one less than its own, by half a rank.
        ranks = ranks + 2 * (ranks >= query) + (ranks == query - 1).int()
        return (self._table[ranks] - self._table[query]).abs_()

    def magnitudes(self, rows: slice, columns: slice) -> Tensor:
        """Absolute scores, int32."""
        return self._table[self.query_ranks[rows, columns]].abs()


# ------------------------------------------------------------- standard and raw values


def standard_deviation(values: Tensor) -> Tensor:
    """Standard deviation over the last dimension, 1 where there is none, float64.

    The same values give the same bits in whatever order and layout they come.
    """
    low, high = values.aminmax(dim=-1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    fractions = (values - low) / span
    mean = _mean_in_any_order(fractions)[..., None]
    deviation = _mean_in_any_order((fractions - mean).square()).sqrt_()
    deviation = deviation * span.squeeze(-1)
    return torch.where(deviation > 0, deviation, 1.0)


def _mean_in_any_order(fractions: Tensor) -> Tensor:
    """Mean over the last dimension of numbers in [0, 1], in 62-bit fixed point.

    Sums of integers, unlike those of floats, do not depend on their order.
    """
    scaled = fractions * _HALF_WORD
    high = scaled.floor()
    low = ((scaled - high) * _HALF_WORD).long().sum(-1).double()
    total = high.long().sum(-1).double() + low / _HALF_WORD
    return total / (fractions.shape[-1] * _HALF_WORD)


class ScaledVariables(Variables):
    """Variables on the scale of their own values, divided by their deviation or not.

    Attributes:
        values (Tensor): The samples, [N, size].
    """

    def __init__(self, x: Tensor, marginals: Marginals) -> None:
        self.marginals = marginals
        self.samples, self.size = x.shape
        self.dtype, self.device = x.dtype, x.device
        self.values = _widened(x)

    def _keep(self, columns: Tensor) -> None:
        self.values = self.values[:, columns].contiguous()
        self.__dict__.pop("bounds", None)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the largest value of each variable, float64, [size] each."""
        low, high = self.values.aminmax(dim=0)
        return low.double(), high.double()

    @property
    def precision(self) -> torch.dtype:
        """The dtype to whose rounding values are known.

        Half precision is coarse rather than uncertain: its values are taken as exact.
        """
        is_half = self.dtype.itemsize < 4
        return torch.float64 if is_half else self.dtype

    def leave_one_out(self) -> QueryPoints:
        """Each sample, on the scale of all N, as a point among the other N - 1."""
        return ScaledPoints(self, None)

    def around(self, query: Tensor) -> QueryPoints:
        """Each query, on the scale of all N + 1, as a point among the N samples."""
        return ScaledPoints(self, _widened(query.to(self.dtype)))


class ScaledPoints(QueryPoints):
    """Samples among the others (``query`` None), or queries among the samples.

    Attributes:
        values (Tensor): The samples, [N, size].
        points (Tensor): The points, [count, size].
        are_samples (bool): Whether the points are the samples.
    """

    def __init__(self, variables: ScaledVariables, query: Tensor | None) -> None:
        self.roundoff = _ROUNDINGS * torch.finfo(variables.precision).eps
        self.values = variables.values
        self.points = self.values if query is None else query
        self.are_samples = query is None
        self.count, self.size = self.points.shape
        self.references = variables.samples - self.are_samples
        self.device = variables.device
        # One for all samples; one per query, which is part of its own deviation.
        self._scale = torch.ones_like(self.points[: 1 if query is None else None])
        self._scale = self._scale.double()
        if variables.marginals == "standard":
            self._fill_scale(query)

    def _fill_scale(self, query: Tensor | None) -> None:
        rows, _ = self._scale.shape
        width = block_length(32 * max(1, rows) * (self.references + 1))
        for columns in blocks(self.size, width):
            values = self.values[:, columns].t().double()
            if query is not None:
                own = query[:, columns].double()[:, :, None]
                values = torch.cat([values.expand(rows, -1, -1), own], dim=-1)
            self._scale[:, columns] = standard_deviation(values)

    def scale_of(self, rows: slice, columns: slice) -> Tensor:
        """What distances from points are divided by; one row for all samples."""
        return self._scale[slice(None) if self.are_samples else rows, columns]

    def distances(self, rows: slice, columns: slice) -> Tensor:
        """Distances of values from points, on their scale, float64."""
        samples = self.values[:, columns].t().double()
        points = self.points[rows, columns].double()[:, :, None]
        distances = (
            (samples - points).abs_().div_(self.scale_of(rows, columns)[..., None])
        )
        return _out_of_own_reach(distances, rows) if self.are_samples else distances

    def magnitudes(self, rows: slice, columns: slice) -> Tensor:
        """Absolute values of points, on their scale, float64."""
        points = self.points[rows, columns].double()
        return points.abs().div_(self.scale_of(rows, columns))


# ------------------------------------------------------------------------------ shared


def _widened(x: Tensor) -> Tensor:
    """Half precision as float32, which every operation here supports."""
    return x.float() if x.element_size() < 4 else x


def _out_of_own_reach(distances: Tensor, rows: slice) -> Tensor:
    """Put each of the samples ``rows`` out of its own reach, in place."""
    exact = distances.dtype == torch.int32
    distances.diagonal(rows.start, dim1=0, dim2=2).fill_(_FAR if exact else torch.inf)
    return distances
