r"""Which layers a model has, what feeds what, and the value of every node.

A *layer* is one call of a module that mixes features (or of a module that the user
names), an input of the model, or its output. Layer B *reads* layer A when it takes a
tensor that was computed from A through no other layer. The *value* of A is the last
tensor that

1. depends on A alone,
2. still holds A's channels, every channel of every sample equally often, and
3. lies on every path from A to its readers,

averaged to [N, C]. So the value is taken after activations, norms, dropout and pooling,
but before a residual sum, and before branches part. Nothing is read from the model's
source: the model runs, and whatever Python did is what is traced.

A recurrent or attention module is one layer, whose value is the mean of its sequence
over time, also where only a state such as an LSTM's ``h_n`` is read. Token ids are
categories and no nodes: an embedding starts anew. What cannot be followed is refused,
with an error that names the layer and the cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from captum_nif.tracing.calling import explained_tensor, unwrapped
from captum_nif.tracing.dataflow import Dataflow, Structure, Trace
from captum_nif.tracing.layout import Arrangement
from captum_nif.tracing.record import Node, Nodes, Record, Visit
from captum_nif.tracing.recorder import LayerVisit, Recorder
from captum_nif.tracing.refusals import while_compiling
from captum_nif.tracing.replay import (
    Rehearsal,
    Replay,
    Script,
    Watched,
    rehearsal,
)
from captum_nif.tracing.selection import Layers, Selection, find_layers, select
from captum_nif.tracing.undisturbed import undisturbed

__all__ = [
    "Rehearsal",
    "Script",
    "Structure",
    "Trace",
    "Watched",
    "find_layers",
    "rehearse",
    "run_watched",
    "trace",
    "watch",
]


def trace(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...] = (),
    layers: Layers = None,
    nodes: Nodes = "channel",
    overrides: Mapping[int, Tensor] | None = None,
    visits: Mapping[int, Visit] | None = None,
) -> Trace:
    """Run a model on one batch and give its layers, links and node values.

    Args:
        model (Module): the network, called as ``model(*inputs, *extra)``.
        inputs (tuple of Tensor): batches, samples along axis 0.
        extra (tuple): further arguments; constants, not nodes. What is wrapped in a
            :class:`~captum_nif.Constant` is passed on as it is.
        layers (list or dict or str, optional): see :func:`find_layers`.
        nodes (str): the nodes of a hidden layer: ``"channel"``, averaged over places,
            or ``"neuron"``, every element.
        overrides (Mapping, optional): other values, [N, channels * places], that are
            passed on in the place of those of a layer, by its entry in
            :attr:`Trace.positions` from a batch of as many samples. The trace holds
            what each layer computed from them.
        visits (Mapping, optional): see :func:`run_watched`.

    Returns:
        Trace: structure and values. Hooks are removed, and parameters, buffers, inputs
        and gradients are as before, also after an exception. A model that draws random
        numbers in ``forward`` draws them; modules that do so in training mode, such as
        dropout, leave torch's random state as it was.

    Raises:
        TypeError: if it cannot be told which of the tensors that the model returns is
            its output: of several, one must be called ``logits``.
        ValueError: if a layer named by the user takes no part in the output.
        NotImplementedError: if a layer or the output reads a tensor that cannot be
            followed; the message names the layer and the cause.

    Examples::

        >>> import torch
        >>> from captum_nif import trace
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        ... )
        >>> found = trace(net, (torch.randn(5, 4),))
        >>> found.structure.links
        (('input', '0'), ('0', '2'))
        >>> found.values["0"].shape, bool((found.values["0"] >= 0).all())
        (torch.Size([5, 3]), True)
    """
    selection = select(model, layers)
    _check_inputs(inputs)
    with undisturbed(model), torch.inference_mode(False), torch.no_grad():
        inputs = tuple(x.detach() for x in inputs)
        arguments = _fresh(inputs, extra)
        record = _record_of(model, arguments, nodes, overrides, visits)
        return _followed(record, selection, *arguments).trace(inputs)


def run_watched(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    layers: Layers,
    visits: Mapping[int, Visit],
    on_layer: LayerVisit | None = None,
) -> tuple[Tensor, Trace]:
    """Run a model with gradients, and look at values of layers as they are made.

    Args:
        model (Module): see :func:`trace`.
        inputs (tuple of Tensor): see :func:`trace`; gradients flow to those that
            require them.
        extra (tuple): see :func:`trace`.
        layers (Sequence, optional): see :func:`trace`.
        visits (Mapping): functions that are called with a tensor and its node as soon
            as it is made, by its entry in :attr:`Trace.made`.
        on_layer (callable, optional): see
            :class:`~captum_nif.tracing.recorder.Recorder`.

    Returns:
        Tensor and Trace: what the model returned, attached to the inputs, and what
        :func:`trace` gives.
    """
    selection = select(model, layers)
    _check_inputs(inputs)
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        arguments = _fresh(inputs, extra)
        record = _record_of(model, arguments, visits=visits)
        dataflow = _followed(record, selection, *arguments, on_layer)
        return dataflow.output, dataflow.trace(inputs)


def rehearse(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...] = (),
    layers: Layers = None,
) -> Rehearsal:
    """Trace a model, and learn where to meet the values of its layers again.

    Args:
        model (Module): see :func:`trace`.
        inputs (tuple of Tensor): see :func:`trace`; of one sample the axis cannot be
            told, so give two.
        extra (tuple): see :func:`trace`.
        layers (list or dict or str, optional): see :func:`trace`.

    Returns:
        Rehearsal: the trace, and what :func:`watch` takes.
    """
    selection = select(model, layers)
    _check_inputs(inputs)
    with undisturbed(model), torch.inference_mode(False), torch.no_grad():
        arguments = _fresh(tuple(x.detach() for x in inputs), extra)
        record = _record_of(model, arguments)
        found = _followed(record, selection, *arguments).trace(inputs)
        return rehearsal(record, found)


def watch(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    layers: Layers,
    looks: Mapping[int, Watched],
    script: Script | None,
    gradients: bool = True,
) -> tuple[Tensor, Structure | None]:
    """Run a model, and look at values of layers as they are made.

    By its script, which costs next to nothing; or traced again, where there is no
    script or the model takes another path. Then all looks are taken anew.

    Args:
        model (Module): see :func:`trace`.
        inputs (tuple of Tensor): see :func:`trace`; gradients flow to those that
            require them.
        extra (tuple): see :func:`trace`.
        layers (list or dict or str, optional): see :func:`trace`.
        looks (Mapping): what to look at, by the position in :attr:`Trace.made` or
            :attr:`Trace.results`, or among the states.
        script (Script, optional): from :func:`rehearse`.
        gradients (bool): whether to record what gradients need.

    Returns:
        Tensor and Structure or None: what the model returned; and layers and links, if
        it was traced.
    """
    selection = select(model, layers)
    _check_inputs(inputs)
    mode = torch.enable_grad() if gradients else torch.no_grad()
    with undisturbed(model), torch.inference_mode(False), mode:
        if script is not None:
            copies, constants = _fresh(inputs, extra)
            watched = {at: w.look for at, w in looks.items()}
            replay = Replay(script, selection.paths, watched)
            with replay:
                output = model(*copies, *constants)
            if replay.has_followed:
                return explained_tensor(output), None
            del output
        arguments = _fresh(inputs, extra)
        visits = {
            at: as_visit(len(inputs[0]), watched) for at, watched in looks.items()
        }
        record = _record_of(model, arguments, visits=visits)
        dataflow = _followed(record, selection, *arguments)
        return dataflow.output, dataflow.trace(inputs).structure


def as_visit(n: int, watched: Watched) -> Visit:
    """A look at a tensor of n samples, as :func:`trace` takes it."""

    def visit(x: Tensor, node: Node) -> None:
        labels = node.labels
        known: Arrangement | None = watched.layout
        if known is None and labels is not None:
            known = labels.arrangement(n, watched.channels)
        watched.look(x, known)

    return visit


_Arguments = tuple[tuple[Tensor, ...], tuple[Any, ...]]


def _fresh(inputs: tuple[Tensor, ...], extra: tuple[Any, ...]) -> _Arguments:
    """Copies, which in-place operations of a model may overwrite."""
    return tuple(x.clone() for x in inputs), tree_map(_copied, unwrapped(extra))


def _record_of(
    model: nn.Module,
    arguments: _Arguments,
    nodes: Nodes = "channel",
    overrides: Mapping[int, Tensor] | None = None,
    visits: Mapping[int, Visit] | None = None,
) -> Record:
    copies, constants = arguments
    leaves = [x for x in tree_leaves(constants) if isinstance(x, Tensor)]
    return Record(model, copies, leaves, nodes, overrides, visits)


def _followed(
    record: Record,
    selection: Selection,
    copies: tuple[Tensor, ...],
    constants: tuple[Any, ...],
    on_layer: LayerVisit | None = None,
) -> Dataflow:
    """Runs a model under a recorder; see :func:`trace`."""
    with Recorder(record, selection, on_layer):
        try:
            output = explained_tensor(record.held.model(*copies, *constants))
        except Exception as error:
            if type(error).__module__.startswith("torch._dynamo"):
                raise while_compiling() from error
            raise
    record.check_state()
    record.settle(output)
    dataflow = Dataflow(record, output)
    _check_all_used(selection, dataflow)
    return dataflow


def _copied(leaf: object) -> object:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _check_inputs(inputs: tuple[Tensor, ...]) -> None:
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        kinds = ", ".join(type(x).__name__ for x in inputs)
        raise TypeError(f"Inputs must be a tuple of tensors, got ({kinds}).")
    shapes = [tuple(x.shape) for x in inputs]
    if len({shape[:1] for shape in shapes}) > 1 or not all(map(all, shapes)):
        raise ValueError(
            "Inputs must be batches of as many samples, along axis 0, with at least "
            f"one sample and one feature; got shapes {', '.join(map(str, shapes))}."
        )
    if () in shapes:
        raise ValueError("An input must have samples along axis 0, got a scalar.")
    for x in inputs:
        if x.is_complex() or x.layout != torch.strided:
            raise TypeError(
                f"Inputs must be dense and real, got a {x.layout} tensor of {x.dtype}."
            )


def _check_all_used(selection: Selection, dataflow: Dataflow) -> None:
    used = {source.call.path for source in dataflow.sources if source.call}
    for module in selection.named:
        if (path := selection.paths[module]) not in used:
            raise ValueError(
                f"The layer {path!r} has no part in the model's output for these "
                "inputs: it was not called, or its result was not used."
            )
