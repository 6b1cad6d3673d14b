"""What the rest of the package needs from an estimator, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

Progress = Callable[[int], object]
"""Called, as work goes on, with the number of single-sample values computed since the
last call; ``tqdm.update`` for example. N a b in all for N samples (or queries) and
a x b pairs."""


@runtime_checkable
class Prepared(Protocol):
    """Samples of some variables, made ready once by an estimator's ``prepare``.

    Opaque: pass it, in place of the tensor, to the estimator that made it.
    """

    @property
    def samples(self) -> int:
        """Number of samples N."""

    @property
    def size(self) -> int:
        """Number of variables."""

    def select(self, columns: Tensor) -> Prepared:
        """The same samples of some of the variables, by their indices.

        What estimators find out about a pair is kept with the result: keep it, too,
        where it is used again.
        """


@runtime_checkable
class PMIEstimator(Protocol):
    """
    Estimates pointwise mutual information (PMI) for all pairs of two sets of variables.

    Anything that has these members is an estimator for the rest of the package. What
    they promise stands at :class:`~captum_nif.Estimator`, the base class of
    those of this package, which may be derived from but need not be.
    """

    @property
    def min_samples(self) -> int:
        """Fewest samples of a population that it can estimate from."""

    def prepare(self, x: Tensor) -> Prepared:
        """Do once what every later call with these samples would repeat."""

    def mi(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """Mutual information of every pair, [a, b]."""

    def pmi(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """PMI of samples against the others, [N, a, b], or of queries, [S, a, b]."""

    def joint(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """PMI of the vector x with each variable of y, [N, b] or [S, b]."""
