r"""Sets of weights that are pruned as one: which are left, and which go next."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_nif.graph.elements import Layer

Name = tuple[str, str]
"""A parameter: the path of its module, and its name there."""


@dataclass(frozen=True)
class Entries:
    """Which unit owns each entry of one parameter.

    Args:
        names (tuple of Name): the parameter; several names if it is tied.
        units (Tensor): int64, the number of a unit, -1 for none. Of the shape of the
            parameter, without the axes of a kernel, which is one entry.
    """

    names: tuple[Name, ...]
    units: Tensor


@dataclass(frozen=True)
class Units:
    """The connections or the nodes of a model.

    Args:
        kind (str): what they are called, ``"connections"`` or ``"nodes"``.
        entries (tuple of Entries): what they own.
        flow (Tensor): how much flow they carry, float64, [units].
        layers (tuple of Layer and int): for nodes, the layers that have them, each with
            the unit of its first node.
        left_alone (tuple of str): which layers have none, and why.
    """

    kind: str
    entries: tuple[Entries, ...]
    flow: Tensor
    layers: tuple[tuple[Layer, int], ...] = ()
    left_alone: tuple[str, ...] = ()

    def left(self, model: nn.Module) -> Tensor:
        """Which units own weights that no mask zeroes yet, bool [units]."""
        left = torch.zeros(len(self.flow), dtype=torch.bool)
        for part in self.entries:
            path, name = part.names[0]
            mask = mask_of(model.get_submodule(path), name)
            free = part.units >= 0
            if mask is not None:
                free &= (mask != 0).cpu().reshape(*free.shape, -1).any(-1)
            left[part.units[free]] = True
        return left

    def masks(
        self, zeroed: Tensor, model: nn.Module
    ) -> Iterator[tuple[Entries, Tensor]]:
        """The mask of each parameter, of its shape, dtype and device.

        Args:
            zeroed (Tensor): which units, bool [units].
            model (Module): the network, or a copy of it.
        """
        for part in self.entries:
            path, name = part.names[0]
            value = parameter(model.get_submodule(path), name)
            kept = (part.units < 0) | ~zeroed[part.units]
            kernel = [1] * (value.dim() - kept.dim())
            yield part, kept.reshape(*kept.shape, *kernel).expand_as(value).to(value)


def count_of(amount: object, left: Tensor, kind: str) -> int:
    """How many units an amount means: a share if it is a float, a number if an int.

    Args:
        amount (float or int): as the user gave it.
        left (Tensor): the units that it counts among, bool [units].
        kind (str): what they are called.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is out of range.
    """
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise TypeError(f"`amount` must be a float or an int, got {amount!r}")
    total = int(left.sum())
    if isinstance(amount, numbers.Integral):
        if not 0 <= int(amount) <= total:
            raise ValueError(
                f"`amount` is {amount}, and there are {total} {kind} left to prune: "
                f"give an int from 0 to {total}, or a share as a float in [0, 1]"
            )
        return int(amount)
    if not 0.0 <= float(amount) <= 1.0:
        raise ValueError(
            f"`amount` must be a share in [0, 1] if it is a float, got {amount!r}; a "
            f"number of {kind} is an int"
        )
    return round(float(amount) * total)


def lowest(scores: Tensor, left: Tensor, count: int) -> Tensor:
    """Chooses those of lowest score, the first among equals.

    Args:
        scores (Tensor): [units].
        left (Tensor): which units there are to choose from, bool [units].
        count (int): how many to choose.

    Returns:
        Tensor: which are chosen, bool [units].
    """
    places = left.nonzero().flatten()
    ranking = scores[places].argsort(stable=True)
    chosen = torch.zeros_like(left)
    chosen[places[ranking[:count]]] = True
    return chosen


def has_parameter(module: nn.Module, name: str) -> bool:
    """Whether a module holds a parameter of its own by that name, pruned or not."""
    return module._parameters.get(stored_name(module, name)) is not None


def parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter as it is trained: that behind the mask if it is pruned already."""
    value = module._parameters[stored_name(module, name)]
    assert value is not None
    return value


def mask_of(module: nn.Module, name: str) -> Tensor | None:
    """The mask of a parameter that is pruned already."""
    return module._buffers.get(f"{name}_mask")


def stored_name(module: nn.Module, name: str) -> str:
    """The name by which a module holds a parameter that may be pruned."""
    return name if mask_of(module, name) is None else f"{name}_orig"
