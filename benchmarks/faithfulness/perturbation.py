"""Deletion and insertion: does the class depend on what an attribution ranks first?

Features are taken in order of their attribution, largest first and with its sign, and
their values replaced by those of other samples. As top features go, the probability of
the explained class should fall fast (deletion, a small area under the curve); as they
come back first, it should rise fast (insertion, a large one).

Petsiuk, Das, Saenko, RISE, BMVC 2018, with replacements drawn from data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

STEPS = 16
DRAWS = 8


class Curves(NamedTuple):
    r"""
    The probability of the explained class as features are replaced.

    Args:

        shares (Tensor): Features deleted, or inserted, at each step, from 0 to 1, [P].
        deletion (Tensor): Probability of each sample's class, mean over draws, [N, P].
        insertion (Tensor): The same, as features come back.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor

    @property
    def deletion_area(self) -> Tensor:
        """Area under each sample's deletion curve, [N]: small is good."""
        return torch.trapezoid(self.deletion, self.shares)

    @property
    def insertion_area(self) -> Tensor:
        """Area under each sample's insertion curve, [N]: large is good."""
        return torch.trapezoid(self.insertion, self.shares)

    @property
    def gap(self) -> Tensor:
        """Insertion area less deletion area, [N]: one number, large is good.

        A random order replaces the same sets of features on both ways, each once while
        deleting and once while inserting: its gap is 0 in expectation. So the advantage
        over chance of a method is its mean gap.
        """
        return self.insertion_area - self.deletion_area


def perturbation_curves(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    attributions: Tensor,
    donors: Tensor,
    steps: int = STEPS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Curves:
    r"""
    Deletion and insertion curves of explained samples.

    Calls with the same inputs, donors and seed replace by the same values, so that
    methods are compared in pairs.

    Args:

        model (nn.Module): A classifier that returns logits, in evaluation mode.
        inputs (Tensor): The samples, [N, ...].
        targets (Tensor): Their explained classes, [N].
        attributions (Tensor): What ranks their features, as ``inputs``.
        donors (Tensor): Samples whose values take the place, [D, ...]. One of them
            that equals the sample explained is never drawn for it.
        steps (int, optional): Steps from none to all features, of equal size up to
            rounding; with fewer features there is a step for each. Default: 16
        draws (int, optional): Donors of each sample. All that is replaced comes from
            one donor at a time, the same at all steps. Default: 8
        seed (int, optional): Draws the donors, and the order of equal attributions.
            Default: 0

    Returns:

        Curves: The curves.

    Examples::

        >>> model = nn.Linear(3, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[0.0, 0, 0], [3, 0, 0]]))
        >>> x, donors = torch.ones(1, 3), torch.zeros(9, 3)
        >>> right = torch.tensor([[2.0, 1, 0]])
        >>> curves = perturbation_curves(model, x, torch.tensor([1]), right, donors)
        >>> [round(p, 2) for p in curves.deletion[0].tolist()]
        [0.95, 0.5, 0.5, 0.5]
        >>> [round(p, 2) for p in curves.insertion[0].tolist()]
        [0.5, 0.95, 0.95, 0.95]
    """
    generator = torch.Generator().manual_seed(seed)
    substitutes = draw_others(inputs, donors, draws, generator)
    places = ranks(attributions, generator)
    features = places[0].numel()
    points = min(steps, features) + 1
    counts = torch.linspace(0, features, points, dtype=torch.float64).round()

    def curve(inserted: bool) -> Tensor:
        return torch.stack(
            [
                _probability(
                    model,
                    torch.where(
                        ((places >= n) if inserted else (places < n)).unsqueeze(1),
                        substitutes,
                        inputs.unsqueeze(1),
                    ),
                    targets,
                )
                for n in counts
            ],
            dim=1,
        )

    return Curves(counts / features, curve(inserted=False), curve(inserted=True))


def draw_others(
    inputs: Tensor, donors: Tensor, draws: int, generator: torch.Generator
) -> Tensor:
    r"""
    Donors for each sample, each at most once, and never one that equals it.

    Args:

        inputs (Tensor): The samples, [N, ...].
        donors (Tensor): What is drawn from, [D, ...].
        draws (int): Donors of each sample.
        generator (torch.Generator): Draws them.

    Returns:

        Tensor: Drawn values, [N, draws, ...].

    Raises:

        ValueError: A sample has fewer donors than draws.
    """
    differs = (donors.flatten(1) != inputs.flatten(1).unsqueeze(1)).any(dim=2)
    fewest = int(differs.sum(dim=1).min())
    if fewest < draws:
        raise ValueError(
            f"{draws} draws need as many donors for each sample, but one has {fewest} "
            "that differ from it: give more donors, or draw less."
        )
    drawn = torch.multinomial(differs.double(), draws, generator=generator)
    return donors[drawn]


def ranks(attributions: Tensor, generator: torch.Generator) -> Tensor:
    r"""
    The place of each feature by falling attribution, 0 for the largest.

    Equal attributions are ranked by chance: in order of position, an attribution of all
    zeros would delete images from the top, where there is little to see.

    Args:

        attributions (Tensor): Attributions of samples, [N, ...].
        generator (torch.Generator): Draws the order of equal ones.

    Returns:

        Tensor: Places, int64, as ``attributions``.

    Examples::

        >>> ranks(torch.tensor([[0.1, 0.3, -0.2]]), torch.Generator()).tolist()
        [[1, 0, 2]]
    """
    flat = attributions.flatten(1)
    shuffled = torch.rand(flat.shape, generator=generator).argsort(dim=1)
    order = flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, order).argsort(dim=1).reshape(attributions.shape)


@torch.no_grad()
def _probability(model: nn.Module, drawn: Tensor, targets: Tensor) -> Tensor:
    """Probability of each sample's class, [N], mean over draws, [N, draws, ...]."""
    draws = drawn.shape[1]
    chances: Tensor = model(drawn.flatten(0, 1)).double().softmax(dim=1)
    of_class = chances.gather(1, targets.repeat_interleave(draws).unsqueeze(1))
    return of_class.reshape(-1, draws).mean(dim=1)
