r"""
Gaussian copula: mutual information from the correlation of normal scores alone.

After Ince, Giordano, Kayser, Rousselet, Gross and Schyns (*A statistical framework for
neuroimaging data analysis based on mutual information estimated via a Gaussian copula*,
Human Brain Mapping 38, 2017), pointwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

from captum_nif._blocks import blocks
from captum_nif.estimators.base import Prepared, Progress
from captum_nif.estimators.marginals import Variables
from captum_nif.estimators.moments import Cloud, Fit, correlation
from captum_nif.estimators.samples import (
    Pair,
    check_count,
    check_vector,
    checked_query,
    prepared,
    prepared_pair,
)

GaussianMarginals = Literal["normal", "standard"]

_BUDGET = 1 << 20
"""Elements of one array held at a time: little enough for caches of processors."""

_SIDE = 1024
"""Variables of each set in a block, where the budget allows."""

_SINGULAR = 1e-9
"""Share of the sum of a correlation matrix's eigenvalues that is 0 but for rounding."""


@dataclass(frozen=True)
class GaussianCopula:
    r"""
    Estimator of pointwise mutual information (PMI) of a Gaussian of normal scores.

    With r the correlation of two variables' normal scores over the N samples, and u and
    v the standardised scores of one of them,

    .. math::

        \mathrm{PMI} = -\tfrac12 \log(1 - r^2)
        + \frac{r u v - r^2 (u^2 + v^2) / 2}{1 - r^2} - c_N

    is the logarithm of the bivariate normal's density over the product of its margins.
    Its mean over samples is exactly
    :math:`I = -\tfrac12 \log(1 - r^2) - c_N`. The correction

    .. math:: c_N = \tfrac12 \left[ \psi(\tfrac{N-1}{2}) - \psi(\tfrac{N-2}{2}) \right]

    with :math:`\psi` the digamma function removes the bias of I, whatever the true
    correlation is, if the scores are Gaussian (Misra, Singh and Demchuk, *Estimation of
    the entropy of a multivariate normal distribution*, J. Multivariate Anal. 92, 2005;
    used by Ince et al.); independent variables have an I of 0 on average and
    :math:`-c_N`, about -1/(2N), at least. A constant variable has a PMI of exactly 0.

    This sees monotone dependence only: :math:`y = x^2` of a symmetric x has an r of 0,
    and so has many a pair that :class:`~captum_nif.MixedKSG` finds. Of all
    continuous pairs with these margins and this r, the Gaussian has the least mutual
    information, so I is a lower bound in spirit. Single values are extrapolated by the
    model, which makes them smooth where the pair is Gaussian and wrong where not. In
    return it takes a single product of matrices for all pairs.

    I is at most :math:`\log N`, the most that N samples can show: r is drawn to
    :math:`1 - r^2 \ge N^{-2}`.

    Every sample is part of the correlation that explains it, and so is a query, which
    counts as sample N + 1. Results are float64, on the device of x, and, except for
    :meth:`joint`, the same to the last bit for a pair alone or among many.

    Args:

        marginals (str, optional): ``"normal"`` (normal scores; invariant to increasing
            maps of any variable) or ``"standard"`` (the values themselves, for a
            bivariate normal rather than a copula; sensitive to outliers).
            Default: ``"normal"``

    Raises:

        ValueError: If the name of the marginals is unknown.

    Examples::

        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 2, generator=generator)
        >>> y = torch.stack([3 * x[:, 0] + 4 * x[:, 1], torch.ones(1000)], dim=1)
        >>> copula = GaussianCopula()
        >>> copula.mi(x, y)  # 0.223 and 0.511 in truth; a constant tells nothing
        tensor([[0.2161, 0.0000],
                [0.5356, 0.0000]], dtype=torch.float64)
        >>> copula.pmi(x, y, query=(x[:3], y[:3])).shape
        torch.Size([3, 2, 2])
    """

    marginals: GaussianMarginals = "normal"

    def __post_init__(self) -> None:
        if self.marginals not in get_args(GaussianMarginals):
            choices = ", ".join(map(repr, get_args(GaussianMarginals)))
            raise ValueError(
                f"marginals must be one of {choices}, not {self.marginals!r}."
            )

    @property
    def min_samples(self) -> int:
        """Three, which the correction for bias needs."""
        return 3

    def prepare(self, x: Tensor) -> Variables:
        r"""
        Rank samples once, for use in place of x or y in all other methods.

        Args:

            x (Tensor): N samples of n variables, [N, n], of floating point. Half
                precision is widened. Values that are equal tie: -0.0 equals 0.0.

        Returns:

            **Variables**: opaque; for estimators with these marginals.

        Raises:

            TypeError: If x is not a dense tensor of floating point.
            ValueError: If x is not [N, n], or holds NaN or infinity.

        Examples::

            >>> copula = GaussianCopula()
            >>> x = copula.prepare(torch.arange(12.0).view(6, 2))
            >>> copula.mi(x, x).shape
            torch.Size([2, 2])
        """
        return prepared("x", x, self.marginals)

    def mi(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        r"""
        Mutual information of every pair of variables, in nats.

        It is the mean over samples of :meth:`pmi`, by its closed form.

        Args:

            x (Tensor or Variables): N samples of a variables, [N, a].
            y (Tensor or Variables): The same N samples of b variables, [N, b].
            progress (callable, optional): Called after every block of work with the
                number of single-sample values that it took; N a b in all. Fits
                ``tqdm.update``. Default: None

        Returns:

            **Tensor** of shape [a, b], float64.

        Raises:

            TypeError: See :meth:`prepare`; or if either was prepared by another kind of
                estimator.
            ValueError: See :meth:`prepare`; or if x and y differ in samples or device,
                were prepared for other marginals, or have fewer than 3 samples.
        """
        first, second = (Cloud(each) for each in self._pair(x, y))
        self._check(first)
        information = _zeros(first.size, second.size, like=first)
        everyone = slice(0, first.count)
        side = max(1, min(_SIDE, _BUDGET // first.points))
        for columns, others in product(
            blocks(first.size, side), blocks(second.size, side)
        ):
            r, known = correlation(
                first.fit(everyone, columns), second.fit(everyone, others)
            )
            block = gaussian_information(r, first.points)
            information[columns, others] = block.masked_fill(~known, 0.0)[0]
            if progress is not None:
                progress(first.count * block.numel())
        return information

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

        A query is explained against all N samples, as sample N + 1: it is ranked and
        correlated together with them. Hence ``pmi(x, y)[i]`` equals, to the last bit,
        ``pmi(x_without_i, y_without_i, query=(x_i, y_i))[0]``.

        Args:

            x (Tensor or Variables): N samples of a variables, [N, a].
            y (Tensor or Variables): The same N samples of b variables, [N, b].
            query (tuple of Tensor, optional): S queries, ([S, a], [S, b]). They are
                converted to the dtype of the samples, so that equal values tie.
                Default: None
            progress (callable, optional): See :meth:`mi`. Default: None

        Returns:

            **Tensor** of shape [N, a, b], or [S, a, b] with queries, float64.

        Raises:

            TypeError: See :meth:`mi`; or if ``query`` is not a pair of dense tensors of
                floating point.
            ValueError: See :meth:`mi`; or if queries do not match the samples in shape
                or device, or hold NaN or infinity.
        """
        first, second = self._clouds(x, y, query)
        pmi = _zeros(first.count, first.size, second.size, like=first)
        side, height = _block(first, second)
        for rows in blocks(first.count, height):
            for columns, others in product(
                blocks(first.size, side), blocks(second.size, side)
            ):
                block = _pmi(first.fit(rows, columns), second.fit(rows, others))
                pmi[rows, columns, others] = block
                if progress is not None:
                    progress(block.numel())
        return pmi

    def joint(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Tensor:
        r"""
        PMI of the whole vector x with each variable of y, in nats.

        With R the multiple correlation of y with x, :math:`\hat v` the linear
        prediction of its standardised score v, and d the rank of the correlation matrix
        of x (components that others determine add nothing),

        .. math::

            \mathrm{PMI} = -\tfrac12 \log(1 - R^2) + \tfrac12 v^2
            - \frac{(v - \hat v)^2}{2 (1 - R^2)}
            - \tfrac12 \left[ \psi(\tfrac{N-1}{2}) - \psi(\tfrac{N-1-d}{2}) \right].

        The mean does not depend on d for independent variables, but its standard
        deviation grows as :math:`\sqrt{d / (2 N (N - d))}`.

        Args:

            x (Tensor or Variables): N samples of a vector of a >= 1 components, [N, a].
            y (Tensor or Variables): The same N samples of b variables, [N, b].
            query (tuple of Tensor, optional): S queries, ([S, a], [S, b]); see
                :meth:`pmi`. Default: None
            progress (callable, optional): See :meth:`mi`; the vector counts as one
                variable. Default: None

        Returns:

            **Tensor** of shape [N, b], or [S, b] with queries, float64.

        Raises:

            TypeError: See :meth:`pmi`.
            ValueError: See :meth:`pmi`; or if the vector has no components, or fewer
                samples than the components that vary, plus 2: any y could be predicted.
        """
        first, second = self._clouds(x, y, query)
        check_vector(first.size)
        pmi = _zeros(first.count, second.size, like=first)
        for rows in blocks(first.count, first.count if first.one else 1):
            vector = first.fit(rows, slice(0, first.size))
            pmi[rows] = _pmi_of_vector(vector, second.fit(rows, slice(0, second.size)))
            if progress is not None:
                progress(pmi[rows].numel())
        return pmi

    # ------------------------------------------------------------------------ inside

    def _clouds(
        self,
        x: Tensor | Prepared,
        y: Tensor | Prepared,
        query: tuple[Tensor, Tensor] | None,
    ) -> tuple[Cloud, Cloud]:
        pair = self._pair(x, y)
        queries = (None, None) if query is None else checked_query(query, pair)
        first, second = (Cloud(*each) for each in zip(pair, queries, strict=True))
        self._check(first)
        return first, second

    def _check(self, cloud: Cloud) -> None:
        check_count(cloud.points, self.min_samples, type(self).__name__)

    def _pair(self, x: Tensor | Prepared, y: Tensor | Prepared) -> Pair:
        return prepared_pair(x, y, self.marginals, type(self).__name__)


def gaussian_information(r: Tensor, samples: int) -> Tensor:
    """Mutual information for correlations of scores over N samples, in nats.

    Less its bias: see :class:`GaussianCopula`.
    """
    return _information(r.square(), samples) - _bias(samples, 1)


def _pmi(x: Fit, y: Fit) -> Tensor:
    """PMI of the points explained for all pairs, [S, a, b] or [P, a, b]."""
    r, known = correlation(x, y)
    u, v = x.scores[:, :, None], y.scores[:, None]
    agreement = r * u * v - r.square() * (u.square() + v.square()) / 2
    mean = gaussian_information(r, x.points)
    pmi = mean + agreement / _unexplained(r.square(), x.points)
    return pmi.masked_fill_(~known, 0.0)


def _pmi_of_vector(x: Fit, y: Fit) -> Tensor:
    """PMI of the points explained for one vector in one cloud, [1, b] or [P, b]."""
    x = Fit(*(part[..., x.spread[0] > 0] for part in x))
    components = x.values.shape[2]
    if x.points < components + 2:
        raise ValueError(
            f"x has {components} components that vary and {x.points} samples, queries "
            f"included, which predict any y; give at least {components + 2} samples, "
            "or group the components."
        )
    eigenvalues, vectors = torch.linalg.eigh(correlation(x, x)[0][0])
    kept = eigenvalues > _SINGULAR * components
    rank = int(kept.sum())
    r = correlation(x, y)[0][0]
    basis = vectors[:, kept]
    weights = (basis / eigenvalues[kept]) @ (basis.T @ r)
    explained = (r * weights).sum(0).clamp(0, 1)
    residual = y.scores - x.scores @ weights
    agreement = (y.scores.square() * (1 - explained) - residual.square()) / 2
    mean = _information(explained, x.points) - _bias(x.points, rank)
    pmi = mean + agreement / _unexplained(explained, x.points)
    return torch.where(y.spread > 0, pmi, 0.0)


def _unexplained(share: Tensor, points: int) -> Tensor:
    """1 - r^2, and N^-2 at least."""
    return (1 - share).clamp(min=1 / points**2)


def _information(share: Tensor, points: int) -> Tensor:
    """Mutual information for r^2, in nats, before it is corrected for bias."""
    return _unexplained(share, points).log() / -2


def _bias(points: int, components: int) -> float:
    """What independent Gaussian variables show on average, in nats."""
    freedom = torch.tensor([points - 1, points - 1 - components], dtype=torch.float64)
    both = torch.digamma(freedom / 2)
    return float(both[0] - both[1]) / 2


def _zeros(*shape: int, like: Cloud) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=like.device)


def _block(x: Cloud, y: Cloud) -> tuple[int, int]:
    """Variables of each set, and rows, that the budget allows at a time."""
    if x.one:
        return max(1, math.isqrt(_BUDGET // x.points)), x.count
    side = max(1, min(_SIDE, _BUDGET // x.points))
    width = max(1, min(side, max(x.size, y.size)))
    return side, max(1, _BUDGET // (width * max(width, x.points)))
