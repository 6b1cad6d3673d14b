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
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif.layers import Layer
from captum_nif.recorder import Node, Recorder, Source

LAYER_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
"""Modules that mix features, and so are layers unless the user names others."""


@dataclass(frozen=True)
class Structure:
    """Layers in topological order, and links as (source name, target name)."""

    layers: tuple[Layer, ...]
    links: tuple[tuple[str, str], ...]

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            ValueError: if there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise ValueError(f"There is no layer {name!r}; the layers are: {names}.")

    @property
    def output(self) -> Layer:
        """The output layer."""
        return self.layers[-1]


@dataclass(frozen=True)
class Trace:
    """What one batch gave.

    Args:
        structure (Structure): layers and links.
        values (dict of Tensor): the value of each layer's nodes, [N, size], by name.
    """

    structure: Structure
    values: dict[str, Tensor]


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
        TypeError: if ``model`` is no module, or an entry of ``layers`` is of another type.
        ValueError: if an entry of ``layers`` is not in the model or lies in another one.
        NotImplementedError: if the model cannot be hooked (scripted, compiled, ...).
    """
    _refuse_opaque(model)
    paths = {module: path or "model" for path, module in model.named_modules()}
    if layers is None:
        found = {m: path for m, path in paths.items() if isinstance(m, LAYER_TYPES)}
        inner = {m for attention in found for m in attention.modules()} - set(found)
        return {m: path for m, path in found.items() if m not in inner}
    if isinstance(layers, (str, nn.Module)) or not isinstance(layers, Sequence):
        raise TypeError(
            f"`layers` must be a list of module names or modules, got {layers!r}."
        )
    chosen = [_resolve(layer, paths) for layer in layers]
    if not chosen:
        raise ValueError("`layers` is empty: name at least one layer, or pass None.")
    for outer in chosen:
        for inner_module in outer.modules():
            if inner_module is not outer and inner_module in chosen:
                raise ValueError(
                    f"The layer {paths[inner_module]!r} lies inside the layer "
                    f"{paths[outer]!r}: name one of them."
                )
    return {m: path for m, path in paths.items() if m in chosen}


def _resolve(layer: str | nn.Module, paths: Mapping[nn.Module, str]) -> nn.Module:
    if isinstance(layer, nn.Module):
        if layer not in paths:
            raise ValueError(
                f"The layer {type(layer).__name__} given in `layers` is not part of the "
                "model."
            )
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"A layer must be a module name or a module, got {type(layer).__name__}."
        )
    for module, path in paths.items():
        if path == layer:
            return module
    known = ", ".join(list(paths.values())[1:21]) + (", ..." if len(paths) > 21 else "")
    raise ValueError(f"The model has no module {layer!r}; its modules are: {known}.")


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
            module.has_uninitialized_params()
        ):
            raise ValueError(
                f"{name} has uninitialised parameters: run the model once on a batch."
            )


# --- running ---------------------------------------------------------------------------

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
    """No gradients, and the random state and the model's buffers put back after."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    indices = [d.index for d in devices if d.index is not None]
    stateful = any(module.training for module in model.modules())
    buffers = [(b, b.clone()) for b in model.buffers()] if stateful else []
    with (
        torch.random.fork_rng(devices=indices),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def trace(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...] = (),
    layers: Sequence[str | nn.Module] | None = None,
) -> Trace:
    """Run a model on one batch and give its layers, links and node values.

    Args:
        model (Module): the network, called as ``model(*inputs, *extra)``.
        inputs (tuple of Tensor): batches, samples along axis 0.
        extra (tuple): further arguments; constants, not nodes.
        layers (Sequence of str or Module, optional): see :func:`find_layers`.

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
        >>> from captum_nif.tracing import trace
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
    with lock_of(model), _left_as_it_was(model):
        # clones: fresh tensors that in-place operations of the model may overwrite
        copies = tuple(x.detach().clone() for x in inputs)
        recorder = Recorder(model, modules, copies, extra, strict=layers is None)
        raw = {f"input{i}" if len(inputs) > 1 else "input": x for i, x in enumerate(inputs)}
        with recorder:
            output = model(*copies, *extra)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The model must return one tensor, got {type(output).__name__}: wrap it "
                "in a Module that returns the tensor to be explained."
            )
        recorder.check_state()
        live = _Live(recorder, output)
        if layers is not None:
            _check_all_used(modules, live)
        return live.trace(raw)


def _check_all_used(modules: Mapping[nn.Module, str], live: _Live) -> None:
    used = {s.module for s in live.sources}
    for module, path in modules.items():
        if module not in used:
            raise ValueError(
                f"The layer {path!r} has no part in the model's output for these inputs: "
                "it was not called, or its result was not used."
            )


# --- reading the record ----------------------------------------------------------------


class _Live:
    """The part of a record that reaches the output."""

    def __init__(self, recorder: Recorder, output: Tensor) -> None:
        self.output = output
        self.end = recorder.node(output)
        if not self.end.labels:
            raise _refusal("The output", self.end.refused or "it is a constant")
        roots = {id(n): s for s in recorder.sources for n in s.roots}
        found: set[int] = set()
        self.readers: dict[int, list[Source]] = {}
        live_sources: set[int] = set()
        stack = [self.end]
        while stack:
            node = stack.pop()
            if id(node) in found:
                continue
            found.add(id(node))
            stack += node.parents
            source = roots.get(id(node))
            if source is not None and source.index not in live_sources:
                live_sources.add(source.index)
                for read in source.reads:
                    self.readers.setdefault(id(read), []).append(source)
                stack += source.reads
        self.nodes = [n for n in recorder.order if id(n) in found]
        self.sources = [s for s in recorder.sources if s.index in live_sources]
        self.inputs = [s for s in recorder.sources if s.module is None]
        self.children: dict[int, list[Node]] = {}
        for node in self.nodes:
            for parent in node.parents:
                self.children.setdefault(id(parent), []).append(node)
        self._refuse_unknown()

    def _refuse_unknown(self) -> None:
        for source in self.sources:
            for read in source.reads:
                if read.refused:
                    raise _refusal(f"The layer {source.name!r}", read.refused)
        if self.end.refused:
            raise _refusal("The output", self.end.refused)
        if self.end.labels is not None and self.end.labels.rows is None:
            raise _refusal("The output", self.end.labels.lost)

    def trace(self, raw: Mapping[str, Tensor]) -> Trace:
        layers = [
            Layer(s.name, s.size, "input", shape=tuple(raw[s.name].shape[1:]))
            for s in self.inputs
        ]
        values = {name: x.detach().flatten(1) for name, x in raw.items()}
        values = {k: v.reshape(v.shape[0], -1) for k, v in values.items()}
        names = {s.index: s.name for s in self.inputs}
        links: list[tuple[str, str]] = []
        shape = tuple(self.output.shape[1:])
        merged = False
        for source in self.sources:
            if source.module is None:
                continue
            node, value = self.value(source)
            merged = node is self.end and self._is_output(source)
            kind, name = "hidden", source.name
            if merged:
                kind, name = "output", name.replace("output:0", "output")
                value = self.output.reshape(value.shape)
            node_shape = shape if merged else (source.size,)
            layers.append(Layer(name, source.size, kind, shape=node_shape))
            names[source.index] = name
            values[name] = value.detach()
            reads = frozenset().union(*(n.sources for n in source.reads))
            links += [(names[i], name) for i in sorted(reads)]
        if not merged:
            flat = self.output.detach().reshape(self.output.shape[0], -1)
            layers.append(Layer("output", flat.shape[1], "output", shape=shape))
            values["output"] = flat
            links += [(names[i], "output") for i in sorted(self.end.sources)]
        return Trace(Structure(tuple(layers), tuple(links)), values)

    def value(self, source: Source) -> tuple[Node | None, Tensor]:
        """The version whose averages are the values of a layer's nodes."""
        region = [n for n in self.nodes if n.sources == {source.index}]
        inside = {id(n) for n in region}
        # nodes on every path from a node to the readers, for each node of the region
        common: dict[int, set[int]] = {}
        for node in reversed(region):
            children = self.children.get(id(node), [])
            leaves = (
                node is self.end
                or id(node) in self.readers
                or any(id(c) not in inside for c in children)
            )
            common[id(node)] = {id(node)}
            if not leaves:
                common[id(node)] |= set.intersection(*(common[id(c)] for c in children))
        starts = [common[id(root)] for root in source.roots if id(root) in inside]
        shared = set.intersection(*starts)
        for node in reversed(region):
            if id(node) in shared and node.value is not None:
                return node, node.value
        first = source.roots[0]
        if first.value is not None:
            return None, first.value
        lost = first.labels.lost if first.labels else ""
        raise _refusal(
            f"The layer {source.name!r}",
            lost or "it gives values for only some of the samples",
            subject="the result of",
        )

    def _is_output(self, source: Source) -> bool:
        """Whether the output is the layer's value, one element a channel, in order."""
        labels, n = self.end.labels, self.output.shape[0]
        assert labels is not None
        index = labels.pairs(source.size)
        return index is not None and torch.equal(
            index, torch.arange(n * source.size, device=index.device)
        )


def _refusal(reader: str, why: str, subject: str = "") -> NotImplementedError:
    if subject:
        text = f"{reader} cannot be a layer of the graph: {why}."
    else:
        text = f"{reader} reads a tensor that cannot be followed: {why}."
    return NotImplementedError(
        text + " Naming the module around it in `layers=` makes it one layer."
    )
