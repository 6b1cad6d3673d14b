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

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from captum_nif.tracing.dataflow import Dataflow, Structure, Trace
from captum_nif.tracing.layer_types import layer_type_of
from captum_nif.tracing.record import Node, Nodes, Record, Visit
from captum_nif.tracing.recorder import LayerVisit, Recorder
from captum_nif.tracing.replay import Replay, Script, Watched, script_of
from captum_nif.tracing.undisturbed import undisturbed

__all__ = [
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


def find_layers(
    model: nn.Module, layers: Sequence[str | nn.Module] | None = None
) -> dict[nn.Module, str]:
    """The modules that are layers, with their paths in the model.

    Args:
        model (Module): the network.
        layers (Sequence of str or Module, optional): the modules to take as layers, by
            path or by object. Default: every module of :data:`LAYER_TYPES`.

    Returns:
        dict of Module to str: in the order of ``model.named_modules()``.

    Raises:
        TypeError: if ``model`` is no module, or an entry of ``layers`` of another type.
        ValueError: if an entry of ``layers`` is not in the model or lies in another.
        NotImplementedError: if the model cannot be hooked (scripted, compiled, ...).
    """
    _refuse_opaque(model)
    paths = {module: path or "model" for path, module in model.named_modules()}
    if layers is None:
        found = {module for module in paths if layer_type_of(module) is not None}
        # what lies inside a layer, as an attention's projection, is part of it
        found -= {m for outer in found for m in outer.modules() if m is not outer}
        return {m: path for m, path in paths.items() if m in found}
    if isinstance(layers, (str, nn.Module)) or not isinstance(layers, Sequence):
        raise TypeError(
            f"`layers` must be a list of module names or modules, got {layers!r}."
        )
    chosen = [_resolve(layer, model) for layer in layers]
    if not chosen:
        raise ValueError("`layers` is empty: name at least one layer, or pass None.")
    for outer in chosen:
        for inner in outer.modules():
            if inner is not outer and inner in chosen:
                raise ValueError(
                    f"The layer {paths[inner]!r} lies inside the layer "
                    f"{paths[outer]!r}: name one of them."
                )
    return {m: path for m, path in paths.items() if m in chosen}


def _resolve(layer: str | nn.Module, model: nn.Module) -> nn.Module:
    # a module shared by two parents answers to both paths
    paths: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        if not any(layer is module for module in paths.values()):
            raise ValueError(
                f"The layer {type(layer).__name__} given in `layers` is not part of "
                "the model."
            )
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"A layer must be a module name or a module, got {type(layer).__name__}."
        )
    if layer == "model" and layer not in paths:  # the name of the whole in the graph
        return model
    if not layer or layer not in paths:
        names = [path for path in paths if path]
        known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise ValueError(
            f"The model has no module {layer!r}; its modules are: {known or 'none'}."
        )
    return paths[layer]


def _refuse_opaque(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            "NIF follows values from layer to layer, so it needs the network itself, a "
            f"torch.nn.Module; got {type(model).__name__}. Wrap a function in a Module "
            "whose `forward` calls it."
        )
    for path, module in model.named_modules():
        name = f"{path or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise NotImplementedError(
                f"{name} is a scripted or traced module, which layer hooks cannot see "
                "into: pass the original Python module."
            )
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or hasattr(module, "_orig_mod"):
            raise NotImplementedError(
                f"{name} is compiled, and layer hooks would be compiled away: pass the "
                "original module (`compiled._orig_mod`)."
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise NotImplementedError(
                f"{name} runs its replicas in threads on several devices: pass the "
                "wrapped module (`parallel.module`)."
            )
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and (
            module.has_uninitialized_params()  # type: ignore[misc]
        ):
            raise ValueError(
                f"{name} has uninitialised parameters: run the model once on a batch."
            )


# --- running --------------------------------------------------------------------------


def trace(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...] = (),
    layers: Sequence[str | nn.Module] | None = None,
    nodes: Nodes = "channel",
    overrides: Mapping[int, Tensor] | None = None,
    visits: Mapping[int, Visit] | None = None,
) -> Trace:
    """Run a model on one batch and give its layers, links and node values.

    Args:
        model (Module): the network, called as ``model(*inputs, *extra)``.
        inputs (tuple of Tensor): batches, samples along axis 0.
        extra (tuple): further arguments; constants, not nodes.
        layers (Sequence of str or Module, optional): see :func:`find_layers`.
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
        TypeError: if the model returns anything but a tensor.
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
    modules = find_layers(model, layers)
    _check_inputs(inputs)
    with undisturbed(model), torch.inference_mode(False), torch.no_grad():
        # copies: fresh tensors that in-place operations of the model may overwrite
        copies = tuple(x.detach().clone() for x in inputs)
        constants = tree_map(_copied, extra)
        record = _new_record(model, copies, constants, nodes, overrides, visits)
        strict = layers is None
        return _followed(record, modules, copies, constants, strict).trace(inputs)


def run_watched(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    layers: Sequence[str | nn.Module] | None,
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
    modules = find_layers(model, layers)
    _check_inputs(inputs)
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        copies = tuple(x.clone() for x in inputs)
        constants = tree_map(_copied, extra)
        record = _new_record(model, copies, constants, "channel", None, visits)
        strict = layers is None
        dataflow = _followed(record, modules, copies, constants, strict, on_layer)
        return dataflow.output, dataflow.trace(inputs)


def rehearse(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...] = (),
    layers: Sequence[str | nn.Module] | None = None,
) -> tuple[Trace, Script | None]:
    """Trace a model, and learn where to meet the values of its layers again.

    Args:
        model (Module): see :func:`trace`.
        inputs (tuple of Tensor): see :func:`trace`; two samples are enough.
        extra (tuple): see :func:`trace`.
        layers (Sequence, optional): see :func:`trace`.

    Returns:
        Trace and Script: see :func:`trace` and :func:`watch`.
    """
    modules = find_layers(model, layers)
    _check_inputs(inputs)
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        leaves = [x.detach().clone() for x in inputs]
        copies = tuple(x.requires_grad_(x.is_floating_point()).clone() for x in leaves)
        constants = tree_map(_copied, extra)
        record = _new_record(model, copies, constants)
        strict = layers is None
        dataflow = _followed(record, modules, copies, constants, strict)
        found = dataflow.trace(inputs)
        return found, script_of(record, found)


def watch(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    layers: Sequence[str | nn.Module] | None,
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
        layers (Sequence, optional): see :func:`trace`.
        looks (Mapping): what to look at, by the position in :attr:`Trace.made` or
            :attr:`Trace.results`.
        script (Script, optional): from :func:`rehearse`.
        gradients (bool): whether to record what gradients need.

    Returns:
        Tensor and Structure or None: what the model returned; and layers and links, if
        it was traced.
    """
    modules = find_layers(model, layers)
    _check_inputs(inputs)
    strict = layers is None
    mode = torch.enable_grad() if gradients else torch.no_grad()
    with undisturbed(model), torch.inference_mode(False), mode:
        if script is not None:
            copies, constants = _fresh(inputs, extra)
            replay = Replay(script, modules, {at: w.look for at, w in looks.items()})
            with replay:
                output = model(*copies, *constants)
            if replay.has_followed and isinstance(output, Tensor):
                return output, None
            del output
        copies, constants = _fresh(inputs, extra)
        n = len(inputs[0])
        visits = {at: _visit(n, watched) for at, watched in looks.items()}
        record = _new_record(model, copies, constants, "channel", None, visits)
        dataflow = _followed(record, modules, copies, constants, strict)
        return dataflow.output, dataflow.trace(inputs).structure


def _fresh(
    inputs: tuple[Tensor, ...], extra: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Copies, which in-place operations of a model may overwrite."""
    return tuple(x.clone() for x in inputs), tree_map(_copied, extra)


def _visit(n: int, watched: Watched) -> Visit:
    def visit(x: Tensor, node: Node) -> None:
        labels = node.labels
        known = None if labels is None else labels.arrangement(n, watched.channels)
        watched.look(x, known)

    return visit


def _new_record(
    model: nn.Module,
    copies: tuple[Tensor, ...],
    constants: tuple[Any, ...],
    nodes: Nodes = "channel",
    overrides: Mapping[int, Tensor] | None = None,
    visits: Mapping[int, Visit] | None = None,
) -> Record:
    leaves = [x for x in tree_leaves(constants) if isinstance(x, Tensor)]
    return Record(model, copies, leaves, nodes, overrides, visits)


def _followed(
    record: Record,
    modules: Mapping[nn.Module, str],
    copies: tuple[Tensor, ...],
    constants: tuple[Any, ...],
    strict: bool,
    on_layer: LayerVisit | None = None,
) -> Dataflow:
    """Runs a model under a recorder; see :func:`trace`."""
    with Recorder(record, modules, strict, on_layer=on_layer):
        output = record.model(*copies, *constants)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The model must return one tensor, got {type(output).__name__}: wrap it "
            "in a Module that returns the tensor to be explained."
        )
    record.check_state()
    record.settle(output)
    dataflow = Dataflow(record, output)
    if not strict:
        _check_all_used(modules, dataflow)
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


def _check_all_used(modules: Mapping[nn.Module, str], dataflow: Dataflow) -> None:
    used = {source.call.path for source in dataflow.sources if source.call}
    for path in modules.values():
        if path not in used:
            raise ValueError(
                f"The layer {path!r} has no part in the model's output for these "
                "inputs: it was not called, or its result was not used."
            )
