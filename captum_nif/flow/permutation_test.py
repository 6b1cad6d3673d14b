r"""p-values of links: how often would independent nodes share as much information?

The mutual information (MI) of independent variables scatters around 0. A link's p-value
is the probability that two independent variables, with the same ties among their
values, reach its MI. It is measured on normal scores, which makes the null distribution
depend on ties alone: on how many samples of a ReLU are 0, say. So variables are sorted
into classes that tie alike, and one table of MI between shuffled variables of two
classes serves all links between them; tables of variables without ties serve all graphs
of as many samples. Averaged over the links between two classes p-values are exact,
however fine the classes.

A table grows with the links that it serves: what is rare among them is then not rare in
it, and :func:`~captum_nif.graph.false_discovery.false_discovery` has most of the small
p-values that it needs without extrapolation. Only beyond the few largest null values
the null distribution is taken to fall off about exponentially.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache

import torch
from torch import Tensor

from captum_nif._blocks import block_length, blocks
from captum_nif._messages import renamed_argument
from captum_nif.estimators.marginals import RankedVariables
from captum_nif.estimators.normal_scores import SCORE_BITS, normal_scores
from captum_nif.estimators.protocol import PMIEstimator, Progress
from captum_nif.estimators.validation import prepared

_PER_LINK = 20
"""Null values for each link that a table serves, within these limits: squares, as a
table is one of shuffled variables."""
_FEWEST, _MOST = 32**2, 128**2

_TAIL = 5
"""The tail of a null table starts at its fifth largest value. Started further in, it
misses the leaps that MI makes where nodes are mostly 0; see
``benchmarks.uncertainty.__main__``."""

_BYTES = 32
"""Of temporary tensors for each value that is sorted."""

TieClass = tuple[int, ...]
_UNTIED: TieClass = ()


@renamed_argument("draws", "n_permutations")
def link_pvalues(
    estimator: PMIEstimator,
    x: Tensor,
    y: Tensor,
    *,
    n_permutations: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    r"""
    p-values of all links between two layers, against independence of their two nodes.

    For every pair of tie classes it estimates the MI of shuffled pairs of variables:
    twenty for each link between the two, but at least 1024 and at most 16,384. It takes
    up to twenty times as long as the links' own MI, and longer in small graphs. Samples
    must be independent of each other; neighboring frames of a film, say, are not, and
    their p-values are too small.

    ``python -m benchmarks.uncertainty`` compares p-values with what they promise.

    Args:
        estimator (PMIEstimator): Of mutual information. It sees normal scores in place
            of the values; one that uses ranks alone, such as ``MixedKSG()``, gives the
            same on both.
        x (Tensor): N samples of the source layer's a nodes, [N, a].
        y (Tensor): The same N samples of the target layer's b nodes, [N, b].
        n_permutations (int, optional): Null values in every table, at least 100. Fewer
            are faster, and detect fewer links that exist: for ``MINE``, which trains
            networks for each, some 1000.
            Default: None (20 for each link, from 1024 to 16,384)
        seed (int, optional): Of the shuffles. No global random state is used.
            Default: 0
        progress (callable, optional): As for the estimator's ``mi``.
            Default: None

    Returns:
        Tensor: p-values in (0, 1], float64, [a, b]; 1 where a node is constant.

    Raises:
        TypeError: If ``n_permutations`` is no int, or samples are refused; see the
            estimator.
        ValueError: If ``n_permutations`` is below 100, or samples are refused.

    Examples::

        >>> from captum_nif import MixedKSG
        >>> generator = torch.Generator("cpu").manual_seed(0)
        >>> x = torch.randn(500, 2, generator=generator)
        >>> y = x[:, :1] + torch.randn(500, 1, generator=generator)
        >>> (link_pvalues(MixedKSG(), x, y) < 0.001).tolist()
        [[True], [False]]
    """
    if n_permutations is not None:
        if isinstance(n_permutations, bool) or not isinstance(n_permutations, int):
            raise TypeError(
                f"n_permutations must be an int or None, got {n_permutations!r}."
            )
        if n_permutations < 100:
            raise ValueError(
                f"n_permutations must be at least 100, got {n_permutations}."
            )
    x, y = _on_scores("x", x), _on_scores("y", y)
    observed = estimator.mi(x, y, progress=progress)
    generator = torch.Generator("cpu").manual_seed(seed)
    sources, targets = tie_classes(x), tie_classes(y)
    shuffled_x, shuffled_y = (
        {
            kind: _shuffled(
                values, columns, _side(len(columns) * most, n_permutations), generator
            )
            for kind, columns in classes.items()
        }
        for values, classes, most in (
            (x, sources, max(map(len, targets.values()), default=0)),
            (y, targets, max(map(len, sources.values()), default=0)),
        )
    )
    pvalues = torch.ones_like(observed, dtype=torch.float64)
    for kind, rows in sources.items():
        for other, columns in targets.items():
            side = _side(len(rows) * len(columns), n_permutations)
            if kind == other == _UNTIED:
                null = _untied_null(estimator, len(x), side, seed).to(x.device)
            else:
                pair = shuffled_x[kind][:, :side], shuffled_y[other][:, :side]
                null = estimator.mi(*pair, progress=progress)
            at = rows[:, None], columns
            pvalues[at] = upper_tail(null.flatten(), observed[at])
    return pvalues


def tie_classes(x: Tensor) -> dict[TieClass, Tensor]:
    r"""
    Sort variables by how their values tie.

    Within a class the probability that two samples differ varies by a factor of
    :math:`\sqrt 2` at most, and the number of distinct values by 4; variables without
    any ties have a class of their own. Constant variables have none.

    Args:
        x (Tensor): N samples of some variables, [N, a].

    Returns:
        dict of tuple to Tensor: Indices of the variables of each class.

    Examples::

        >>> x = torch.arange(8.0)
        >>> x = torch.stack([x, (x - 3).relu(), (x > 3).float(), 0 * x, -x], dim=1)
        >>> [columns.tolist() for columns in tie_classes(x).values()]
        [[0, 4], [1], [2]]
    """
    samples, size = x.shape
    members: dict[TieClass, list[int]] = {}
    for part in blocks(size, block_length(_BYTES * samples)):
        ordered = x[:, part].t().contiguous().sort(dim=-1).values
        rises = ordered[:, 1:] != ordered[:, :-1]
        run = torch.nn.functional.pad(rises.long().cumsum(-1), (1, 0))
        lengths = torch.zeros_like(run).scatter_add_(-1, run, torch.ones_like(run))
        ties = (lengths * (lengths - 1)).sum(-1).tolist()
        distinct = (run[:, -1] + 1).tolist()
        for column, (tied, values) in enumerate(
            zip(ties, distinct, strict=True), start=part.start
        ):
            if values == 1:
                continue
            kind = _UNTIED
            if tied:
                differ = 1 - tied / (samples * (samples - 1))
                kind = (round(2 * math.log2(differ)), round(math.log2(values) / 2))
            members.setdefault(kind, []).append(column)
    return {
        kind: torch.tensor(columns, device=x.device)
        for kind, columns in members.items()
    }


def upper_tail(null: Tensor, observed: Tensor) -> Tensor:
    r"""
    Probability that another null value reaches a value.

    With n null values, e of which reach the value, it is :math:`(1 + e)/(n + 1)`. The
    tail starts at the fifth largest null value. With m null values above that, whose
    excesses are :math:`t_j`, it gives to a value above it, by t,

    .. math::
        \frac{m + 1}{n + 1} \left(1 + \frac{t}{\sum_j t_j}\right)^{-m}.

    Were the tail exponential this (Lomax) law would be exact, however little a few null
    values tell of the mean excess; for the same reason it is heavy where they are few,
    and forgives mixtures, as of variables that tie alike but not the same. Null values
    *at* the start do not count to m, as the MI of variables that are rarely other than
    0 takes few values, which many null values share. The probability is never taken to
    be less than e/(n + 1).

    Args:
        null (Tensor): Null values, [n].
        observed (Tensor): Values, of any shape.

    Returns:
        Tensor: Probabilities in (0, 1], float64, of the shape of ``observed``.

    Examples::

        >>> null = torch.linspace(0, 1, 99)
        >>> upper_tail(null, torch.tensor([-1.0, 0.5, 0.5001]))
        tensor([1.0000, 0.5100, 0.5000], dtype=torch.float64)
    """
    ordered = null.double().sort().values
    number = len(ordered)
    values = observed.double().contiguous()
    reached = (number - torch.searchsorted(ordered, values)).double()
    start = ordered[-min(_TAIL, number)]
    above = ordered[ordered > start] - start
    excess = (values - start).clamp(min=0)
    # Where no null value is above the start, they tell nothing of what lies beyond.
    total = above.sum() if len(above) else above.new_tensor(1.0)
    tail = (len(above) + 1) / (number + 1) * (1 + excess / total) ** -len(above)
    # Values far beyond underflow, and a p-value is never 0.
    tail = tail.clamp(min=torch.finfo(torch.float64).tiny)
    within = (1 + reached) / (number + 1)
    return torch.where(values > start, tail.maximum(reached / (number + 1)), within)


# ------------------------------------------------------------------------------ inside


def _on_scores(name: str, x: Tensor) -> Tensor:
    """Values replaced by their normal scores, float32: enough to tell ranks apart."""
    variables = prepared(name, x, "normal")
    assert isinstance(variables, RankedVariables)
    scores = normal_scores(variables.samples).to(torch.float32)
    table: Tensor = scores / 2**SCORE_BITS
    return table.to(x.device)[variables.ranks.int()]


def _side(links: int, n_permutations: int | None) -> int:
    """Of a square table that serves so many links."""
    if n_permutations is None:
        n_permutations = min(max(_FEWEST, _PER_LINK * links), _MOST)
    return math.isqrt(n_permutations - 1) + 1


def _shuffled(
    x: Tensor, columns: Tensor, side: int, generator: torch.Generator
) -> Tensor:
    """Some of the columns of x, each shuffled by itself, [N, side].

    Two such sets of columns are independent of each other, column by column.
    """
    order = torch.randperm(len(columns), generator=generator, device="cpu")
    which = torch.arange(side, device="cpu") % len(columns)
    chosen = columns[order[which].to(x.device)]
    shuffle = torch.rand(
        len(x), side, generator=generator, dtype=torch.float32, device="cpu"
    ).argsort(dim=0)
    return x[:, chosen].gather(0, shuffle.to(x.device))


def _untied_null(estimator: PMIEstimator, samples: int, side: int, seed: int) -> Tensor:
    """MI of shuffled variables without ties; made once for equal estimators."""
    if isinstance(estimator, Hashable):
        return _cached_untied_null(estimator, samples, side, seed)
    return _made_untied_null(estimator, samples, side, seed)


def _made_untied_null(
    estimator: PMIEstimator, samples: int, side: int, seed: int
) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    ascending = torch.arange(samples, dtype=torch.float32, device="cpu")
    variable = _on_scores("x", ascending[:, None])
    only = torch.tensor([0], device="cpu")
    x, y = (_shuffled(variable, only, side, generator) for _ in range(2))
    return estimator.mi(x, y)


_cached_untied_null = lru_cache(maxsize=64)(_made_untied_null)
