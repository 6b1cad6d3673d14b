"""Feature masks: input elements that are explained together, as one node.

The value of a group is the mean of its members, and each member gets the attribution of
its group, as Captum's KernelShap does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_nif._messages import counted
from captum_nif.graph.elements import Layer
from captum_nif.graph.path_sums import at_least_single


@dataclass(frozen=True, eq=False)
class FeatureGroups:
    """The groups of one input's elements.

    Args:
        members (Tensor): the group of each element, from 0, int64 [n_elements].
        count (int): number of groups.
    """

    members: Tensor
    count: int

    def means(self, values: Tensor) -> Tensor:
        """Group values, [N, count], of element values, [N, n_elements].

        Sums are taken in double precision and means rounded back to the precision of
        the values (single at least), so that equal groups tie.
        """
        members = self.members.to(values.device)
        sizes = torch.bincount(members, minlength=self.count)
        sums = values.new_zeros(len(values), self.count, dtype=torch.float64)
        sums.index_add_(1, members, values.double())
        return (sums / sizes).to(at_least_single(values.dtype))

    def spread(self, attributions: Tensor) -> Tensor:
        """What each element gets, [..., n_elements]: what its group got."""
        return attributions[..., self.members.to(attributions.device)]


def feature_groups(
    feature_mask: Tensor | tuple[Tensor, ...], inputs: Sequence[Layer]
) -> dict[str, FeatureGroups]:
    r"""Reads a feature mask in Captum's form.

    Args:
        feature_mask (Tensor or tuple of Tensor): For each input an integer tensor that
            broadcasts to the shape of one sample (with a leading axis of 1, or
            without): elements with the same number form a group.
        inputs (sequence of Layer): The model's inputs.

    Returns:
        dict of str to FeatureGroups: By the name of the input.

    Raises:
        TypeError: If a mask is no integer tensor, or the masks come as a list.
        ValueError: If there are not as many masks as inputs, a mask does not fit its
            input, or a group has members in two inputs.

    Examples::

        >>> groups = feature_groups(torch.tensor([7, 7, 9]), [Layer("x", 3, "input")])
        >>> groups["x"].means(torch.tensor([[1.0, 3.0, 5.0]]))
        tensor([[2., 5.]])
    """
    if isinstance(feature_mask, list):
        raise TypeError(
            "`feature_mask` is a list: use a tuple of tensors, one for each input."
        )
    masks = feature_mask if isinstance(feature_mask, tuple) else (feature_mask,)
    if len(masks) != len(inputs):
        raise ValueError(
            f"`feature_mask` holds {counted(len(masks), 'mask')} for "
            f"{counted(len(inputs), 'input')}: give one for each."
        )
    groups: dict[str, FeatureGroups] = {}
    owner: dict[int, str] = {}
    for mask, layer in zip(masks, inputs, strict=True):
        if (
            not isinstance(mask, Tensor)
            or mask.is_floating_point()
            or mask.is_complex()
        ):
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(
                f"`feature_mask` must hold integer tensors, got {found} for "
                f"{layer.name!r}."
            )
        try:
            full = mask.detach().cpu().expand(1, *layer.shape)
        except RuntimeError:
            raise ValueError(
                f"`feature_mask` of shape {tuple(mask.shape)} does not broadcast to "
                f"{(1, *layer.shape)}, one sample of {layer.name!r}."
            ) from None
        numbers, members = torch.unique(full.flatten(), return_inverse=True)
        for number in numbers.tolist():
            if owner.setdefault(number, layer.name) != layer.name:
                raise ValueError(
                    f"Group {number} of `feature_mask` has members in "
                    f"{owner[number]!r} and in {layer.name!r}, but a node lies in one "
                    "input: use different numbers for different inputs."
                )
        groups[layer.name] = FeatureGroups(members, len(numbers))
    return groups
