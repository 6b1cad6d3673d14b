r"""
The statistics networks of MINE, many trained at once.

A critic T scores a point (x, y). Over all functions T,

.. math:: \mathrm{E}_{p(x, y)}[T] - \log \mathrm{E}_{p(x)\,p(y)}[e^T]

is at most the mutual information, and reaches it where T is the pointwise mutual
information up to a constant (Donsker and Varadhan 1983; Belghazi et al., *Mutual
information neural estimation*, ICML 2018). Critics are perceptrons so small that one
alone leaves a processor idle: many go through each matrix product together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from captum_nif._blocks import block_length, blocks

_CHECKS = 12
"""How often, in one training, critics are tried on the samples they do not see."""

_PAIRS_TO_CHECK = 2048
_PAIRS_TO_NORMALIZE = 8192
"""About how many shuffled pairs stand for independence, then and in the end."""

_REMEMBERED = 0.9
"""Of the moving average of E[e^T] at each step."""

_BYTES = 64
"""Of temporary tensors for each number that critics see, or unit of a layer."""

Critics = tuple[Tensor, ...]
"""First layer with its bias, second layer, its bias, last layer, its bias; the critics
along dimension 0."""


class Training(NamedTuple):
    """How critics are trained.

    Attributes:
        hidden (int): units in each of two hidden layers.
        steps (int): steps of Adam, on one cycle of its learning rate.
        batch (int): samples in each step, and as many shuffled pairs.
        learning_rate (float): the highest of the cycle.
        seed (int): of first weights, batches and shuffles, the same for all critics.
    """

    hidden: int
    steps: int
    batch: int
    learning_rate: float
    seed: int


class Trained:
    r"""
    Two critics for each of P pairs of variables, each trained on half of the samples.

    A critic errs high on the samples that it has seen and, to first order, as much low
    on others (the argument behind Akaike's criterion). Every sample has been seen by
    one of the two, so that in their mean the one cancels the other. Each is taken from
    the step where it did best on the half that it does not see: for independent
    variables often the very first, where T = 0.

    Args:

        x (Tensor): N samples of what the pairs hold first, [P, N, components], float32.
        y (Tensor): The same samples of what they hold second, [P, N, 1].
        training (Training): How.
    """

    def __init__(self, x: Tensor, y: Tensor, training: Training) -> None:
        generator = torch.Generator("cpu").manual_seed(training.seed)
        samples = x.shape[1]
        rows = torch.randperm(samples, generator=generator, device="cpu")
        halves = rows[: samples // 2 * 2].view(2, -1)
        independent = _shuffled(rows.expand(2, -1), _PAIRS_TO_NORMALIZE, generator)
        with _own_mode(x.device):
            self._critics = _train(x, y, halves, training, generator)
            scores = _scores(self._critics, x, y, *independent)
        self._constants = _log_mean_exp(scores).double()

    @property
    def parameters(self) -> int:
        """How many numbers they are made of."""
        return sum(weight.numel() for weight in self._critics)

    def pmi(self, x: Tensor, y: Tensor) -> Tensor:
        """PMI of points [P, B, components] and [P, B, 1], float64, [P, B]."""
        rows = torch.arange(x.shape[1], device="cpu").expand(2, -1)
        with _own_mode(x.device):
            scores = _scores(self._critics, x, y, rows, rows).double()
        return (scores - self._constants[:, None]).view(2, *x.shape[:2]).mean(0)


@contextmanager
def _own_mode(device: torch.device) -> Iterator[None]:
    """Gradients in full precision, whatever the caller has switched off or on."""
    with (
        device,  # where the optimizer keeps its state
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


# ------------------------------------------------------------------------- training


def _train(
    x: Tensor,
    y: Tensor,
    halves: Tensor,
    training: Training,
    generator: torch.Generator,
) -> Critics:
    """Critics that see the first half, [P, ...], then those of the second, as one."""
    pairs, _, components = x.shape
    critics = _initial(2 * pairs, components, training.hidden, generator, x.device)
    optimizer = torch.optim.Adam(critics, lr=training.learning_rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=training.steps
    )
    unseen = halves.flip(0)
    independent = _shuffled(unseen, _PAIRS_TO_CHECK, generator)
    kept = tuple(weight.detach().clone() for weight in critics)
    best = torch.zeros(2 * pairs, dtype=torch.float32, device=x.device)  # where T = 0
    average: Tensor | None = None
    for step in range(1, training.steps + 1):
        drawn, shuffled = torch.randint(
            halves.shape[1], (2, training.batch), generator=generator, device="cpu"
        )
        first = halves[:, torch.cat([drawn, drawn])]
        second = halves[:, torch.cat([drawn, shuffled])]
        joint, product = _outputs(critics, _points(x, y, first, second)).chunk(2, dim=1)
        mean = product.exp().mean(1)
        now = mean.detach()
        average = now if average is None else now.lerp(average, _REMEMBERED)
        optimizer.zero_grad()
        # d log E[e^T] = d E[e^T] / E[e^T], with less bias where the divisor is an
        # average over batches (Belghazi et al., section 3.2)
        (mean / average - joint.mean(1)).sum().backward()
        optimizer.step()
        cycle.step()
        if step * _CHECKS % training.steps < _CHECKS:
            bound = _scores(critics, x, y, unseen, unseen).mean(1)
            bound -= _log_mean_exp(_scores(critics, x, y, *independent))
            better = bound > best
            best = torch.where(better, bound, best)
            for old, new in zip(kept, critics, strict=True):
                old[better] = new.detach()[better]
    return kept


def _initial(
    count: int,
    components: int,
    hidden: int,
    generator: torch.Generator,
    device: torch.device,
) -> Critics:
    """Equal critics with T = 0, their kinks spread as normal scores are."""

    def normal(rows: int) -> Tensor:
        return torch.randn(
            rows, hidden, generator=generator, dtype=torch.float32, device="cpu"
        )

    # x and y weigh the same, however many components x has
    slopes = normalize(
        torch.cat([normalize(normal(components), dim=0) * normal(1), normal(1)]), dim=0
    )
    biases = normal(1)
    weights = (
        torch.cat([slopes, biases]),
        normal(hidden) / math.sqrt(hidden),
        torch.zeros_like(biases),
        torch.zeros_like(biases.t()),
        torch.zeros_like(biases[:, :1]),
    )
    return tuple(
        weight.to(device).expand(count, -1, -1).clone().requires_grad_()
        for weight in weights
    )


def _outputs(critics: Critics, points: Tensor) -> Tensor:
    """T of each critic's own points, [2P, B, components + 1]: [2P, B]."""
    first, second, second_bias, last, last_bias = critics
    units = torch.baddbmm(first[:, -1:], points, first[:, :-1]).relu_()
    units = torch.baddbmm(second_bias, units, second).relu_()
    return torch.baddbmm(last_bias, units, last).squeeze(-1)


@torch.no_grad()
def _scores(
    critics: Critics, x: Tensor, y: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """T of these rows of x with those of y, some at a time: [2P, B]."""
    count, numbers, hidden = critics[0].shape
    length = block_length(_BYTES * count * max(numbers, hidden))
    parts = [
        _outputs(critics, _points(x, y, first[:, part], second[:, part]))
        for part in blocks(first.shape[1], length)
    ]
    return torch.cat(parts, dim=1)


def _log_mean_exp(scores: Tensor) -> Tensor:
    return scores.logsumexp(1) - math.log(scores.shape[1])


# -------------------------------------------------------------------------- samples


def _points(x: Tensor, y: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What the critics of either half look at, [2P, B, components + 1].

    Args:
        x (Tensor): samples, [P, N, components].
        y (Tensor): samples, [P, N, 1].
        first (Tensor): rows of x, [2, B].
        second (Tensor): the rows of y that go with them, [2, B].
    """
    first, second = first.to(x.device), second.to(x.device)
    halves = zip(first, second, strict=True)
    return torch.cat([torch.cat([x[:, i], y[:, j]], dim=-1) for i, j in halves])


def _shuffled(
    rows: Tensor, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """About so many pairs of different rows [2, n], each as often as any other."""
    count = rows.shape[1]
    shifts = 1 + torch.randperm(count - 1, generator=generator, device="cpu")
    shifts = shifts[: math.ceil(pairs / count)]
    second = torch.cat([rows.roll(int(shift), 1) for shift in shifts], dim=1)
    return rows.repeat(1, len(shifts)), second
