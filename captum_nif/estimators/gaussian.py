r"""
Gaussian copula: mutual information from the correlation of normal scores alone.

After Ince, Giordano, Kayser, Rousselet, Gross and Schyns (*A statistical framework for
neuroimaging data analysis based on mutual information estimated via a Gaussian copula*,
Human Brain Mapping 38, 2017), pointwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

from captum_nif._blocks import block_length, block_side, blocks
from captum_nif.estimators.base import Estimator, Points
from captum_nif.estimators.marginals import Marginals, Variables
from captum_nif.estimators.moments import Moments, Populations, correlation
from captum_nif.estimators.protocol import Progress

GaussianMarginals = Literal["normal", "standard"]

_BYTES = 32
"""Of temporary tensors for each point of a variable, or pair of variables."""

_SIDE = 1024
"""Variables of each set in a block, where memory allows."""

_SINGULAR = 1e-9
"""Share of the sum of a correlation matrix's eigenvalues that is 0 but for rounding."""


@dataclass(frozen=True)
class GaussianCopula(Estimator):
    r"""
    Estimator of pointwise mutual information (PMI) of a Gaussian of normal scores.

    With r the correlation of two variables' normal scores over the N samples, and u and
    v the standardized scores of one of them,

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
    :math:`-c_N`, about -1/(2N), at least.

    This sees monotone dependence only: :math:`y = x^2` of a symmetric x has an r of 0,
    and so has many a pair that :class:`~captum_nif.MixedKSG` detects. Of all
    continuous pairs with these margins and this r, the Gaussian has the least mutual
    information, so I is a lower bound in spirit. Single values are extrapolated by the
    model, which makes them smooth where the pair is Gaussian and wrong where not. In
    return it takes a single product of matrices for all pairs.

    I is at most :math:`\log N`, the most that N samples can show: r is drawn to
    :math:`1 - r^2 \ge N^{-2}`.

    Every sample is part of the correlation that explains it, and so is a query, which
    counts as sample N + 1. Results, except for the joint PMI of a vector, are the same
    to the last bit for a pair alone or among many.

    For a vector x, with R the multiple correlation of y with x, :math:`\hat v` the
    linear prediction of the standardized score v of y, and d the rank of the
    correlation matrix of x (components that others determine add nothing), the joint
    PMI is

    .. math::

        -\tfrac12 \log(1 - R^2) + \tfrac12 v^2
        - \frac{(v - \hat v)^2}{2 (1 - R^2)}
        - \tfrac12 \left[ \psi(\tfrac{N-1}{2}) - \psi(\tfrac{N-1-d}{2}) \right].

    Its mean does not depend on d for independent variables, but its standard deviation
    grows as :math:`\sqrt{d / (2 N (N - d))}`. It needs two more samples than the
    components that vary: fewer could predict any y.

    Args:

        marginals (str, optional): ``"normal"`` (normal scores; invariant to monotone
            maps of any variable) or ``"standard"`` (the values themselves, for a
            bivariate normal rather than a copula; sensitive to outliers).
            Default: ``"normal"``

    Raises:

        ValueError: If the name of the marginals is unknown.

    Examples::

        >>> import torch
        >>> from captum_nif import GaussianCopula
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

    @property
    def _marginals(self) -> Marginals:
        return self.marginals

    def _mi(self, x: Variables, y: Variables, progress: Progress | None) -> Tensor:
        first, second = Populations(Points(x, None)), Populations(Points(y, None))
        information = _zeros(x.size, y.size, like=first)
        all_rows = slice(0, first.count)
        side = block_length(_BYTES * first.points, _SIDE, in_cache=True)
        for columns_x, columns_y in product(blocks(x.size, side), blocks(y.size, side)):
            r, known = correlation(
                first.moments(all_rows, columns_x), second.moments(all_rows, columns_y)
            )
            block = gaussian_information(r, first.points)
            information[columns_x, columns_y] = block.masked_fill(~known, 0.0)[0]
            if progress is not None:
                progress(first.count * block.numel())
        return information

    def _pmi(self, x: Points, y: Points, progress: Progress | None) -> Tensor:
        first, second = Populations(x), Populations(y)
        pmi = _zeros(first.count, first.size, second.size, like=first)
        side, height = _block(first, second)
        for rows in blocks(first.count, height):
            for columns_x, columns_y in product(
                blocks(first.size, side), blocks(second.size, side)
            ):
                block = _pmi_of_pairs(
                    first.moments(rows, columns_x), second.moments(rows, columns_y)
                )
                pmi[rows, columns_x, columns_y] = block
                if progress is not None:
                    progress(block.numel())
        return pmi

    def _joint(self, x: Points, y: Points, progress: Progress | None) -> Tensor:
        first, second = Populations(x), Populations(y)
        pmi = _zeros(first.count, second.size, like=first)
        for rows in blocks(first.count, first.count if first.one else 1):
            vector = first.moments(rows, slice(0, first.size))
            pmi[rows] = _pmi_of_vector(
                vector, second.moments(rows, slice(0, second.size))
            )
            if progress is not None:
                progress(pmi[rows].numel())
        return pmi


def gaussian_information(r: Tensor, samples: int) -> Tensor:
    """Mutual information for correlations of scores over N samples, in nats.

    Less its bias: see :class:`GaussianCopula`.
    """
    return _information(r.square(), samples) - _bias(samples, 1)


def _pmi_of_pairs(x: Moments, y: Moments) -> Tensor:
    """PMI of the points explained for all pairs, [S, a, b] or [P, a, b]."""
    r, known = correlation(x, y)
    u, v = x.scores[:, :, None], y.scores[:, None]
    agreement = r * u * v - r.square() * (u.square() + v.square()) / 2
    mean = gaussian_information(r, x.points)
    pmi = mean + agreement / _unexplained(r.square(), x.points)
    return pmi.masked_fill_(~known, 0.0)


def _pmi_of_vector(x: Moments, y: Moments) -> Tensor:
    """PMI of the points of one population for one vector, [1, b] or [P, b]."""
    x = Moments(*(part[..., x.spread[0] > 0] for part in x))
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
    freedom = torch.tensor(
        [points - 1, points - 1 - components], dtype=torch.float64, device="cpu"
    )
    both = torch.digamma(freedom / 2)
    return float(both[0] - both[1]) / 2


def _zeros(*shape: int, like: Populations) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=like.device)


def _block(x: Populations, y: Populations) -> tuple[int, int]:
    """Variables of each set, and rows, in a block."""
    if x.one:
        return block_side(_BYTES * x.points, in_cache=True), max(x.count, 1)
    side = block_length(_BYTES * x.points, _SIDE, in_cache=True)
    width = max(1, min(side, max(x.size, y.size)))
    each = _BYTES * width * max(width, x.points)
    return side, block_length(each, in_cache=True)
