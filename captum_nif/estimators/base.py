"""The base class of the estimators, which carries what all of them promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from captum_nif.estimators.marginals import Marginals, Variables
from captum_nif.estimators.protocol import Prepared, Progress
from captum_nif.estimators.validation import (
    check_vector,
    checked_query,
    prepared,
    prepared_pair,
)


class Points(NamedTuple):
    """Points whose PMI is wanted, along one set of variables.

    Attributes:
        samples (Variables): The samples that they are compared with.
        query (Tensor or None): Queries, [S, variables], in the dtype of the samples;
            None if the points are the samples themselves, each against the others.
    """

    samples: Variables
    query: Tensor | None


class Estimator(ABC):
    r"""
    Estimates pointwise mutual information (PMI) for all pairs of two sets of variables.

    With x of shape [N, a] and y of shape [N, b] holding N samples of a and b variables,

    .. math:: \mathrm{PMI}(x_i, y_i) = \log \frac{p(x_i, y_i)}{p(x_i)\, p(y_i)}

    is positive where a pair of values occurs together more often than chance, negative
    where it occurs less often; its mean over samples is the mutual information.

    Results are in nats, in float64, on the device of x. They may be negative, also
    those of mutual information, whose estimates scatter around 0 for independent
    variables: they are not clipped, so that noise averages out. A constant variable has
    a PMI of exactly 0, unless a class says otherwise. Estimation draws nothing from
    global random generators, and gradients do not flow through it.

    Samples are dense tensors of floating point. Half precision means its values
    widened, -0.0 equals 0.0, and equal values tie. Wherever a tensor of samples is
    taken, the result of :meth:`prepare` may be passed instead, which saves time where
    the same samples are used again.

    A subclass names the scale that its samples are put on, how few samples it can do
    with, and implements ``_mi``, ``_pmi`` and ``_joint``, which see checked input only.
    Whatever has the same public members is as good an estimator for the rest of the
    package: see :class:`~captum_nif.PMIEstimator`.
    """

    @property
    @abstractmethod
    def min_samples(self) -> int:
        """Fewest samples of a population, queries included, that it can work with."""

    @property
    @abstractmethod
    def _marginals(self) -> Marginals:
        """The scale that samples are put on."""

    @abstractmethod
    def _mi(self, x: Variables, y: Variables, progress: Progress | None) -> Tensor:
        """Mutual information, [a, b]."""

    @abstractmethod
    def _pmi(self, x: Points, y: Points, progress: Progress | None) -> Tensor:
        """PMI of the points, [points, a, b]."""

    @abstractmethod
    def _joint(self, x: Points, y: Points, progress: Progress | None) -> Tensor:
        """PMI of the vector x with each variable of y, [points, b]."""

    def prepare(self, x: Tensor) -> Variables:
        r"""
        Rank or scale samples once, for use in place of x or y in all other methods.

        Args:

            x (Tensor): N samples of n variables, [N, n].

        Returns:

            **Variables**: opaque; for estimators of this kind, on this scale.

        Raises:

            TypeError: If x is not a dense tensor of floating point.
            ValueError: If x is not [N, n], or holds NaN or infinity.

        Examples::

            >>> import torch
            >>> from captum_nif import MixedKSG
            >>> x = MixedKSG().prepare(torch.arange(12.0).view(6, 2))
            >>> x.samples, x.size
            (6, 2)
            >>> MixedKSG(k=1).mi(x, x).shape
            torch.Size([2, 2])
        """
        return prepared("x", x, self._marginals)

    def mi(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        r"""
        Mutual information of every pair of variables, in nats.

        It is the mean over samples of :meth:`pmi`, whose [N, a, b] values are never
        held.

        Args:

            x (Tensor or Variables): N samples of a variables, [N, a].
            y (Tensor or Variables): The same N samples of b variables, [N, b].
            progress (callable, optional): Called after every block of work with the
                number of single-sample values that it took; N a b in all. Fits
                ``tqdm.update``.
                Default: None

        Returns:

            **Tensor** of shape [a, b], float64.

        Raises:

            TypeError: See :meth:`prepare`; or if either was prepared by another kind of
                estimator.
            ValueError: See :meth:`prepare`; or if x and y differ in samples or device,
                were prepared for another scale, or have fewer samples than
                ``min_samples``.
        """
        first, second = self._pair(x, y)
        self._check_count(first.samples, queries=False)
        return self._mi(first, second, progress)

    def pmi(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        r"""
        Pointwise mutual information of every sample or query for every pair, in nats.

        Without ``query``, each sample is explained against the N - 1 others. With it,
        each query is explained by itself against all N samples, as sample N + 1: it is
        ranked or scaled together with them. Hence ``pmi(x, y)[i]`` equals, to the last
        bit, ``pmi(x_without_i, y_without_i, query=(x_i, y_i))[0]``, unless a class says
        otherwise.

        Args:

            x (Tensor or Variables): N samples of a variables, [N, a].
            y (Tensor or Variables): The same N samples of b variables, [N, b].
            query (tuple of Tensor, optional): S queries, ([S, a], [S, b]). They are
                converted to the dtype of the samples, so that equal values tie.
                Default: None
            progress (callable, optional): See :meth:`mi`.
                Default: None

        Returns:

            **Tensor** of shape [N, a, b], or [S, a, b] with queries, float64.

        Raises:

            TypeError: See :meth:`mi`; or if ``query`` is not a pair of dense tensors of
                floating point.
            ValueError: See :meth:`mi`; or if queries do not match the samples in shape
                or device, or hold NaN or infinity.
        """
        return self._pmi(*self._points(x, y, query), progress)

    def joint(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        r"""
        PMI of the vector x as one variable with each variable of y, in nats.

        Args:

            x (Tensor or Variables): N samples of a vector of a >= 1 components, [N, a].
            y (Tensor or Variables): The same N samples of b variables, [N, b].
            query (tuple of Tensor, optional): S queries, ([S, a], [S, b]); see
                :meth:`pmi`.
                Default: None
            progress (callable, optional): See :meth:`mi`; the vector counts as one
                variable.
                Default: None

        Returns:

            **Tensor** of shape [N, b], or [S, b] with queries, float64.

        Raises:

            TypeError: See :meth:`pmi`.
            ValueError: See :meth:`pmi`; or if the vector has no components.
        """
        first, second = self._points(x, y, query)
        check_vector(first.samples.size)
        return self._joint(first, second, progress)

    def _points(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None,
    ) -> tuple[Points, Points]:
        pair = self._pair(x, y)
        queries = (None, None) if query is None else checked_query(query, pair)
        self._check_count(pair[0].samples, queries=query is not None)
        first, second = map(Points, pair, queries)
        return first, second

    def _pair(
        self, x: Tensor | Prepared, y: Tensor | Prepared
    ) -> tuple[Variables, Variables]:
        return prepared_pair(x, y, self._marginals, type(self).__name__)

    def _check_count(self, samples: int, queries: bool) -> None:
        """Refuse too few samples, each query counting as one more."""
        points, least = samples + queries, self.min_samples
        if points < least:
            raise ValueError(
                f"{type(self).__name__} compares at least {least} samples, queries "
                f"included, but there are {points}; give more samples."
            )
