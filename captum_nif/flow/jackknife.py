"""Standard errors of attributions: the delete-a-group jackknife.

It gives the standard error of any estimate from its values without each of some groups
of samples. The bootstrap would not do: it repeats samples, and to nearest neighbors
repeated samples are ties.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

GROUPS = 10
"""Groups that a jackknife leaves out in turn. With many small ones the standard error
of nearest-neighbor estimates comes out too large, with few it is itself uncertain."""


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
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(samples, generator=generator, device="cpu")
    for group in order.tensor_split(groups):
        kept = torch.ones(samples, dtype=torch.bool, device="cpu")
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
