"""Checks on attributions other than deletion and insertion.

Captum's infidelity and sensitivity, what becomes of maps when a network forgets what it
learned, and how much of a map lies where it must.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import captum.metrics
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from benchmarks.data.models import seeded
from benchmarks.faithfulness.methods import Explain

INFIDELITY_DRAWS = 50
SENSITIVITY_DRAWS = 5
SENSITIVITY_RADIUS = 0.02


def infidelity(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    attributions: Tensor,
    donors: Tensor,
    draws: int = INFIDELITY_DRAWS,
    seed: int = 0,
) -> float:
    r"""
    The part of the logit's changes that attributions leave unexplained.

    A random set S of features, of a random size, takes the values of a random donor.
    With a the attributions and f the logit of the class, the result is

    .. math::
        \frac{E\,(\beta \sum_{i \in S} a_i - (f(x) - f(x_S)))^2}
             {E\,(f(x) - f(x_S))^2},

    the infidelity (Yeh et al. 2019) by :func:`captum.metrics.infidelity` with
    ``normalize=True``, over that of an attribution of zeros. Beta is the factor that
    serves each sample best: units do not matter, nor does the sign of a whole map.

    Args:

        model (nn.Module): A classifier that returns logits, in evaluation mode.
        inputs (Tensor): The samples, [N, ...].
        targets (Tensor): Their explained classes, [N].
        attributions (Tensor): Their attributions, as ``inputs``, each read as what its
            feature contributes.
        donors (Tensor): Samples whose values take the place, [D, ...].
        draws (int, optional): Sets of each sample. Default: 50
        seed (int, optional): Draws the same sets and donors for all methods.
            Default: 0

    Returns:

        float: From 0, all explained, to 1, nothing.
    """

    def measured(map_: Tensor) -> float:
        found = captum.metrics.infidelity(
            model,
            replace_some(donors, torch.Generator().manual_seed(seed)),
            inputs,
            map_,
            target=targets,
            n_perturb_samples=draws,
            normalize=True,
        )
        return float(found.double().mean())

    return measured(attributions) / measured(torch.zeros_like(attributions))


def replace_some(
    donors: Tensor, generator: torch.Generator
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    r"""
    A perturbation for :func:`captum.metrics.infidelity`.

    Args:

        donors (Tensor): Samples whose values take the place, [D, ...].
        generator (torch.Generator): Draws sets and donors; moved by every call.

    Returns:

        Callable: From inputs to the replaced set, as zeros and ones, and the inputs
        after it.
    """

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        flat = inputs.flatten(1)
        size = torch.rand(len(flat), 1, generator=generator)
        replaced = torch.rand(flat.shape, generator=generator) < size
        drawn = torch.randint(len(donors), (len(flat),), generator=generator)
        replaced = replaced.reshape(inputs.shape)
        return replaced.to(inputs), torch.where(replaced, donors[drawn], inputs)

    return perturb


def sensitivity(
    explain: Explain,
    inputs: Tensor,
    targets: Tensor,
    draws: int = SENSITIVITY_DRAWS,
    radius: float = SENSITIVITY_RADIUS,
    seed: int = 0,
) -> float:
    r"""
    How much attributions change with the inputs, at worst.

    The largest norm of the change, over that of the attributions (Yeh et al. 2019), by
    :func:`captum.metrics.sensitivity_max`; a method that draws at random changes by
    that as well.

    Args:

        explain (Callable): The method.
        inputs (Tensor): The samples, [N, ...].
        targets (Tensor): Their explained classes, [N].
        draws (int, optional): Near-copies of each sample. Default: 5
        radius (float, optional): How far each value moves, at most. Default: 0.02
        seed (int, optional): Draws the same near-copies for all methods. Default: 0

    Returns:

        float: Mean over samples; 0 is steady.
    """

    def called(inputs: tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        # Captum hands over tuples, and leaves the only target of one sample as it is.
        return (explain(inputs[0], target.expand(len(inputs[0]))),)

    with seeded(seed):
        found = captum.metrics.sensitivity_max(
            called,
            inputs,
            perturb_radius=radius,
            n_perturb_samples=draws,
            target=targets,
        )
    return float(found.double().mean())


def learned_modules(model: nn.Module) -> list[str]:
    r"""
    The modules that hold what was learned, from the input up.

    Args:

        model (nn.Module): The model; its modules were registered in this order.

    Returns:

        list[str]: The names of modules with parameters of their own.
    """
    return [
        name
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def randomized(model: nn.Module, top: int | None = None, seed: int = 0) -> nn.Module:
    r"""
    A copy whose modules start again from random weights (Adebayo et al. 2018).

    Args:

        model (nn.Module): The trained model, which stays as it is.
        top (int, optional): Only so many modules, counted from the output.
            Default: all
        seed (int, optional): Draws the weights. Default: 0

    Returns:

        nn.Module: The copy, in the same mode. Running averages of batch normalization
        start again too.

    Raises:

        TypeError: A module cannot be reset.
    """
    copied = copy.deepcopy(model)
    names = learned_modules(copied)
    with seeded(seed):
        for name in names if top is None else names[len(names) - top :]:
            module = copied.get_submodule(name)
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise TypeError(
                    f"{name!r}, a {type(module).__name__}, has no `reset_parameters`: "
                    "its weights cannot be drawn anew."
                )
            reset()
    return copied


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    r"""
    Spearman's correlation of two maps of each sample.

    Args:

        maps (Tensor): Maps, [N, ...].
        others (Tensor): Maps of the same samples.

    Returns:

        Tensor: The correlations, float64, [N]; 0 where a map is constant.

    Examples::

        >>> maps, others = torch.tensor([[1.0, 2, 3]]), torch.tensor([[0.0, 9, 5]])
        >>> round(rank_correlation(maps, others).item(), 6)
        0.5
    """
    first, second = (_standard_ranks(x) for x in (maps, others))
    return (first * second).sum(dim=1)


def _standard_ranks(maps: Tensor) -> Tensor:
    """Ranks of each row, with mean 0 and norm 1, or all 0 if they are all equal."""
    ranks = torch.from_numpy(rankdata(maps.flatten(1).numpy(), axis=1))
    centered = ranks - ranks.mean(dim=1, keepdim=True)
    standard: Tensor = centered / centered.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return standard


def relevant_mass(attributions: Tensor, relevant: Tensor) -> Tensor:
    r"""
    The share of absolute attribution on features known to be relevant.

    Args:

        attributions (Tensor): Attributions, [N, ...].
        relevant (Tensor): Which features of each sample are, bool, the same shape.

    Returns:

        Tensor: The shares, [N]; 0 where all attributions are 0.

    Examples::

        >>> relevant_mass(torch.tensor([[3.0, -1]]), torch.tensor([[True, False]]))
        tensor([0.7500], dtype=torch.float64)
    """
    size = attributions.flatten(1).abs().double()
    inside = (size * relevant.flatten(1)).sum(dim=1)
    return inside / size.sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)


def relevant_auc(attributions: Tensor, relevant: Tensor) -> Tensor:
    r"""
    The chance that a relevant feature has more absolute attribution than another one.

    Args:

        attributions (Tensor): Attributions, [N, ...].
        relevant (Tensor): As in :func:`relevant_mass`, with both kinds in each sample.

    Returns:

        Tensor: The chances, equal attributions counted half, [N]; 0.5 is blind.

    Examples::

        >>> relevant_auc(torch.tensor([[3.0, -1, 4]]), torch.tensor([[1, 0, 0]]).bool())
        tensor([0.5000], dtype=torch.float64)
    """
    ranks = torch.from_numpy(rankdata(attributions.flatten(1).abs().numpy(), axis=1))
    inside = relevant.flatten(1)
    n_inside, n_outside = inside.sum(dim=1), (~inside).sum(dim=1)
    # Mann and Whitney's U: pairs that the relevant feature wins.
    won = (ranks * inside).sum(dim=1) - n_inside * (n_inside + 1) / 2
    return won / (n_inside * n_outside)
