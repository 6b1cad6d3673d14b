r"""
MINE: mutual information by neural networks that learn what independence lacks.

After Belghazi, Baratin, Rajeswar, Ozair, Bengio, Courville and Hjelm (*Mutual
information neural estimation*, ICML 2018), for many pairs of variables at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from captum_nif._blocks import block_length, blocks
from captum_nif.estimators.base import Estimator, Points
from captum_nif.estimators.critics import Trained, Training
from captum_nif.estimators.marginals import Marginals, RankedVariables, Variables
from captum_nif.estimators.normal_scores import SCORE_BITS, normal_scores
from captum_nif.estimators.protocol import Progress

_MIN_SAMPLES = 4
"""Two in either half: the fewest that can be shuffled."""

_EFFICIENT = 1 << 19
"""Units of a layer in one step of training, where matrix products of a CPU are fast."""

_KEPT = 1 << 28
"""Numbers kept in the trained networks of two sets of variables (1 GiB)."""

_TRAINED: WeakKeyDictionary[
    Variables, WeakKeyDictionary[Variables, dict[tuple[MINE, bool, int], Trained]]
] = WeakKeyDictionary()
"""Networks live as long as the prepared samples that they were trained on."""


@dataclass(frozen=True)
class MINE(Estimator):
    r"""
    Estimator of pointwise mutual information (PMI) by small neural networks.

    A network T of two hidden layers is trained to score samples (x, y) high and
    shuffled pairs, x of one sample and y of another, low:

    .. math::

        \max_T \; \mathrm{E}_{p(x, y)}[T] - \log \mathrm{E}_{p(x)\,p(y)}[e^T],
        \qquad
        \mathrm{PMI}_i = T(x_i, y_i) - \log \mathrm{E}_{p(x)\,p(y)}[e^T]

    on normal scores, by Adam, with the gradient corrected by a moving average of
    :math:`\mathrm{E}[e^T]` (Belghazi et al., ICML 2018). Each pair of variables has two
    networks, each trained on half of the samples and stopped where it does best on the
    other half; PMI is the mean of the two. Of a sample, one network errs high, which
    has seen it, and one low, which has not; to first order they cancel. (A single
    network finds information in independent pairs, on the samples it has seen.)

    **Bias.** ``benchmarks.bench_estimators`` reports it for 14 kinds of pairs.
    Independent pairs come out within hundredths of a nat of 0, as stopping early keeps
    noise from being learned. Smooth dependence is detected, but what bends often or
    sharply takes more ``steps``: of the 0.86 nats between a phase and its noisy sine
    over two periods, 0.2 are missed at N = 2000. Neither network has seen a query, so
    that the PMI of queries, on average, is somewhat lower than the mutual information.
    The PMI of samples among the others is thus *not* what :meth:`pmi` would return for
    them as queries against the others. Both follow the truth closely.

    **Time.** Training takes some 50 ms per pair of variables, a thousand times what
    :class:`~captum_nif.MixedKSG` takes, and more for a pair alone. It is
    done once for x and y that come from :meth:`prepare`, and in every call for tensors.
    What later calls need, about 10 kB per pair, is kept as long as x and y are, if it
    takes no more than 1 GiB in all (100,000 pairs).

    For the joint PMI of a vector, networks take the normal scores of all components
    beside that of y. The more components and the fewer samples there are, the earlier
    they stop and the lower is what they detect: with some hundred samples, a few
    components are enough.

    Increasing maps of a variable change nothing. All pairs start from the same weights,
    and see the same batches and shuffles, which come from ``seed`` alone. So a pair
    alone has the same PMI as among many, as far as the processor's matrix products are
    the same for few and many; where they differ in rounding, training can make tenths
    of a nat of it in single samples, though hardly anything in their mean.

    Args:

        hidden (int, optional): Units in each hidden layer. Default: 32
        steps (int, optional): Steps of training. Default: 300
        batch (int, optional): Samples in each step, and as many shuffled pairs.
            Default: 128
        learning_rate (float, optional): Highest learning rate; it rises and falls once.
            Default: 0.03
        seed (int, optional): Of first weights, batches and shuffles.
            Default: 0

    Raises:

        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is not positive (``seed``: negative, or too large).

    Examples::

        >>> import torch
        >>> from captum_nif import MINE
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 1, generator=generator)
        >>> y = torch.cat([x.relu(), torch.ones(500, 1)], dim=1)
        >>> mine = MINE(steps=50)
        >>> x, y = mine.prepare(x), mine.prepare(y)
        >>> mine.mi(x, y).shape  # trains
        torch.Size([1, 2])
        >>> mine.mi(x, y)[0, 1].item()  # a constant tells nothing
        0.0
        >>> mine.pmi(x, y, query=(torch.zeros(3, 1), torch.zeros(3, 2))).shape
        torch.Size([3, 1, 2])
    """

    hidden: int = 32
    steps: int = 300
    batch: int = 128
    learning_rate: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "steps", "batch", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, but is {value!r}.")
            if value < 1 and name != "seed":
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must be in [0, 2^64), not {self.seed}.")
        if not isinstance(self.learning_rate, int | float):
            raise TypeError(
                f"learning_rate must be a number, but is {self.learning_rate!r}."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate must be positive and finite, not {self.learning_rate}."
            )

    @property
    def min_samples(self) -> int:
        """Four: each half needs two samples to shuffle. Sensible are some hundred."""
        return _MIN_SAMPLES

    @property
    def _marginals(self) -> Marginals:
        return "normal"

    def _check_count(self, samples: int, queries: bool) -> None:
        if samples < _MIN_SAMPLES:
            raise ValueError(
                f"MINE trains on halves of {_MIN_SAMPLES // 2} samples at least, but "
                f"there are {samples} samples in all; give more."
            )

    def _mi(self, x: Variables, y: Variables, progress: Progress | None) -> Tensor:
        first, second = _Inputs(Points(x, None)), _Inputs(Points(y, None))
        mi = _zeros(first.size, second.size, like=first)
        for i, j, pmi in self._blocks(first, second, progress):
            mi[i, j] = pmi.mean(1)
        return mi

    def _pmi(self, x: Points, y: Points, progress: Progress | None) -> Tensor:
        first, second = _Inputs(x), _Inputs(y)
        values = _zeros(first.count, first.size, second.size, like=first)
        for i, j, pmi in self._blocks(first, second, progress):
            values[:, i, j] = pmi.t()
        return values

    def _joint(self, x: Points, y: Points, progress: Progress | None) -> Tensor:
        first, second = _Inputs(x, joint=True), _Inputs(y)
        values = _zeros(first.count, second.size, like=first)
        for _, j, pmi in self._blocks(first, second, progress):
            values[:, j] = pmi.t()
        return values

    def _blocks(
        self, x: _Inputs, y: _Inputs, progress: Progress | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """P variables of x, P of y, and the PMI of all points for these pairs, [P, B].

        Pairs that hold a constant are left out.
        """
        if x.count == 0:
            return
        varying = x.varying(), y.varying()
        pairs = len(varying[0]) * len(varying[1])
        if progress is not None and pairs < x.size * y.size:
            progress(x.count * (x.size * y.size - pairs))
        units = 4 * self.batch * max(self.hidden, x.components + 2)
        most = max(1, _EFFICIENT // units) if x.device.type == "cpu" else None
        for block in blocks(pairs, block_length(4 * units, most)):
            pair = torch.arange(block.start, block.stop, device=x.device)
            i = varying[0][pair.div(len(varying[1]), rounding_mode="floor")]
            j = varying[1][pair % len(varying[1])]
            trained = self._trained(x, y, i, j, block.start, pairs)
            pmi = trained.pmi(x.points(i), y.points(j))
            yield i, j, pmi
            if progress is not None:
                progress(pmi.numel())

    def _trained(
        self, x: _Inputs, y: _Inputs, i: Tensor, j: Tensor, start: int, pairs: int
    ) -> Trained:
        """Networks for these variables, trained now or earlier."""
        ends = _TRAINED.setdefault(x.variables, WeakKeyDictionary())
        kept = ends.setdefault(y.variables, {})
        key = self, x.joint, start
        if key in kept:
            return kept[key]
        training = Training(
            self.hidden, self.steps, self.batch, self.learning_rate, self.seed
        )
        trained = Trained(x.samples(i), y.samples(j), training)
        if trained.parameters * pairs <= _KEPT * len(i):
            kept[key] = trained
        return trained


class _Inputs:
    """What networks see along one set of variables: scores of samples and points.

    Attributes:
        variables (RankedVariables): the samples.
        joint (bool): whether all variables are the components of a single one.
        count (int): number of points.
        size (int): number of variables.
        components (int): how many numbers a value of each is made of.
        device (torch.device): where they are.
    """

    def __init__(self, points: Points, joint: bool = False) -> None:
        variables, query = points
        assert isinstance(variables, RankedVariables)
        self.variables, self.joint = variables, joint
        self.device = variables.device
        self.size, self.components = variables.size, 1
        if joint:
            self.size, self.components = self.components, self.size
        self._points, self._together = variables.ranks, variables.samples
        if query is not None:
            self._points = variables.ranks_of(query)
            self._together += 1
        self.count = len(self._points)

    def varying(self) -> Tensor:
        """Indices of the variables that are not constant."""
        ordered = self.variables.ordered
        varies = ordered[:, 0] != ordered[:, -1]
        return (varies.any().view(1) if self.joint else varies).nonzero().flatten()

    def samples(self, columns: Tensor) -> Tensor:
        """Normal scores of all samples, [columns, N, components]."""
        return self._scores(self.variables.ranks, self.variables.samples, columns)

    def points(self, columns: Tensor) -> Tensor:
        """Normal scores of all points, [columns, points, components]."""
        return self._scores(self._points, self._together, columns)

    def _scores(self, ranks: Tensor, together: int, columns: Tensor) -> Tensor:
        table = normal_scores(together).to(self.device).float() * 2.0**-SCORE_BITS
        if self.joint:
            return table[ranks.int()].expand(len(columns), -1, -1)
        return table[ranks[:, columns].int()].t().unsqueeze(-1)


def _zeros(*shape: int, like: _Inputs) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=like.device)
