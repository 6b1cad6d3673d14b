"""What the rest of the package asks of an estimator of pointwise mutual information."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

Progress = Callable[[int], object]
"""Told, as work goes on, how many single-sample values it took since; ``tqdm.update``
for example. N a b in all for N samples (or queries) and a x b pairs."""


@runtime_checkable
class Prepared(Protocol):
    """Samples of some variables, made ready once by an estimator's ``prepare``.

    Opaque: hand it back to the estimator that made it, in place of the tensor.
    """

    @property
    def samples(self) -> int:
        """Number of samples N."""

    @property
    def size(self) -> int:
        """Number of variables."""


@runtime_checkable
class PMIEstimator(Protocol):
    r"""
    Estimates pointwise mutual information (PMI) for all pairs of two sets of variables.

    With x of shape [N, a] and y of shape [N, b] holding N samples of a and b variables,

    .. math:: \mathrm{PMI}(x_i, y_i) = \log \frac{p(x_i, y_i)}{p(x_i)\, p(y_i)}

    is positive where a pair of values occurs together more often than chance, negative
    where it occurs less often; its mean over samples is the mutual information. All
    results are in nats, in float64, on the device of x. Wherever a tensor of samples is
    taken, the result of :meth:`prepare` may be passed instead.
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
        """Mutual information of every pair, [a, b], without ever holding [N, a, b]."""

    def pmi(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """PMI of each sample against the others, [N, a, b], or of queries, [S, a, b].

        A query ([S, a], [S, b]) is explained against all N samples, each of its S rows
        on its own.
        """

    def joint(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        """PMI of the whole vector x with each variable of y, [N, b] or [S, b]."""
