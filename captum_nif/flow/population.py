r"""Node values of a population: batches streamed through the model, averages kept.

A :class:`Population` is what probabilities are estimated from: the value of every node
for every background sample. Where channels are the nodes only their averages are held
(and the inputs themselves, which are nodes one by one), never a feature map.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from captum._utils.progress import progress
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_nif.flow.checks import (
    check_inputs,
    check_same,
    check_sizes,
    counted,
    is_stochastic,
)
from captum_nif.graph.elements import Layer
from captum_nif.tracing.origins import average
from captum_nif.tracing.record import Nodes
from captum_nif.tracing.tracer import Structure, Trace, trace

BATCH_SIZE = 64
"""Samples in one forward pass, where the caller leaves the choice open."""

Batches = Iterable[tuple[tuple[Tensor, ...], tuple[Any, ...]]]
"""Pairs of the model's inputs and its further arguments, a batch of each."""

Modules = Sequence[str | nn.Module] | None
"""The modules that are layers; see :func:`captum_nif.tracing.tracer.find_layers`."""

Background = Tensor | tuple[Tensor, ...] | Iterable[Any]


@dataclass(frozen=True)
class Population:
    """Node values of N samples.

    Args:
        structure (Structure): layers and links.
        values (dict of Tensor): the values of each layer's nodes, [N, size], by name.
        dtypes (tuple of torch.dtype): of the model's inputs.
        shapes (tuple of torch.Size): of a sample of the model's inputs.
        positions (dict of int): see :class:`~captum_nif.Trace`.
        batches (list): the rows that ran through the model at a time, and the further
            arguments of that call.
        modules (list of str or Module, optional): what is a layer.
    """

    structure: Structure
    values: dict[str, Tensor]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[torch.Size, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
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
) -> Population:
    """Streams batches through a model and collects the value of every node.

    Args:
        model (Module): the network.
        batches (iterable): pairs of the inputs and the further arguments of one call.
        layers (Sequence of str or Module, optional): see
            :func:`captum_nif.tracing.tracer.find_layers`.
        what (str): what the samples are called in messages.
        nodes (str): see :func:`captum_nif.trace`.

    Returns:
        Population: the values of all batches, in order.

    Raises:
        TypeError: if the batches hold no tensors.
        ValueError: if there are none, if values are not finite, if the shapes of
            samples differ or the model cannot take them, or if it takes another path
            for a later batch.
    """
    first: tuple[Tensor, ...] = ()
    traces: list[Trace] = []
    ran: list[tuple[slice, tuple[Any, ...]]] = []
    rows = 0
    for inputs, extra in batches:
        first = first or inputs
        _check_alike(first, inputs, what)
        found = _run_batch(model, inputs, extra, layers, what, nodes)
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
    structure, positions = traces[0].structure, traces[0].positions
    return Population(structure, values, dtypes, shapes, positions, ran, layers)


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


def _check_alike(
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
    except RuntimeError as error:
        # Torch's complaint about an operand. Its subclasses mean something else: that
        # a model is not supported (NotImplementedError), that memory ran out.
        if type(error) is not RuntimeError:
            raise
        raise ValueError(
            f"While running {what}, inputs of shape "
            f"{', '.join(str(tuple(x.shape)) for x in inputs)}, through the model: "
            f"{error}"
        ) from error
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


def batches_of(
    model: nn.Module,
    background: Background,
    extra: tuple[Any, ...] = (),
    batch_size: int = BATCH_SIZE,
    show_progress: bool = False,
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Any, ...]]]:
    """Cuts a background into pairs of model inputs and further arguments.

    Args:
        model (Module): the network, whose ``forward`` tells the number of inputs.
        background (Tensor, tuple of Tensor, or iterable): all samples at once, or an
            iterable of batches (tensors, tuples or lists of tensors) of which only the
            first ones, the model's inputs, are used.
        extra (tuple): further arguments of the model; tensors follow the samples.
        batch_size (int): samples in a batch, where all come at once.
        show_progress (bool): whether to draw a progress bar.

    Raises:
        TypeError: if a batch is no tensor and no tuple or list of tensors.
        ValueError: if there are fewer tensors than inputs or it cannot be told which
            are inputs, if inputs differ in samples, or if ``extra`` holds tensors that
            cannot be cut along with a stream.
    """
    device = next((p.device for p in model.parameters()), None)
    if isinstance(background, Tensor):
        background = (background,)
    if isinstance(background, tuple) and all(isinstance(x, Tensor) for x in background):
        _check_arity(model, len(background), len(extra))
        check_sizes(background, "the background")
        cuts: Iterable[Any] = cut(background, extra, batch_size)
        total: int | None = math.ceil(len(background[0]) / batch_size)
    else:
        cuts = _streamed(model, background, extra)
        total = len(background) if isinstance(background, Sized) else None
    with progress(
        cuts, desc="NIF background", total=total, disable=not show_progress
    ) as bar:
        for inputs, further in bar:
            # what holds no values cannot be moved, and is refused where it is run
            yield tuple(x if x.is_meta else x.to(device) for x in inputs), further


def cut(
    inputs: tuple[Tensor, ...], extra: tuple[Any, ...], batch_size: int
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Any, ...]]]:
    """Cuts inputs, and the further arguments that follow them, into batches."""
    n = len(inputs[0])
    for arg in extra:
        if isinstance(arg, Tensor) and arg.dim() > 0 and arg.shape[0] != n:
            raise ValueError(
                f"A tensor of shape {tuple(arg.shape)} in `additional_forward_args` "
                f"does not follow the {n} samples of the inputs: its axis 0 must have "
                "that size."
            )
    for start in range(0, n, batch_size):
        part = slice(start, min(start + batch_size, n))
        yield (
            tuple(x[part] for x in inputs),
            tuple(
                arg[part] if isinstance(arg, Tensor) and arg.dim() else arg
                for arg in extra
            ),
        )


def _streamed(
    model: nn.Module, background: Iterable[Any], extra: tuple[Any, ...]
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Any, ...]]]:
    if not isinstance(background, Iterable) or isinstance(
        background, (str, Mapping, np.ndarray)
    ):
        raise TypeError(
            "The background must be a tensor, a tuple of tensors (one per input), or "
            "an iterable of batches such as a DataLoader; got "
            f"{type(background).__name__}.{_advice(background)}"
        )
    if any(isinstance(arg, Tensor) and arg.dim() for arg in extra):
        raise ValueError(
            "`additional_forward_args` holds a tensor, which cannot be cut along with "
            "a stream of batches: pass the background as a tuple of tensors."
        )
    for batch in background:
        tensors = (batch,) if isinstance(batch, Tensor) else batch
        if not isinstance(tensors, (tuple, list)):
            raise TypeError(
                "A batch of the background must be a tensor, or a tuple or list that "
                f"begins with the model's inputs; got {type(batch).__name__}."
                f"{_advice(batch)}"
            )
        inputs = tuple(tensors[: _inputs_among(len(tensors), model, len(extra))])
        if not inputs or not all(isinstance(x, Tensor) for x in inputs):
            raise TypeError(
                "A batch of the background must begin with the model's inputs as "
                f"tensors; got {[type(x).__name__ for x in inputs]}."
            )
        check_sizes(inputs, "the background")
        yield inputs, extra


def _advice(found: object) -> str:
    """What to do with data of a type that is not taken."""
    if isinstance(found, np.ndarray):
        return " Convert it with `torch.from_numpy(array)`."
    if isinstance(found, Dataset):
        return f" Wrap it: `DataLoader(dataset, batch_size={BATCH_SIZE})`."
    if isinstance(found, Mapping):
        return " Map it, for example `((batch['x'],) for batch in loader)`."
    return ""


def _inputs_among(available: int, model: nn.Module, n_extra: int) -> int:
    """How many of the tensors of a batch, labels included, are the model's inputs."""
    parameters = _parameters_of(model)
    if parameters is None:
        if available > 1:
            raise ValueError(
                f"A batch of the background holds {counted(available, 'tensor')}, and "
                "the number of inputs cannot be told from `*args` of the model's "
                "`forward`: pass a tuple of tensors, or map the loader to inputs alone."
            )
        return available
    required = sum(p.default is p.empty for p in parameters)
    # further arguments may stand for required parameters or for optional ones
    most = max(min(required, len(parameters) - n_extra), 1)
    fewest = max(required - n_extra, 1)
    if available < fewest:
        raise ValueError(
            f"A batch of the background holds {counted(available, 'tensor')}, and the "
            f"model takes {counted(fewest, 'input')}: give batches that hold them all, "
            "or, where each tensor is one input, pass a tuple instead of a list."
        )
    if fewest < min(most, available):
        raise ValueError(
            f"A batch of the background holds {counted(available, 'tensor')}, of which "
            f"the first {fewest} to {most} may be inputs, given {n_extra} "
            "`additional_forward_args`: pass the background as a tuple of tensors."
        )
    return fewest


def _parameters_of(model: nn.Module) -> list[inspect.Parameter] | None:
    """The positional parameters of ``forward``; None if it takes any number."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _check_arity(model: nn.Module, n_inputs: int, n_extra: int) -> None:
    parameters = _parameters_of(model)
    if parameters is not None and n_inputs + n_extra > len(parameters):
        raise ValueError(
            f"A tuple of {counted(n_inputs, 'tensor')} means "
            f"{counted(n_inputs, 'input')}, but the model's `forward` takes "
            f"{counted(len(parameters), 'argument')}. Leave labels out, or pass a "
            "DataLoader, of whose batches only the inputs are used."
        )


def fingerprint(model: nn.Module) -> int:
    """A checksum of the model's parameters, buffers, devices, dtypes and modes."""
    modes = [m.training for m in model.modules() if is_stochastic(m)]
    state = zlib.crc32(bytes(modes))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        described = f"{name} {tensor.dtype} {tensor.device} {tuple(tensor.shape)}"
        state = zlib.crc32(described.encode(), state)
        if tensor.is_meta:  # no content
            continue
        content = tensor.detach().cpu().contiguous().flatten()
        state = zlib.crc32(content.view(torch.uint8).numpy().data, state)
    return state
