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

import contextlib
import random
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from captum_nif.tracing.dataflow import Dataflow, Structure, Trace
from captum_nif.tracing.layer_types import layer_type_of
from captum_nif.tracing.record import Nodes, Record
from captum_nif.tracing.recorder import Recorder

__all__ = ["Structure", "Trace", "find_layers", "lock_of", "trace"]


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

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = (
    weakref.WeakKeyDictionary()
)
_LOCKS_LOCK = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock that all who hook this model share: hooks belong to the module."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """No gradients, and the random states and the model's buffers put back after."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    buffers = [
        (module, key, buffer, buffer.clone())
        for module in model.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    with (
        torch.random.fork_rng([d.index for d in devices if d.index is not None]),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for module, key, buffer, before in buffers:
                module._buffers[key] = buffer
                # written only if it changed: another thread may be reading it
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def trace(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...] = (),
    layers: Sequence[str | nn.Module] | None = None,
    nodes: Nodes = "channel",
    overrides: Mapping[int, Tensor] | None = None,
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

    Returns:
        Trace: structure and values. Hooks are removed, and parameters, buffers, inputs,
        gradients and random states are as before, also after an exception.

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
    with lock_of(model), _left_as_it_was(model):
        # copies: fresh tensors that in-place operations of the model may overwrite
        copies = tuple(x.detach().clone() for x in inputs)
        constants = tree_map(_copied, extra)
        leaves = [x for x in tree_leaves(constants) if isinstance(x, Tensor)]
        record = Record(model, copies, leaves, nodes, overrides)
        with Recorder(record, modules, strict=layers is None):
            output = model(*copies, *constants)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The model must return one tensor, got {type(output).__name__}: wrap "
                "it in a Module that returns the tensor to be explained."
            )
        record.check_state()
        record.settle(output)
        dataflow = Dataflow(record, output)
        if layers is not None:
            _check_all_used(modules, dataflow)
        return dataflow.trace(inputs)


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
