r"""Watch one forward pass: which tensors each layer made, read, and in between.

Layer hooks see the layers, a ``TorchFunctionMode`` sees every torch function between
them. Together they grow a graph of :class:`Node`, one for each version of each tensor
that depends on the inputs (an in-place operation makes a new version, also of the views
that share its memory). :mod:`captum_nif.tracing` reads layers, links and node values off
this graph.

Per-channel averages are taken the moment a tensor exists, so that later in-place
operations cannot spoil them and no feature map outlives the model's own use of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from captum_nif.provenance import (
    MIXING_FUNCTIONS,
    Labels,
    average,
    carries_nothing,
    function_name,
    layer_output,
    propagate,
    row_axes,
    rows_of_batch,
)

# Functions whose results may hold values of a traced tensor that left torch before.
_ESCAPES = frozenset(["numpy", "tolist", "item", "array", "dlpack", "float", "int"])
_RETURNS = frozenset(["from_numpy", "tensor", "as_tensor", "asarray", "from_dlpack"])


@dataclass(eq=False)
class Source:
    """What values start from: a model input or one call of a layer.

    Args:
        name (str): the layer's name in the graph.
        index (int): position in the order of execution.
        size (int): number of channels.
        module (Module or None): the layer's module, None for an input.
        reads (list of Node): the tensors that the call took.
        roots (list of Node): the tensors that it returned, the main one first.
    """

    name: str
    index: int
    size: int = 0
    module: nn.Module | None = None
    reads: list[Node] = field(default_factory=list)
    roots: list[Node] = field(default_factory=list)


@dataclass(eq=False)
class Node:
    """One version of one tensor.

    Args:
        sources (frozenset of int): indices of the sources that it depends on.
        parents (tuple of Node): the versions that it was computed from.
        labels (Labels or None): sample and channel of its elements; None for constants.
        value (Tensor or None): mean per sample and channel, [N, C], if it depends on one
            source alone and still holds that source's channels.
        moved (bool): whether it only rearranges its first parent.
        weight (str): name of the parameter that it is computed from, if any.
        refused (str): why nothing that reads this tensor can be traced.
    """

    sources: frozenset[int] = frozenset()
    parents: tuple[Node, ...] = ()
    labels: Labels | None = None
    value: Tensor | None = None
    weight: str = ""
    refused: str = ""


_CONSTANT = Node()


class Recorder(TorchFunctionMode):
    """Records one forward pass of ``model``; use as a context manager around it.

    Args:
        model (Module): the model to be run.
        layers (Mapping): the modules that are layers, with their names.
        inputs (tuple of Tensor): what the model will be called with; the same objects.
        extra (tuple): its further arguments, treated as constants.
        strict (bool): refuse parameters that mix features outside any layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[nn.Module, str],
        inputs: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        strict: bool,
    ) -> None:
        super().__init__()
        self.sources: list[Source] = []
        self.order: list[Node] = []
        self._layers = layers
        self._strict = strict
        self._batch = inputs[0].shape[0]
        self._nodes = WeakTensorKeyDictionary()
        self._weights = {id(p): name for name, p in model.named_parameters()}
        self._attributes = _tensor_attributes(model)
        self._constants = {id(t) for t in tree_leaves(extra) if isinstance(t, Tensor)}
        self._read_attributes: set[str] = set()
        self._model = model
        self._depth = 0
        self._escaped = False
        self._calls: dict[str, int] = {}
        self._stack: list[Source | None] = []
        self._handles: list[RemovableHandle] = []
        self._thread = threading.get_ident()
        self._versions: list[tuple[Tensor, int]] = []
        for i, x in enumerate(inputs):
            name = "input" if len(inputs) == 1 else f"input{i}"
            source = Source(name, i, x[0].numel())
            self.sources.append(source)
            root = Node(frozenset([i]), labels=rows_of_batch(x))
            self._add(x, root)
            source.roots.append(root)

    def __enter__(self) -> Recorder:
        for module in self._layers:
            self._handles += [
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after),
            ]
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def node(self, x: Tensor) -> Node:
        """The node of a tensor that a function or a layer reads."""
        known = self._nodes.get(x)
        if known is not None:
            return known  # type: ignore[no-any-return]
        if id(x) in self._weights:
            return Node(weight=self._weights[id(x)])
        if id(x) in self._attributes:
            self._read_attributes.add(self._attributes[id(x)])
            return _CONSTANT
        if id(x) in self._constants or self._batch == 1:
            return _CONSTANT
        if x.dim() > 0 and x.shape[0] == self._batch:
            return Node(refused=_unknown(x))
        return _CONSTANT

    def check_state(self) -> None:
        """Refuse models that hand values of one call on to the next."""
        for tensor_id, name in _tensor_attributes(self._model).items():
            if name in self._read_attributes:
                for x, node in self._nodes.items():
                    if id(x) == tensor_id and node.sources:
                        raise NotImplementedError(
                            f"{name!r} is read and then overwritten with values that "
                            "depend on the inputs: the model keeps state between calls, "
                            "so samples of one batch would explain another. Reset the "
                            "state in `forward`, or wrap the stateful part in a module "
                            "and name it in `layers=`."
                        )

    # --- layers ------------------------------------------------------------------

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self._depth += 1
        if self._depth > 1:
            return
        path = self._layers[module]
        leaves = tree_leaves((args, kwargs))
        packed = any(isinstance(leaf, PackedSequence) for leaf in leaves)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        reads = [self.node(t) for t in tensors]
        for t, node in zip(tensors, reads, strict=True):
            if t.is_complex() or t.layout != torch.strided:
                node.refused = f"it is a {t.layout} tensor of {t.dtype}"
        if packed:
            reads.append(Node(refused="it is a PackedSequence: pad the sequences"))
        if not any(n.labels is not None or n.refused for n in reads):
            self._stack.append(None)  # computed from constants alone: no node
            return
        count = self._calls.get(path, 0)
        self._calls[path] = count + 1
        source = Source(_call_name(path, count), len(self.sources), module=module)
        lookup = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        # token numbers are categories, not values: an embedding starts anew
        source.reads = [Node(labels=n.labels) if lookup else n for n in reads]
        self.sources.append(source)
        self._stack.append(source)
        self._versions = [(t, _version(t)) for t in tensors]

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None
        self._depth -= 1
        if self._depth > 0:
            return None
        source = self._stack.pop()
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if source is None:
            for t in tensors:
                self._nodes[t] = _CONSTANT
            return None
        if any(t is known for t in tensors for known, _ in self._versions):
            if not isinstance(output, Tensor):
                for t in tensors:
                    self._add(t, Node(refused=f"{source.name!r} returns its argument"))
                return None
            # an identity: give its result an identity of its own
            output = output.view_as(output)
            tensors = [output]
        for t, version in self._versions:
            if _version(t) != version:
                why = f"it was overwritten inside the layer {source.name!r}"
                self._add(t, Node(refused=why))
        self._start(source, module, tensors)
        return output

    def _start(self, source: Source, module: nn.Module, tensors: list[Tensor]) -> None:
        known = [n.labels for n in source.reads if n.labels is not None]
        who = f"the layer {source.name!r} ({type(module).__name__})"
        for i, t in enumerate(tensors):
            axis = _channel_axis(module, t)
            if i == 0:
                source.size = 1 if axis is None else t.shape[axis]
            labels = layer_output(t, known, axis, who)
            if i == 0 and labels.rows is not None:
                why = _time_is_rows(module, known, who)
                labels = Labels(t.shape, None, None, why) if why else labels
            if i > 0:  # states and attention weights have no values of their own
                rows = labels.rows
                if isinstance(module, nn.RNNBase) and t.dim() == 3:
                    rows = rows_of_batch(t[0]).rows  # [layers, N, H] whatever the input
                labels = Labels(t.shape, rows, None, labels.lost)
            node = Node(frozenset([source.index]), labels=labels)
            self._add(t, node)
            source.roots.append(node)

    # --- functions between layers ---------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        before = [(t, _version(t)) for t in tensors]
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        written = [t for t, version in before if _version(t) != version]
        # statistics that a norm updates on the side are no results
        target = args[0] if args else None
        written = [t for t in written if t is target or any(t is o for o in outputs)]
        made = [
            t
            for t in outputs
            if not any(t is arg for arg in tensors) or any(t is w for w in written)
        ]
        made += [t for t in written if not any(t is m for m in made)]
        name = function_name(func)
        if made:
            self._record(func, name, args, kwargs, tensors, made, written)
        elif name in _ESCAPES and any(self.node(t).sources for t in tensors):
            self._escaped = True
        return result

    def _record(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
        made: list[Tensor],
        written: list[Tensor],
    ) -> None:
        parents = [] if carries_nothing(name) else [self.node(t) for t in tensors]
        parents = [p for p in parents if p is not _CONSTANT]
        refused = next((p.refused for p in parents if p.refused), "")
        weight = next((p.weight for p in parents if p.weight), "")
        sources = frozenset().union(*(p.sources for p in parents))
        if not parents or (not sources and all(p.labels is None for p in parents)):
            for t in made:
                if self._escaped and name in _RETURNS:
                    refused = refused or _unknown(t)
                known = Node(weight=weight, refused=refused)
                self._nodes[t] = known if weight or refused else _CONSTANT
            return
        if self._strict and weight and name in MIXING_FUNCTIONS:
            refused = refused or (
                f"it was made by `{name}` with the parameter {weight!r} outside any "
                "layer; name the module that holds the parameter in `layers=`"
            )
        known = {id(t): self.node(t).labels for t in tensors}
        labels = propagate(func, args, kwargs, lambda t: known.get(id(t)), made)
        rewritten = [self._relatives(t) for t in written]
        for t, t_labels in zip(made, labels, strict=True):
            node = Node(sources, tuple(parents), t_labels, weight="", refused=refused)
            self._add(t, node)
        for t, relatives in zip(written, rewritten, strict=True):
            for relative in relatives:
                self._overwrite(relative, t)

    def _add(self, x: Tensor, node: Node) -> None:
        """Register a version of a tensor, averaged if it still holds its channels."""
        if len(node.sources) == 1 and node.labels is not None and not node.refused:
            source = self.sources[next(iter(node.sources))]
            if source.module is not None and node.labels.channels is not None:
                node.value = average(x, node.labels, self._batch, source.size)
        self._nodes[x] = node
        self.order.append(node)

    def _relatives(self, x: Tensor) -> list[Tensor]:
        """Other traced tensors that share the memory of ``x``."""
        memory = x.untyped_storage()._cdata
        return [
            t
            for t in self._nodes.keys()  # noqa: SIM118 (a weak dictionary)
            if t is not x and t.untyped_storage()._cdata == memory
        ]

    def _overwrite(self, relative: Tensor, written: Tensor) -> None:
        """A new version of a tensor whose memory was written through another one."""
        old, new = self.node(relative), self.node(written)
        whole = relative.numel() == written.numel()
        parents = (new,) if whole else (old, new)
        labels = old.labels
        if labels is None and new.labels is not None:
            lost = "values were written into a part of a constant tensor's view"
            labels = Labels(relative.shape, None, None, lost)
        sources = frozenset().union(*(p.sources for p in parents))
        refused = next((p.refused for p in (old, new) if p.refused), "")
        if labels is not None and (new.labels is None or new.labels.channels is None):
            labels = Labels(labels.shape, labels.rows, None, labels.lost)
        self._add(relative, Node(sources, parents, labels, refused=refused))


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _unknown(x: Tensor) -> str:
    return (
        f"its origin is unknown (a tensor of shape {tuple(x.shape)} that no traced torch "
        "function made: a scripted function, a numpy round trip, vmap, or a value kept "
        "from an earlier call)"
    )


def _call_name(path: str, count: int) -> str:
    reserved = path == "output" or path.rstrip("0123456789") == "input"
    return f"{path}:{count}" if count or reserved else path


def _tensor_attributes(model: nn.Module) -> dict[int, str]:
    """Names of the tensors that the model's modules hold besides parameters."""
    found = {}
    for prefix, module in model.named_modules():
        for key, held in (*vars(module).items(), *module._buffers.items()):
            if key in ("_parameters", "_modules") or key.endswith("_hooks"):
                continue
            for leaf in tree_leaves(held):
                if isinstance(leaf, Tensor):
                    found[id(leaf)] = f"{prefix}.{key}".lstrip(".")
    return found


def _channel_axis(module: nn.Module, out: Tensor) -> int | None:
    """The axis of a layer's result that holds its channels; None: a scalar per sample."""
    if out.dim() < 2:
        return None
    convolution = nn.modules.conv._ConvNd
    plain = isinstance(module, convolution) or (
        not isinstance(module, (nn.Linear, nn.RNNBase, nn.MultiheadAttention))
        and any(isinstance(m, convolution) for m in module.modules())
    )
    return 1 if plain else out.dim() - 1


def _time_is_rows(module: nn.Module, known: Sequence[Labels], who: str) -> str:
    """Why a sequence layer mixes samples, if it takes the samples for time steps."""
    if not isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return ""
    rows = 0 if module.batch_first else 1
    for labels in known:
        if any(axis != rows for axis in row_axes(labels)):
            return (
                f"{who} has batch_first={module.batch_first} and got a tensor of shape "
                f"{tuple(labels.shape)} with the samples along another axis: it mixes "
                "samples"
            )
    return ""
