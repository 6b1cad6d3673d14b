r"""Hybrids of a sample and the background: the population that a sample's graph has.

A hybrid takes some features from the sample x and the rest from a background row b,

.. math:: u = b + c \, (x - b),

with coefficients c of each feature. Over hybrids every layer sees its inputs between
"the data" and "this sample". Half of them are coalitions, whose features are taken or
left, each with the hybrid's probability; half are interpolations, whose features all
have the same coefficient. Probabilities and coefficients are stratified over (0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hybrids:
    r"""How m hybrids are made, the same for every sample.

    So a sample alone gets the hybrids that it has in a batch, and what perturbs samples
    (NoiseTunnel, sensitivity) is not mistaken for a change of the draws.

    Args:
        rows (Tensor): the background row of each hybrid, int64, [m].
        coefficients (tuple): for each input the share of the sample in each feature,
            float32, [m, *shape of a sample]; None for an input that is no variable,
            such as token ids, which stays the sample's own.
    """

    rows: Tensor
    coefficients: tuple[Tensor | None, ...]

    @property
    def count(self) -> int:
        """How many hybrids a sample has, m."""
        return len(self.rows)

    def of(
        self, samples: Sequence[Tensor], background: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The hybrids of S samples, [m * S, ...], hybrid after hybrid.

        Args:
            samples (sequence of Tensor): by input, [S, ...].
            background (sequence of Tensor): by input, [rows, ...].
        """
        hybrids = []
        for x, b, c in zip(samples, background, self.coefficients, strict=True):
            if c is None:
                hybrids.append(x.repeat(self.count, *[1] * (x.dim() - 1)))
                continue
            rows = b[self.rows.to(b.device)].unsqueeze(1)
            share = c.to(x.device, x.dtype).unsqueeze(1)
            hybrids.append(torch.lerp(rows, x, share).flatten(0, 1))
        return tuple(hybrids)


def draw_hybrids(
    count: int,
    background_rows: int,
    features: Sequence[Tensor | None],
    seed: int,
    coalitions: float = 0.5,
) -> Hybrids:
    """Draws hybrids, from a generator of their own.

    Args:
        count (int): how many, m.
        background_rows (int): how many rows there are to draw from; no row is drawn
            twice while there are others.
        features (sequence of Tensor): for each input the number of the feature that an
            element belongs to, int64, of the shape of a sample; None for an input that
            is no variable.
        seed (int): of the draws.
        coalitions (float): share of hybrids that are coalitions, spread evenly.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.randperm(background_rows, generator=generator)
        for _ in range(-(-count // background_rows))
    ]
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    # Strata in an order in which each quarter of the hybrids spreads over all sizes.
    strata = torch.arange(count).view(-1, 4 if count % 4 == 0 else 1).mT.flatten()
    sizes = (strata + offset) / count
    # Spread evenly over all sizes, and over each quarter of the hybrids.
    turns = (strata + strata // 4).double()
    is_coalition = ((turns + 1) * coalitions).floor() > (turns * coalitions).floor()
    coefficients: list[Tensor | None] = []
    for members in features:
        if members is None:
            coefficients.append(None)
            continue
        n = int(members.max()) + 1
        drawn = torch.rand(count, n, generator=generator, dtype=torch.float64)
        taken = (drawn < sizes[:, None]).double()
        by_feature = torch.where(is_coalition[:, None], taken, sizes[:, None])
        coefficients.append(by_feature.float()[:, members])
    return Hybrids(torch.cat(orders)[:count], tuple(coefficients))
