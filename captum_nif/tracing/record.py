r"""The record of one forward pass: layers, and the versions of tensors between them.

Every version of every tensor that depends on the inputs is a :class:`Node`. An in-place
operation makes a new version, also of the tensors that share its memory. Per-channel
averages are taken before a tensor is read, so that in-place operations cannot spoil
them and no feature map outlives the model's own use of it. Where neurons are the nodes,
their values are kept instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from captum_nif.tracing.functions import KEEPING, tensors_in
from captum_nif.tracing.origins import (
    Labels,
    average,
    batch_labels,
    by_channel,
    float_dtype,
    lost,
    overwrite,
    rewritten,
)

Nodes = Literal["channel", "neuron"]


@dataclass(eq=False)
class Node:
    """One version of one tensor.

    Args:
        sources (frozenset of int): indices of the sources that it depends on.
        parents (tuple of Node): the versions that it was computed from.
        labels (Labels or None): sample and channel of its elements; None for constants.
        value (Tensor or None): mean per sample and channel, [N, C], or all elements in
            the order of channels, [N, C * places], if it was settled, depends on one
            source alone and still holds that source's channels.
        shape (tuple of int): arrangement of the nodes of one sample.
        weight (str): name of the parameter that it is computed from, for constants.
        refused (str): why nothing that reads this tensor can be traced.
        was_read (bool): whether a function has read it.
        is_settled (bool): whether its value is known.
    """

    sources: frozenset[int] = frozenset()
    parents: tuple[Node, ...] = ()
    labels: Labels | None = None
    value: Tensor | None = None
    shape: tuple[int, ...] = ()
    weight: str = ""
    refused: str = ""
    was_read: bool = False
    is_settled: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether nothing is known to flow through it from the inputs."""
        return self.labels is None and not self.refused


@dataclass(eq=False)
class Source:
    """What values start from: a model input or one call of a layer.

    Args:
        name (str): the layer's name in the graph.
        index (int): position in the order of execution.
        module (Module or None): the layer's module, None for an input.
        size (int): number of channels.
        reads (list of Node): the tensors that the call took.
        roots (list of Node): the tensors that it returned, the main one first.
    """

    name: str
    index: int
    module: nn.Module | None = None
    size: int = 0
    reads: list[Node] = field(default_factory=list)
    roots: list[Node] = field(default_factory=list)


CONSTANT = Node()

Visit = Callable[[Tensor, Node], object]
"""Looks at one version of one tensor."""


class Record:
    """Sources in the order of execution, and nodes in the order of their making.

    Args:
        model (Module): the model to be run.
        inputs (tuple of Tensor): what it will be called with; the same objects.
        constants (Iterable of Tensor): its further arguments; the same objects.
        nodes (str): ``"channel"``, whose values are averages, or ``"neuron"``.
        fed (Mapping): values, [N, C * places], that take the place of those of a layer
            as soon as they are made, by the node's position in ``order``.
        visits (Mapping): functions that are called with a tensor and its node as soon
            as it is made, by the node's position in ``order``.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        constants: Iterable[Tensor],
        nodes: Nodes = "channel",
        fed: Mapping[int, Tensor] | None = None,
        visits: Mapping[int, Visit] | None = None,
    ) -> None:
        self.sources: list[Source] = []
        self.order: list[Node] = []
        self._model = model
        self._nodes = nodes
        self._fed = fed or {}
        self._visits = visits or {}
        self._batch = inputs[0].shape[0]
        self._current = WeakTensorKeyDictionary()  # the last version of each tensor
        self._weights = {id(p): name for name, p in model.named_parameters()}
        self._attributes = _tensor_attributes(model)
        self._used_attributes: set[str] = set()
        for x in constants:
            self._current[x] = CONSTANT
        for i, x in enumerate(inputs):
            name = "input" if len(inputs) == 1 else f"input{i}"
            root = Node(frozenset([i]), labels=batch_labels(x))
            self.sources.append(Source(name, i, size=x[0].numel(), roots=[root]))
            self.add(x, root)

    def node(self, x: Tensor) -> Node:
        """The current version of a tensor."""
        node = self.known(x)
        if node is not None:
            return node
        if id(x) in self._weights:
            return Node(weight=self._weights[id(x)])
        if id(x) in self._attributes:
            self._used_attributes.add(self._attributes[id(x)][0])
            return CONSTANT
        return Node(refused=self.unknown(x))

    def known(self, x: Tensor) -> Node | None:
        """The current version of a tensor, if it was made in this pass."""
        node: Node | None = self._current.get(x)
        return node

    def add(self, x: Tensor, node: Node) -> None:
        """Make ``node`` the current version of a tensor."""
        self._current[x] = node
        if node is not CONSTANT:
            self.order.append(node)
            place = len(self.order) - 1
            if place in self._fed:
                self._feed(x, node, self._fed[place])
            if place in self._visits:
                self._visits[place](x, node)

    def apart(self, output: Tensor, taken: Sequence[Tensor]) -> Tensor:
        """What a layer returned, with memory of its own where it may be overwritten."""
        shared = any(_memory(output) == _memory(t) for t in taken)
        return output.clone() if self._fed and shared else output

    def _feed(self, x: Tensor, node: Node, values: Tensor) -> None:
        """Keep what a layer gives, and hand others on to its readers."""
        self.settle(x)
        source = self.sources[next(iter(node.sources))]
        assert node.labels is not None
        grouped = values.view(self._batch, source.size, -1)
        try:
            overwrite(x, node.labels, grouped)
        except RuntimeError as error:
            raise NotImplementedError(
                f"The values of the layer {source.name!r} cannot be exchanged for "
                f"independent ones ({error}): use sampling='observed'."
            ) from error

    def settle(self, x: Tensor) -> None:
        """Take the averages of a tensor, if it holds the channels of one source."""
        node = self.node(x)
        if node.is_settled or len(node.sources) != 1 or node.labels is None:
            return
        node.is_settled = True
        source = self.sources[next(iter(node.sources))]
        if source.module is not None and node.labels.channels is not None:
            found = by_channel(x.detach(), node.labels, self._batch, source.size)
            if found is None:
                return
            if self._nodes == "channel" or found.shape[-1] == 1:
                node.value, node.shape = average(found), (source.size,)
                return
            plain = x.shape[2:] if node.labels.is_plain else found.shape[2:]
            node.shape = (source.size, *plain)
            node.value = found.flatten(1).to(float_dtype(x)).clone()

    def settle_read(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Settle what a function is about to read, and perhaps to overwrite.

        All but a tensor that is read for the first time, alone, by a function that
        keeps its channels: every path through it goes on through the result, which then
        makes the better value. Unless it is read again, and that settles it.
        """
        nodes = {id(node): node for t in tensors if (node := self.node(t)).sources}
        alone = len(nodes) == 1 and name in KEEPING
        for t in tensors:
            node = self.node(t)
            if alone and not node.was_read:
                continue
            self.settle(t)
        for node in nodes.values():
            node.was_read = True

    def relatives(self, x: Tensor) -> list[Tensor]:
        """Other tensors that share the memory of ``x``."""
        memory = _memory(x)
        held = [t for _, t in self._attributes.values()]
        candidates = [*self._current.keys(), *held]
        found = [t for t in candidates if t is not x and _memory(t) == memory]
        return distinct(found)

    def rewrite(self, relative: Tensor, written: Tensor) -> None:
        """A new version of a tensor whose memory was written through another one."""
        old, new = self.node(relative), self.node(written)
        if old.is_constant and new.is_constant:
            return
        if relative.dtype != written.dtype:
            why = "its memory was written through a view of another dtype"
            self.add(relative, Node(refused=why))
            return
        zero = torch.zeros((), device=relative.device)
        hit = rewritten(relative, written, zero, zero + 1)
        if not hit.any():
            return
        self.settle(written)  # whoever reads the relative reads it
        parents = tuple(p for p in ((new,) if hit.all() else (old, new)) if p.labels)
        refused = next((p.refused for p in (old, new) if p.refused), "")
        if not parents:
            self.add(relative, Node(refused=refused) if refused else CONSTANT)
            return
        labels = old.labels
        if labels is None or new.labels is not None:  # constants change no labels
            sides = [p.labels or Labels(relative.shape, zero, zero) for p in (old, new)]
            labels = _overlaid(relative, written, *sides)
        sources = frozenset[int]().union(*(p.sources for p in parents))
        self.add(relative, Node(sources, parents, labels, refused=refused))

    def unknown(self, x: Tensor) -> str:
        """Why a tensor that nothing traced has made cannot be read, if it may."""
        n = self._batch
        # What holds samples has an axis for them, alone or merged with another one.
        if n == 1 or not any(x.shape) or not any(extent % n == 0 for extent in x.shape):
            return ""
        return (
            f"its origin is unknown (a tensor of shape {tuple(x.shape)} that no traced "
            "torch function made: a scripted function, a numpy round trip, vmap, or a "
            "value kept from an earlier call; a constant should be a buffer)"
        )

    def check_state(self) -> None:
        """Refuse models that hand values of one call on to the next."""
        held = _tensor_attributes(self._model) if self._used_attributes else {}
        for name, x in held.values():
            if name in self._used_attributes and not self.node(x).is_constant:
                raise NotImplementedError(
                    f"{name!r} is read and then overwritten with values that depend on "
                    "the inputs: the model keeps state between calls, so samples of "
                    "one batch would explain another. Reset the state in `forward`, or "
                    "wrap the stateful part in a module and name it in `layers=`."
                )


def _overlaid(relative: Tensor, written: Tensor, old: Labels, new: Labels) -> Labels:
    """Labels of ``relative``, some of whose memory ``written`` overwrote."""
    if old.rows is None or new.rows is None:
        return lost(relative.shape, old.lost or new.lost)
    channels = None
    if old.channels is not None and new.channels is not None:
        channels = rewritten(relative, written, old.channels, new.channels)
    return Labels(
        relative.shape, rewritten(relative, written, old.rows, new.rows), channels
    )


def among(x: object, tensors: Sequence[Tensor]) -> bool:
    """Whether ``x`` is one of the tensors, by identity."""
    return any(x is t for t in tensors)


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors without repetitions, by identity."""
    return list({id(t): t for t in tensors}.values())


def _memory(x: Tensor) -> int | None:
    return x.untyped_storage()._cdata if x.layout == torch.strided else None


def _tensor_attributes(model: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """The tensors that the model's modules hold besides parameters, by id."""
    found = {}
    for prefix, module in model.named_modules():
        held = {k: v for k, v in vars(module).items() if k not in _BARE}
        for key, value in (*held.items(), *module._buffers.items()):
            for t in tensors_in(value):
                found[id(t)] = (f"{prefix}.{key}".lstrip("."), t)
    return found


_BARE = frozenset(vars(nn.Module()))
