r"""Warnings where values depend on chance, or on the other samples of a batch.

Some of it is seen in the functions that a model calls (see
:mod:`captum_nif.tracing.disturbances`). A number that leaves torch and comes back, such
as ``h / h.max().item()``, is not; so two samples are run alone, and compared with the
same two in their batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captum_nif._messages import warn
from captum_nif.flow.batches import rows_of
from captum_nif.tracing.record import Nodes
from captum_nif.tracing.selection import Layers
from captum_nif.tracing.tracer import Trace, trace
from captum_nif.tracing.undisturbed import is_stochastic

_ALONE = 2
"""Samples that are run alone. Not one, which some models squeeze away."""

_NEGLIGIBLE = 1e-3
"""Values below this share of the largest layer's are compared with that share."""


def watch(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    layers: Layers,
    nodes: Nodes,
    whole: Trace,
) -> None:
    """Warns if what a model computes depends on chance or on the batch.

    Args:
        model (Module): the network.
        inputs (tuple of Tensor): the samples of one batch.
        extra (tuple): the further arguments of that call.
        layers (list, dict or str, optional): what is a layer.
        nodes (str): what are its nodes.
        whole (Trace): what the batch gave.
    """
    count = len(inputs[0])
    few = None
    if count > _ALONE and not whole.chance and not _is_training(model):
        part = slice(_ALONE)
        try:
            samples = tuple(x[part] for x in inputs)
            few = trace(model, samples, rows_of(extra, part, count), layers, nodes)
        except Exception:  # it takes no such small batch; then it is not asked again
            few = None
    warn_if_disturbed(model, whole, few)


def warn_if_disturbed(model: nn.Module, whole: Trace, few: Trace | None) -> None:
    """Warns of what drew random numbers, or of values that differ in another batch.

    Args:
        model (Module): the network.
        whole (Trace): what a batch gave.
        few (Trace, optional): what its first samples gave alone.
    """
    if _is_training(model):  # that is warned of by itself
        return
    if whole.chance:
        warn(
            "In evaluation mode too, values depend on chance: random numbers are drawn "
            f"by {', '.join(whole.chance)}. Attributions will differ from call to "
            "call; give `training=self.training`, or a generator with a seed."
        )
    elif few is not None and (layer := _first_that_differs(whole, few)):
        warn(
            f"The layer {layer!r} gives a sample other values when other samples are "
            "beside it: something takes statistics of the batch (a mean over samples, "
            "`.item()` of a maximum, a normalization). Attributions then mix samples; "
            "compute such numbers from each sample alone, or keep them in a buffer."
        )


def _is_training(model: nn.Module) -> bool:
    return any(module.training and is_stochastic(module) for module in model.modules())


def _first_that_differs(whole: Trace, few: Trace) -> str:
    """The first layer that gives the samples of ``few`` other values, beyond rounding.

    Sums that cancel, such as the mean over an instance norm, are nothing but rounding.
    """
    sizes = {name: float(x.abs().double().mean()) for name, x in whole.values.items()}
    negligible = _NEGLIGIBLE * max(sizes.values())
    for layer in whole.structure.layers:
        expected = few.values.get(layer.name)
        found = whole.values[layer.name]
        if layer.kind == "input" or not found.is_floating_point():
            continue
        if expected is None or expected.shape[1:] != found.shape[1:]:
            continue  # another path
        found = found[: len(expected)]
        tolerance = 10 * torch.finfo(found.dtype).eps ** 0.5
        change = float((found - expected).abs().double().mean())
        if change > tolerance * max(sizes[layer.name], negligible):
            return layer.name
    return ""
