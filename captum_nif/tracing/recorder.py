r"""Watch one forward pass: which tensors each layer made and read, and all in between.

Layer hooks see the layers, a ``TorchFunctionMode`` sees every torch function between
them. What they see goes into a :class:`~captum_nif.tracing.record.Record`, from which
:mod:`captum_nif.tracing.dataflow` reads layers, links and node values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from captum_nif.tracing.functions import (
    MIXING_FUNCTIONS,
    Call,
    function_name,
    tensors_in,
    tensors_read,
)
from captum_nif.tracing.modules import output_labels
from captum_nif.tracing.origins import Labels
from captum_nif.tracing.provenance import propagate
from captum_nif.tracing.record import (
    CONSTANT,
    Node,
    Nodes,
    Record,
    Source,
    Visit,
    among,
    distinct,
)
from captum_nif.tracing.undisturbed import Hooks

# Functions through which values leave torch, and through which they may come back.
_LEAVING = frozenset(["numpy", "tolist", "item", "array", "float", "int"])
_ENTERING = frozenset(["from_numpy", "tensor", "as_tensor", "asarray", "from_dlpack"])


class Recorder(TorchFunctionMode):
    """Records one forward pass of ``model``; use as a context manager around it.

    Args:
        model (Module): the model to be run.
        layers (Mapping): the modules that are layers, with their names.
        inputs (tuple of Tensor): what the model will be called with; the same objects.
        extra (tuple): its further arguments, treated as constants; the same objects.
        strict (bool): refuse parameters that mix features outside any layer.
        nodes (str): see :class:`~captum_nif.tracing.record.Record`.
        fed (Mapping): see :class:`~captum_nif.tracing.record.Record`.
        visits (Mapping): see :class:`~captum_nif.tracing.record.Record`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[nn.Module, str],
        inputs: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        strict: bool,
        nodes: Nodes = "channel",
        fed: Mapping[int, Tensor] | None = None,
        visits: Mapping[int, Visit] | None = None,
    ) -> None:
        super().__init__()
        self.record = Record(model, inputs, _tensors_of(extra), nodes, fed, visits)
        self._layers = layers
        self._strict = strict
        self._tokens = {i for i, x in enumerate(inputs) if not x.is_floating_point()}
        self._left = False  # whether traced values have left torch
        self._calls: dict[str, int] = {}
        self._depth = 0
        self._read: list[tuple[Tensor, Node, int]] = []  # by the layer that is running
        self._mixed: list[str] = []  # mixing functions of the layer that is running
        self._mixed_before: list[str] = []
        self._hooks = Hooks()

    def __enter__(self) -> Recorder:
        for module in self._layers:
            self._hooks.add(
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after),
            )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._hooks.remove()

    # --- layers -----------------------------------------------------------------------

    def _before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        if self._hooks.is_of_this_thread:
            self._depth += 1
            if self._depth == 1:
                with torch._C.DisableTorchFunction():  # hooks run inside the mode
                    self._enter_layer(args, kwargs)

    def _after(self, module: nn.Module, args: object, output: object) -> object:
        if self._hooks.is_of_this_thread:
            self._depth -= 1
            if self._depth == 0:
                with torch._C.DisableTorchFunction():
                    return self._leave_layer(module, output)
        return None

    def _enter_layer(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note what a layer takes."""
        tensors = _tensors_of((args, kwargs))
        self._read = [(t, self.record.node(t), _version(t)) for t in tensors]
        for t in tensors:
            self.record.settle(t)
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, PackedSequence):
                refused = Node(refused="it is a PackedSequence: pad the sequences")
                self._read.insert(0, (argument.data, refused, 0))
        self._mixed, self._mixed_before = [], self._mixed or self._mixed_before

    def _leave_layer(self, module: nn.Module, output: object) -> object:
        """Start a source from what a layer returns; gives it back, to be told apart."""
        tensors = _tensors_of(output)
        if all(node.is_constant for _, node, _ in self._read):
            for t in tensors:
                self.record.add(t, CONSTANT)
            return output
        source = self._source(module)
        taken = [t for t, _, _ in self._read]
        written = [t for t, _, version in self._read if _version(t) != version]
        if (
            isinstance(output, Tensor)
            and among(output, taken)
            and not among(output, written)
        ):
            # an identity: what it returns is to be told from what it took
            output = output.view_as(output)
            tensors = [output]
        if isinstance(output, Tensor) and not among(output, written):
            output = self.record.apart(output, taken)
            tensors = [output]
        for t in written:
            if not among(t, tensors):
                why = f"it was overwritten inside the layer {source.name!r}"
                self.record.add(t, Node(refused=why))
        known = [(t.dim(), node.labels) for t, node, _ in self._read]
        functions = self._mixed or self._mixed_before
        labels = output_labels(module, source.name, known, tensors, functions)
        if labels and labels[0].channels is not None:
            source.size = labels[0].channels.numel()
        for t, found in zip(tensors, labels, strict=True):
            refused = ""
            if among(t, taken) and not among(t, written):
                refused = f"the layer {source.name!r} returns its argument unchanged"
            relatives = self.record.relatives(t) if among(t, written) else []
            node = Node(frozenset([source.index]), labels=found, refused=refused)
            source.roots.append(node)
            self.record.add(t, node)
            if len(tensors) > 1:  # the reader of a state may leave the sequence unread
                self.record.settle(t)
            for relative in relatives:
                self.record.rewrite(relative, t)
        return output

    def _source(self, module: nn.Module) -> Source:
        """A new source for the call of a layer that ends."""
        path = self._layers[module]
        count = self._calls[path] = self._calls.get(path, -1) + 1
        reads = [node for _, node, _ in self._read]
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            # token numbers are categories, not values: an embedding starts anew
            reads = [
                Node(refused=node.refused) if node.sources <= self._tokens else node
                for node in reads
            ]
        sources = self.record.sources
        source = Source(_call_name(path, count), len(sources), module, reads=reads)
        sources.append(source)
        return source

    # --- functions between layers -----------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        name = function_name(func)
        if name in MIXING_FUNCTIONS:
            self._mixed.append(name)
        if self._depth:
            self._peek(tensors)
            return func(*args, **kwargs)
        self.record.settle_read(name, tensors)
        versions = [_version(t) for t in tensors]
        result = func(*args, **kwargs)
        written = [
            t for t, v in zip(tensors, versions, strict=True) if _version(t) != v
        ]
        if name == "data" and result is None:  # x.data = y
            written = tensors[:1]
        if name.endswith(("batch_norm", "instance_norm")):  # running statistics
            written = [t for t in written if t is tensors[0]]
        outputs = tensors_in(result)
        made = [t for t in outputs if not among(t, tensors)] + distinct(written)
        if made:
            self._record(
                Call(func, args, kwargs, self._labels_of(tensors), made), written
            )
        elif name in _LEAVING and not all(
            self.record.node(t).is_constant for t in tensors
        ):
            self._left = True
        return result

    def _peek(self, tensors: Sequence[Tensor]) -> None:
        """Inside a layer: note what it takes other than by its arguments."""
        for t in tensors:
            node = self.record.known(t)
            if node is None or node.is_constant:
                continue
            if not any(node is known for _, known, _ in self._read):
                self.record.settle(t)
                self._read.append((t, node, _version(t)))

    def _labels_of(
        self, tensors: Sequence[Tensor]
    ) -> Callable[[Tensor], Labels | None]:
        before = {id(t): self.record.node(t).labels for t in tensors}
        return lambda t: before.get(id(t))

    def _record(self, call: Call, written: Sequence[Tensor]) -> None:
        """Add the versions that a call made, and those of tensors it wrote through."""
        read = [
            self.record.node(t) for t in tensors_read(call.func, call.args, call.kwargs)
        ]
        parents = tuple(node for node in read if not node.is_constant)
        refused = next((node.refused for node in parents if node.refused), "")
        weight = next((node.weight for node in read if node.weight), "")
        sources = frozenset[int]().union(*(node.sources for node in parents))
        if self._strict and weight and parents and call.name in MIXING_FUNCTIONS:
            refused = refused or (
                f"it was made by `{call.name}` with the parameter {weight!r} outside "
                "any layer"
            )
        relatives = [(r, t) for t in written for r in self.record.relatives(t)]
        if any(node.labels is not None for node in parents):
            labels: list[Labels] = propagate(call)
            for t, found in zip(call.outputs, labels, strict=True):
                self.record.add(t, Node(sources, parents, found, refused=refused))
        else:
            if self._left and call.name in _ENTERING:
                refused = refused or self.record.unknown(call.outputs[0])
            constant = Node(weight=weight, refused=refused)
            for t in call.outputs:
                self.record.add(t, constant if weight or refused else CONSTANT)
        for relative, t in relatives:
            self.record.rewrite(relative, t)


def _tensors_of(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _call_name(path: str, count: int) -> str:
    reserved = path == "output" or path.rstrip("0123456789") == "input"
    return f"{path}:{count}" if count or reserved else path
