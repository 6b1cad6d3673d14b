"""Which node of a layer each sample explains, in all the forms that Captum takes."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_nif._messages import counted
from captum_nif.graph.elements import Layer

_FORMS = (
    "an int, a tuple (one index per axis of the layer), a list of either with one "
    "entry per sample, or an integer tensor with one element or one per sample"
)


def target_nodes(target: object, layer: Layer, n_samples: int) -> Tensor:
    r"""The index of the node that each sample explains.

    Args:
        target (int, tuple, Tensor, list or None): In the forms that Captum defines: an
            int or a one-element tensor for all samples, a tuple of ints for layers with
            several axes, a 1-d tensor or a list of ints or tuples with one entry per
            sample, or None if the layer has a single node. Negative indices count from
            the end, as in Python.
        layer (Layer): The layer whose nodes are meant; its ``shape`` gives the axes.
        n_samples (int): Number of samples.

    Returns:
        Tensor: int64, shape [n_samples], row-major indices into the layer's nodes.

    Raises:
        TypeError: If the target has another type.
        ValueError: If it is None but the layer has several nodes, has another number of
            entries than there are samples, or another number of axes than the layer.
        IndexError: If an index is out of range.

    Examples::

        >>> from captum_nif import Layer
        >>> target_nodes([2, -1], Layer("fc", 3, "output"), 2)
        tensor([2, 2])
        >>> target_nodes((1, 0), Layer("map", 6, "output", shape=(3, 2)), 2)
        tensor([2, 2])
    """
    if target is None:
        if layer.size > 1:
            raise ValueError(
                f"The layer {layer.name!r} has {layer.size} nodes: give `target`, "
                f"{_FORMS}."
            )
        return torch.zeros(n_samples, dtype=torch.int64)
    if isinstance(target, Tensor):
        target = _from_tensor(target, n_samples)
    if isinstance(target, list):
        if len(target) != n_samples:
            raise ValueError(
                f"`target` is a list of {counted(len(target), 'entry', 'entries')} for "
                f"{counted(n_samples, 'sample')}: give one entry per sample, or one "
                "int for all."
            )
        nodes = [_node(entry, layer) for entry in target]
    else:
        nodes = [_node(target, layer)] * n_samples
    return torch.tensor(nodes, dtype=torch.int64)


def _from_tensor(target: Tensor, n_samples: int) -> int | list[int]:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"`target` is a {target.dtype} tensor; expected {_FORMS}.")
    if target.numel() == 1:
        return int(target.item())
    if target.shape != (n_samples,):
        raise ValueError(
            f"`target` is a tensor of shape {tuple(target.shape)} for "
            f"{counted(n_samples, 'sample')}; expected shape ({n_samples},) or "
            "a single element."
        )
    return [int(index) for index in target.tolist()]


def _node(target: object, layer: Layer) -> int:
    index: Sequence[object] = target if isinstance(target, tuple) else (target,)
    positions = [_position(part, target) for part in index]
    if len(index) != len(layer.shape):
        message = (
            f"`target` {target!r} has {counted(len(index), 'index', 'indices')}, but "
            f"the nodes of layer {layer.name!r} have shape {layer.shape}: give "
            f"{len(layer.shape)}."
        )
        if layer.kind == "hidden" and len(layer.shape) == 1:
            message += " A channel is one node, its spatial mean: give the channel."
        raise ValueError(message)
    node = 0
    for position, extent in zip(positions, layer.shape, strict=True):
        if not -extent <= position < extent:
            raise IndexError(
                f"`target` {target!r} is out of range for layer {layer.name!r}, whose "
                f"nodes have shape {layer.shape} ({math.prod(layer.shape)} in all)."
            )
        node = node * extent + position % extent
    return node


def _position(part: object, target: object) -> int:
    if not isinstance(part, bool):
        with contextlib.suppress(TypeError):
            return operator.index(part)  # type: ignore[arg-type]  # what is asked here
    raise TypeError(f"`target` is {target!r}; expected {_FORMS}.")


def check_each_occurs(nodes: Tensor, layer: Layer) -> None:
    """Refuses samples among which some node of a layer has none.

    Args:
        nodes (Tensor): the node of each sample, int64, [N].
        layer (Layer): the layer.
    """
    counts = torch.bincount(nodes, minlength=layer.size)
    if not counts.all():
        lacking = (counts == 0).nonzero().flatten().tolist()
        named = ", ".join(map(str, lacking[:5])) + ", ..." * (len(lacking) > 5)
        raise ValueError(
            f"No sample of the background belongs to {named} of the {layer.size} nodes "
            f"of {layer.name!r}, and an average needs one: give a background with "
            "samples of every class."
        )
