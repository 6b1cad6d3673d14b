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
from torch.utils._pytree import tree_flatten, tree_unflatten

from captum_nif.tracing.blocks import BlockRecord
from captum_nif.tracing.disturbances import WATCHED
from captum_nif.tracing.function_layers import function_layer
from captum_nif.tracing.functions import (
    KEEPING,
    MIXING_FUNCTIONS,
    MOVING,
    Call,
    function_name,
    is_in,
    leaves_of,
    perform,
    raw_name,
    tensors_in,
    version,
)
from captum_nif.tracing.layer_types import layer_type_of
from captum_nif.tracing.layers import Layer
from captum_nif.tracing.origins import Labels, untraceable
from captum_nif.tracing.provenance import is_lookup, propagate
from captum_nif.tracing.record import CONSTANT, ModuleCall, Node, Record, Source
from captum_nif.tracing.selection import Selection, default_layers_inside
from captum_nif.tracing.undisturbed import Hooks

# Functions through which values leave torch, and through which they may come back.
_LEAVING = frozenset(["numpy", "tolist", "item", "array", "float", "int"])
_ENTERING = frozenset(["from_numpy", "tensor", "as_tensor", "asarray", "from_dlpack"])


class Recorder(TorchFunctionMode):
    """Records one forward pass of a model; use as a context manager around it.

    Args:
        record (Record): where to.
        selection (Selection): which modules are layers.
        on_layer (callable, optional): looks at each layer when it has run, and may
            replace what it returns.
    """

    def __init__(
        self,
        record: Record,
        selection: Selection,
        on_layer: LayerVisit | None = None,
    ) -> None:
        super().__init__()
        self.record = record
        self._selection = selection
        self._on_layer = on_layer
        self._left = False  # whether traced values have left torch
        self._calls: dict[str, int] = {}
        self._depth = 0
        self._read: list[tuple[Tensor, Node, int]] = []  # by the layer that is running
        self._mixed: list[str] = []  # mixing functions of the layer that is running
        self._mixed_before: list[str] = []
        self._block: Recorder | None = None  # follows the layer that is running
        self._hooks = Hooks()

    def __enter__(self) -> Recorder:
        for module in self._selection.paths:
            self._hooks.add(
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after),
            )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        self._leave_block()  # where an exception ended it
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
                if layer_type_of(module) is None:
                    inside = Selection(default_layers_inside(module))
                    self._block = Recorder(BlockRecord(self.record), inside)
                    self._block.__enter__()

    def _after(self, module: nn.Module, args: object, output: object) -> object:
        if self._hooks.is_of_this_thread:
            self._depth -= 1
            if self._depth == 0:
                inside = self._leave_block()
                with torch._C.DisableTorchFunction():
                    return self._leave_layer(module, output, inside)
        return None

    def _leave_block(self) -> Record | None:
        """Stop following a block inside; gives what was seen there."""
        block, self._block = self._block, None
        if block is None:
            return None
        block.__exit__(None, None, None)
        return block.record

    def _enter_layer(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Note what a layer takes."""
        tensors = leaves_of((args, kwargs))
        self._read = [(t, self.record.node(t), version(t)) for t in tensors]
        for t in tensors:
            self.record.settle(t)
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, PackedSequence):
                refused = Node(refused="it is a PackedSequence: pad the sequences")
                self._read.insert(0, (argument.data, refused, 0))
        self._mixed, self._mixed_before = [], self._mixed or self._mixed_before

    def _leave_layer(
        self, module: nn.Module, output: object, block: Record | None
    ) -> object:
        """Start a source from what a layer returns; gives it back, to be told apart."""
        tensors = leaves_of(output)
        path = self._selection.paths[module]
        inside = [block.node(t).labels for t in tensors] if block else []
        if all(node.is_constant for _, node, _ in self._read):
            self.record.happened(path, ())
            for t in tensors:
                self.record.add(t, CONSTANT)
            return output
        layer_type = layer_type_of(module)
        categories = layer_type is not None and layer_type.reads_categories
        reads = [node for _, node, _ in self._read]
        source = self._source(path, reads, categories)
        taken = [t for t, _, _ in self._read]
        written = [t for t, _, before in self._read if version(t) != before]
        if (
            isinstance(output, Tensor)
            and is_in(output, taken)
            and not is_in(output, written)
        ):
            # an identity: what it returns is to be told from what it took
            output = output.view_as(output)
            tensors = [output]
        if isinstance(output, Tensor) and not is_in(output, written):
            output = self.record.isolate(output, taken)
            tensors = [output]
        for t in written:
            if not is_in(t, tensors):
                why = f"it was overwritten inside the layer {source.name!r}"
                self.record.add(t, Node(refused=why))
        tensors = self._visited(source.name, module, tensors)
        self.record.happened(path, tensors)
        output = _replaced(output, tensors)
        layer = Layer(
            module,
            source.name,
            source.index,
            [(t.dim(), node.labels) for t, node, _ in self._read],
            (self._selection.channel_axes or {}).get(module),
            inside,
            self._mixed or self._mixed_before,
        )
        self._start(source, tensors, layer.output_labels(tensors), taken, written)
        return output

    def _visited(
        self, name: str, module: nn.Module | None, results: list[Tensor]
    ) -> list[Tensor]:
        """What stands for the results of a layer that has run."""
        if self._on_layer is None:
            return results
        read = [(t, node.labels) for t, node, _ in self._read] if module else []
        with torch._C.DisableTorchFunction():
            return self._on_layer(name, module, read, results)

    def _start(
        self,
        source: Source,
        tensors: Sequence[Tensor],
        labels: Sequence[Labels],
        taken: Sequence[Tensor] = (),
        written: Sequence[Tensor] = (),
    ) -> None:
        """Let a source begin in the tensors that its call returned."""
        if labels and labels[0].channels is not None:
            source.size = labels[0].channels.numel()
        for t, its_labels in zip(tensors, labels, strict=True):
            refused = ""
            if is_in(t, taken) and not is_in(t, written):
                refused = f"the layer {source.name!r} returns its argument unchanged"
            relatives = self.record.relatives(t) if is_in(t, written) else []
            node = Node(its_labels, refused=refused)
            source.roots.append(node)
            self.record.add(t, node)
            if len(tensors) > 1:  # the reader of a state may leave the sequence unread
                self.record.settle(t)
            for relative in relatives:
                self.record.rewrite(relative, t)

    def _source(self, path: str, reads: list[Node], categories: bool) -> Source:
        """A new source for a call that ends."""
        count = self._calls[path] = self._calls.get(path, -1) + 1
        call, sources = ModuleCall(path, count), self.record.sources
        source = Source(call.name, len(sources), call, 0, reads)
        sources.append(source)
        if categories:
            for node in reads:
                self.record.look_up(node.sources)
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
        if name in WATCHED:
            self.record.watch(name, args, kwargs, self._depth > 0)
        if self._depth:
            self._peek(tensors)
            return func(*args, **kwargs)
        keeps = name in KEEPING and not _to_complex(args, kwargs)
        self.record.settle_read(keeps, tensors)
        done = perform(func, args, kwargs)
        self.record.happened(raw_name(func), done.made)
        if done.made:
            call = Call(func, args, kwargs, self._labels_of(tensors), done.made)
            with torch._C.DisableTorchFunction():
                replaced = self._record(call, done.written)
            if replaced is not None:
                return _replaced(done.result, replaced)
        elif name in _LEAVING and not all(
            self.record.node(t).is_constant for t in tensors
        ):
            self._left = True
        return done.result

    def _peek(self, tensors: Sequence[Tensor]) -> None:
        """Inside a layer: note what it takes other than by its arguments."""
        for t in tensors:
            node = self.record.known(t)
            if node is None or node.is_constant:
                continue
            if not any(node is known for _, known, _ in self._read):
                self.record.settle(t)
                self._read.append((t, node, version(t)))

    def _labels_of(
        self, tensors: Sequence[Tensor]
    ) -> Callable[[Tensor], Labels | None]:
        before = {id(t): self.record.node(t).labels for t in tensors}
        return lambda t: before.get(id(t))

    def _record(self, call: Call, written: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """Add the versions that a call made, and those of tensors it wrote through.

        Returns what stands for the results of a layer.
        """
        tensors = call.read
        read = [(t, self.record.node(t)) for t in tensors]
        parents = tuple(node for _, node in read if not node.is_constant)
        refused = next((node.refused for node in parents if node.refused), "")
        weights = {
            id(t): node.weight
            for t, node in sorted(read, key=lambda pair: -pair[0].dim())
            if node.weight
        }  # matrices before biases
        relatives = [(r, t) for t in written for r in self.record.relatives(t)]
        if any(node.labels is not None for node in parents):
            if call.name in MOVING and call.has_index_from_inputs:
                self.record.moves_by_values = True
            labels = self.record.located(_understood(call), parents)
            labels = self.record.refine(call, labels)
            if is_lookup(call):
                self.record.look_up(call.all_sources.union)
            if weights and (made := self._layer(call, weights, labels, written)):
                return made
            for t, its_labels in zip(call.outputs, labels, strict=True):
                if its_labels.sources.union or refused:
                    self.record.add(t, Node(its_labels, parents, refused=refused))
                else:  # a part of the data that depends on nothing
                    self.record.add(t, self._constant(weights))
        else:
            if self._left and call.name in _ENTERING:
                refused = refused or self.record.unknown(call.outputs[0])
            for t in call.outputs:
                self.record.add(t, self._constant(weights, refused))
        for relative, t in relatives:
            self.record.rewrite(relative, t)
        return None

    def _constant(self, weights: Mapping[int, str], refused: str = "") -> Node:
        weight = next(iter(weights.values()), "")
        return Node(weight=weight, refused=refused) if weight or refused else CONSTANT

    def _layer(
        self,
        call: Call,
        weights: Mapping[int, str],
        labels: Sequence[Labels],
        written: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """Start a source from what a function computes with a parameter, if it does."""
        parameter = next(iter(weights.values()))
        layer = function_layer(call, weights, labels, parameter)
        if layer is None or not self._selection.is_default:
            return ()
        tensors = call.read
        reads = [self.record.node(t) for t in tensors]
        path = self.record.held.owner(parameter)
        source = self._source(path, reads, layer.reads_categories)
        outputs = self._visited(source.name, None, list(call.outputs))
        labels = layer.output_labels(outputs, source.index)
        self._start(source, outputs, labels, (), written)
        return outputs


LayerVisit = Callable[
    [
        str,
        "nn.Module | None",
        "Sequence[tuple[Tensor, Labels | None]]",
        "list[Tensor]",
    ],
    "list[Tensor]",
]
"""Takes a layer's name, its module (None for a function), what it read, with labels
(None for constants), and its results; gives what stands for them."""


def _replaced(output: Any, tensors: Sequence[Tensor]) -> Any:
    """A tree with other tensors in the place of its own, in their order."""
    leaves, spec = tree_flatten(output)
    if all(is_in(t, tensors) for t in leaves if isinstance(t, Tensor)):
        return output
    others = iter(tensors)
    return tree_unflatten(
        [next(others) if isinstance(x, Tensor) else x for x in leaves], spec
    )


def _understood(call: Call) -> list[Labels]:
    """Labels of the outputs of a call, whatever its arguments are."""
    try:
        return propagate(call)
    except Exception as error:
        why = f"`{call.name}` with such arguments is not understood ({error})"
        return [untraceable(t.shape, why, call.all_sources) for t in call.outputs]


def _to_complex(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a conversion makes complex numbers, which are no values of nodes."""
    return any(
        isinstance(x, torch.dtype) and x.is_complex for x in (*args, *kwargs.values())
    )
