r"""How far to trust a number: p-values of links, standard errors of attributions.

**Links.** The mutual information (MI) of independent variables scatters around 0. A
link's p-value is the probability that two independent variables, with the same ties
among their values, reach its MI. It is measured on normal scores, which makes the null
distribution depend on ties alone: on how many samples of a ReLU are 0, say. So
variables are sorted into classes that tie alike, and one table of MI between shuffled
variables of two classes serves all links between them; tables of variables without ties
serve all graphs of as many samples. Averaged over the links between two classes
p-values are exact, however fine the classes.

A table grows with the links that it serves: what is rare among them is then not rare in
it, and :func:`false_discovery` has most of the small p-values that it needs without
extrapolation. Only beyond the few largest draws the null is taken to fall off about
exponentially.

**Attributions.** :func:`jackknife` gives the standard error of any estimate from its
values without each of some groups of samples. The bootstrap would not do: it repeats
samples, and to nearest neighbours repeated samples are ties.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from captum_nif._blocks import blocks
from captum_nif.estimators.base import PMIEstimator, Progress
from captum_nif.estimators.marginals import SCORE_BITS, RankedVariables, normal_scores
from captum_nif.estimators.samples import prepared

GROUPS = 10
"""Groups that a jackknife leaves out in turn. With many small ones the standard error
of nearest-neighbour estimates comes out too large, with few it is itself uncertain."""

_PER_LINK = 20
"""Null values for each link that a table serves, within these limits: squares, as a
table is one of shuffled variables."""
_FEWEST, _MOST = 32**2, 128**2

_TAIL = 5
"""The tail of a null table starts at its fifth largest value. Started further in, it
misses the leaps that MI makes where nodes are mostly 0; see
``benchmarks.uncertainty.__main__``."""

_BUDGET = 1 << 24
"""Elements sorted at a time."""

TieClass = tuple[int, ...]
_UNTIED: TieClass = ()


def link_pvalues(
    estimator: PMIEstimator,
    x: Tensor,
    y: Tensor,
    *,
    draws: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    r"""
    p-values of all links between two layers, against independence of their two nodes.

    For every pair of tie classes it estimates the MI of shuffled pairs of variables:
    twenty for each link between the two, but at least 1024 and at most 16,384. It takes
    up to twenty times as long as the links' own MI, and longer in small graphs. Samples
    must be independent of each other; neighbouring frames of a film, say, are not, and
    their p-values are too small.

    ``python -m benchmarks.uncertainty`` compares p-values with what they promise.

    Args:
        estimator (PMIEstimator): Of mutual information. It is given normal scores for
            values, on which one that knows ranks alone, such as ``MixedKSG()``, finds
            what it finds on the values.
        x (Tensor): N samples of the source layer's a nodes, [N, a].
        y (Tensor): The same N samples of the target layer's b nodes, [N, b].
        draws (int, optional): Null values in every table, at least 100. Fewer are
            faster, and find fewer links that exist: for ``MINE``, which trains networks
            for each, some 1000.
            Default: None (20 for each link, from 1024 to 16,384)
        seed (int, optional): Of the shuffles. No global random state is used.
            Default: 0
        progress (callable, optional): As for the estimator's ``mi``.
            Default: None

    Returns:
        Tensor: p-values in (0, 1], float64, [a, b]; 1 where a node is constant.

    Raises:
        TypeError, ValueError: If ``draws`` is no int of at least 100, or samples are
            refused; see the estimator.

    Examples::

        >>> from captum_nif import MixedKSG
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 2, generator=generator)
        >>> y = x[:, :1] + torch.randn(500, 1, generator=generator)
        >>> (link_pvalues(MixedKSG(), x, y) < 0.001).tolist()
        [[True], [False]]
    """
    if draws is not None:
        if isinstance(draws, bool) or not isinstance(draws, int):
            raise TypeError(f"draws must be an int or None, got {draws!r}")
        if draws < 100:
            raise ValueError(f"draws must be at least 100, got {draws}")
    x, y = _on_scores("x", x), _on_scores("y", y)
    observed = estimator.mi(x, y, progress=progress)
    generator = torch.Generator().manual_seed(seed)
    sources, targets = tie_classes(x), tie_classes(y)
    shuffled_x, shuffled_y = (
        {
            kind: _shuffled(
                values, columns, _side(len(columns) * most, draws), generator
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
            side = _side(len(rows) * len(columns), draws)
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
    for part in blocks(size, max(1, _BUDGET // max(1, samples))):
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
    Probability that another draw of a null distribution reaches a value.

    With n draws, e of which reach the value, it is :math:`(1 + e)/(n + 1)`. The tail
    starts at the fifth largest draw. With m draws above that, whose excesses are
    :math:`t_j`, it gives to a value above it, by t,

    .. math::
        \frac{m + 1}{n + 1} \left(1 + \frac{t}{\sum_j t_j}\right)^{-m}.

    Were the tail exponential this (Lomax) law would be exact, however little few draws
    tell of the mean excess; for the same reason it is heavy where they are few, and
    forgives mixtures, as of variables that tie alike but not the same. Draws *at* the
    start do not count to m, as the MI of variables that are rarely other than 0 takes
    few values, which many draws share. The probability is never taken to be less than
    e/(n + 1).

    Args:
        null (Tensor): Draws, [n].
        observed (Tensor): Values, of any shape.

    Returns:
        Tensor: Probabilities in (0, 1], float64, of the shape of ``observed``.

    Examples::

        >>> null = torch.linspace(0, 1, 99)
        >>> upper_tail(null, torch.tensor([-1.0, 0.5, 0.5001]))
        tensor([1.0000, 0.5100, 0.5000], dtype=torch.float64)
    """
    ordered = null.double().sort().values
    draws = len(ordered)
    values = observed.double().contiguous()
    reached = (draws - torch.searchsorted(ordered, values)).double()
    start = ordered[-min(_TAIL, draws)]
    above = ordered[ordered > start] - start
    excess = (values - start).clamp(min=0)
    # Where no draw is above the start, they tell nothing of what lies beyond.
    total = above.sum() if len(above) else above.new_tensor(1.0)
    tail = (len(above) + 1) / (draws + 1) * (1 + excess / total) ** -len(above)
    # Values far beyond underflow, and a p-value is never 0.
    tail = tail.clamp(min=torch.finfo(torch.float64).tiny)
    within = (1 + reached) / (draws + 1)
    return torch.where(values > start, tail.maximum(reached / (draws + 1)), within)


def false_discovery(pvalues: Sequence[Tensor]) -> list[Tensor]:
    r"""
    Adjust p-values for their number (Benjamini and Hochberg, 1995).

    Keep the links whose adjusted p-value is at most q, and at most a share q of those
    kept is to be expected where the two nodes are independent. That holds for p-values
    which are independent, or positively dependent (Benjamini and Yekutieli, 2001), as
    those of links are that end at correlated nodes. For any dependence at all,
    multiply by the sum of 1/i over all links i = 1, 2, ... (about 10 for 10,000).

    Args:
        pvalues (sequence of Tensor): p-values that are looked at together.

    Returns:
        list of Tensor: Adjusted p-values, float64, of the same shapes.

    Examples::

        >>> false_discovery([torch.tensor([0.01, 0.5]), torch.tensor([0.02])])
        [tensor([0.0300, 0.5000], dtype=torch.float64), tensor([0.0300], dtype=torch.float64)]
    """  # noqa: E501
    # Imported late: scipy.stats takes about a second.
    from scipy.stats import false_discovery_control

    together = torch.cat([values.double().flatten().cpu() for values in pvalues])
    adjusted = torch.from_numpy(false_discovery_control(together.numpy()))
    parts = adjusted.split([values.numel() for values in pvalues])
    return [
        part.view(values.shape).to(values.device)
        for part, values in zip(parts, pvalues, strict=True)
    ]


def check_level(level: float) -> None:
    """Refuses what is no false discovery rate."""
    if not isinstance(level, numbers.Real):
        raise TypeError(f"level must be a number, got {type(level).__name__}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


def leave_groups_out(
    samples: int, groups: int = GROUPS, seed: int = 0
) -> Iterator[Tensor]:
    r"""
    Split samples into groups by chance, and list all others for each group.

    Args:
        samples (int): Number of samples.
        groups (int, optional): Number of groups, from 2 to ``samples``.
            Default: 10
        seed (int, optional): Of the split. No global random state is used.
            Default: 0

    Yields:
        Tensor: Indices of the samples outside a group, ascending.

    Raises:
        ValueError: If ``groups`` is out of range.

    Examples::

        >>> [len(kept) for kept in leave_groups_out(10, groups=3)]
        [6, 7, 7]
    """
    if not 2 <= groups <= samples:
        raise ValueError(
            f"groups must be from 2 to the number of samples, {samples}, got {groups}"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator)
    for group in order.tensor_split(groups):
        kept = torch.ones(samples, dtype=torch.bool)
        kept[group] = False
        yield kept.nonzero().flatten()


def jackknife(replicates: Tensor) -> Tensor:
    r"""
    Standard error of an estimate, from its values without each of G groups of samples.

    .. math::
        \mathrm{SE}^2 = \frac{G - 1}{G} \sum_g (\hat\theta_{(g)} - \bar\theta)^2

    (the delete-a-group jackknife: Kott, Journal of Official Statistics 17, 2001).

    Args:
        replicates (Tensor): The G >= 2 values, [G, ...].

    Returns:
        Tensor: Standard errors, [...].

    Raises:
        ValueError: If there are fewer than two values.

    Examples::

        >>> x = torch.tensor([1.0, 2.0, 4.0])
        >>> means = torch.stack([x[[1, 2]].mean(), x[[0, 2]].mean(), x[[0, 1]].mean()])
        >>> torch.allclose(jackknife(means), x.std() / 3**0.5)
        True
    """
    groups = len(replicates)
    if groups < 2:
        raise ValueError(f"a jackknife needs at least two values, got {groups}")
    return replicates.std(dim=0) * (groups - 1) / math.sqrt(groups)


# ------------------------------------------------------------------------------ inside


def _on_scores(name: str, x: Tensor) -> Tensor:
    """Values replaced by their normal scores, float32: enough to tell ranks apart."""
    variables = prepared(name, x, "normal")
    assert isinstance(variables, RankedVariables)
    table: Tensor = normal_scores(variables.samples) / 2**SCORE_BITS
    return table.to(x.device)[variables.ranks.int()]


def _side(links: int, draws: int | None) -> int:
    """Of a square table that serves so many links."""
    if draws is None:
        draws = min(max(_FEWEST, _PER_LINK * links), _MOST)
    return math.isqrt(draws - 1) + 1


def _shuffled(
    x: Tensor, columns: Tensor, side: int, generator: torch.Generator
) -> Tensor:
    """Some of the columns of x, each shuffled by itself, [N, side].

    Draws from two sets of such columns are independent of each other, two by two.
    """
    order = torch.randperm(len(columns), generator=generator)
    chosen = columns[order[torch.arange(side) % len(columns)].to(x.device)]
    shuffle = torch.rand(len(x), side, generator=generator).argsort(dim=0)
    return x[:, chosen].gather(0, shuffle.to(x.device))


def _untied_null(estimator: PMIEstimator, samples: int, side: int, seed: int) -> Tensor:
    """MI of shuffled variables without ties; made once for equal estimators."""
    if isinstance(estimator, Hashable):
        return _cached_untied_null(estimator, samples, side, seed)
    return _made_untied_null(estimator, samples, side, seed)


def _made_untied_null(
    estimator: PMIEstimator, samples: int, side: int, seed: int
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    variable = _on_scores("x", torch.arange(float(samples))[:, None])
    only = torch.tensor([0])
    x, y = (_shuffled(variable, only, side, generator) for _ in range(2))
    return estimator.mi(x, y)


_cached_untied_null = lru_cache(maxsize=64)(_made_untied_null)
