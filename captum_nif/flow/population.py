r"""Node values of a population: batches streamed through the model, averages kept.

A :class:`Population` is what probabilities are estimated from: the value of every node
for every background sample. Where channels are the nodes only their averages are held
(and the inputs themselves, which are nodes one by one), never a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif._messages import add_note, counted
from captum_nif.flow.batches import Batches
from captum_nif.flow.checks import check_inputs, check_same
from captum_nif.flow.disturbances import watch
from captum_nif.graph.elements import Layer
from captum_nif.tracing.origins import average
from captum_nif.tracing.record import Nodes
from captum_nif.tracing.selection import Layers
from captum_nif.tracing.tracer import Structure, Trace, trace

Modules = Layers
"""The modules that are layers; see :func:`captum_nif.tracing.find_layers`."""


@dataclass(frozen=True)
class Population:
    """Node values of N samples.

    Args:
        structure (Structure): layers and links.
        values (dict of Tensor): the values of each layer's nodes, [N, size], by name.
        dtypes (tuple of torch.dtype): of the model's inputs.
        shapes (tuple of torch.Size): of a sample of the model's inputs.
        positions (dict of int): see :class:`~captum_nif.Trace`.
        channels_last (frozenset of str): see :class:`~captum_nif.Trace`.
        batches (list): the rows that ran through the model at a time, and the further
            arguments of that call.
        modules (list of str or Module, optional): what is a layer.
    """

    structure: Structure
    values: dict[str, Tensor]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[torch.Size, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    channels_last: frozenset[str] = frozenset()
    batches: list[tuple[slice, tuple[Any, ...]]] = field(default_factory=list)
    modules: Modules = None

    @property
    def size(self) -> int:
        """Number of samples N."""
        return len(next(iter(self.values.values())))

    @property
    def inputs(self) -> list[Layer]:
        """The model's inputs."""
        return [layer for layer in self.structure.layers if layer.kind == "input"]

    def subset(self, rows: Tensor) -> Population:
        """Some of the samples, by their ascending numbers."""
        values = {name: x[rows.to(x.device)] for name, x in self.values.items()}
        batches, start = [], 0
        for part, extra in self.batches:
            inside = rows[(rows >= part.start) & (rows < part.stop)] - part.start
            if not len(inside):
                continue
            along = tuple(
                arg[inside.to(arg.device)]
                if isinstance(arg, Tensor) and arg.dim()
                else arg
                for arg in extra
            )
            batches.append((slice(start, start + len(inside)), along))
            start += len(inside)
        return replace(self, values=values, batches=batches)


def run_population(
    model: nn.Module,
    batches: Batches,
    layers: Modules = None,
    what: str = "the background",
    nodes: Nodes = "channel",
    is_watched: bool = False,
) -> Population:
    """Streams batches through a model and collects the value of every node.

    Args:
        model (Module): the network.
        batches (iterable): pairs of the inputs and the further arguments of one call.
        layers (Sequence of str or Module, optional): see
            :func:`captum_nif.tracing.find_layers`.
        what (str): what the samples are called in messages.
        nodes (str): see :func:`captum_nif.trace`.
        is_watched (bool): whether to warn if values depend on chance or on the samples
            of a batch, of which two are run alone to see that.

    Returns:
        Population: the values of all batches, in order.

    Raises:
        TypeError: if the batches hold no tensors.
        ValueError: if there are none, if values are not finite, if the shapes of
            samples differ, or if the model takes another path for a later batch.
        Exception: what the model itself raises, with a note on what was run.
    """
    first: tuple[Tensor, ...] = ()
    traces: list[Trace] = []
    ran: list[tuple[slice, tuple[Any, ...]]] = []
    rows = 0
    for inputs, extra in batches:
        first = first or inputs
        check_alike(first, inputs, what)
        found = _run_batch(model, inputs, extra, layers, what, nodes)
        if is_watched and not traces:
            watch(model, inputs, extra, layers, nodes, found)
        traces.append(found)
        check_same(traces[0].structure, found.structure, what)
        ran.append((slice(rows, rows + len(inputs[0])), extra))
        rows += len(inputs[0])
    if not traces:
        raise ValueError(
            f"{what.capitalize()} is empty: probabilities are estimated from samples."
        )
    # Name by name, so that no more than one layer is held both in parts and whole.
    names = list(traces[0].values)
    values = {name: torch.cat([x.values.pop(name) for x in traces]) for name in names}
    dtypes, shapes = zip(*((x.dtype, x.shape[1:]) for x in first), strict=True)
    return Population(
        traces[0].structure,
        values,
        dtypes,
        shapes,
        traces[0].positions,
        traces[0].channels_last,
        ran,
        layers,
    )


def places(layer: Layer) -> int:
    """Places in the map of a layer: 1 for a vector, height times width for an image."""
    return math.prod(layer.shape[1:])


def channel_averages(
    structure: Structure, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values of hidden layers, [N, channels * places], averaged to [N, channels].

    As :func:`captum_nif.trace` averages them; those of inputs and of the output
    stay.
    """
    maps = {x.name: x.shape[0] for x in structure.layers if x.kind == "hidden"}
    return {
        name: average(x.view(len(x), maps[name], -1)) if name in maps else x
        for name, x in values.items()
    }


def averaged(structure: Structure) -> Structure:
    """A structure of neurons as one of channels."""
    layers = tuple(
        replace(layer, size=layer.shape[0], shape=layer.shape[:1])
        if layer.kind == "hidden"
        else layer
        for layer in structure.layers
    )
    return Structure(layers, structure.links)


def check_alike(
    first: tuple[Tensor, ...], inputs: tuple[Tensor, ...], what: str
) -> None:
    """Refuses a batch of other inputs than the first, before the model sees it."""
    expected, shapes = ([tuple(x.shape[1:]) for x in xs] for xs in (first, inputs))
    if shapes != expected:
        raise ValueError(
            f"Samples of {what} have shapes {shapes} in one batch, expected {expected} "
            "as in the first: give samples of one shape."
        )
    if [x.dtype for x in inputs] != [x.dtype for x in first]:
        raise ValueError(
            f"The inputs of {what} have dtypes {[str(x.dtype) for x in inputs]} in "
            f"one batch and {[str(x.dtype) for x in first]} in another: give one dtype."
        )


def _run_batch(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    layers: Modules,
    what: str,
    nodes: Nodes,
) -> Trace:
    """Traces one batch, with every value checked to be finite."""
    check_inputs(model, inputs, what)
    try:
        found = trace(model, inputs, extra, layers, nodes)
    except Exception as error:  # the model's own, whose type means something
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        add_note(error, f"While running {what}, inputs of shape {shapes}.")
        raise
    for name, value in found.values.items():
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            node = int((~finite).any(0).nonzero()[0])
            raise ValueError(
                f"The layer {name!r} gives NaN or infinity for {what} (first at node "
                f"{node}): probabilities cannot be estimated from that. Check the "
                "model's weights and the scale of its inputs."
            )
    return found


def check_samples(samples: tuple[Tensor, ...], population: Population) -> None:
    """Refuses samples of another shape or dtype than the background's."""
    expected = list(zip(population.inputs, population.dtypes, strict=True))
    if len(samples) != len(expected):
        raise ValueError(
            f"Got {counted(len(samples), 'input')}, and the background has "
            f"{len(expected)}: give one tensor for each input of the model."
        )
    for i, (x, (layer, dtype)) in enumerate(zip(samples, expected, strict=True)):
        shape = tuple(x.shape[1:]) or (1,)
        if shape != layer.shape:
            raise ValueError(
                f"Samples of input {i} have shape {shape}, and those of the background "
                f"{layer.shape}: give samples of one shape."
            )
        if x.dtype != dtype:
            raise ValueError(
                f"Input {i} is {x.dtype}, and the background was {dtype}: convert one "
                "of them."
            )
