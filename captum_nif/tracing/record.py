r"""The record of one forward pass: layers, and the versions of tensors between them.

Every version of every tensor that depends on the inputs is a :class:`Node`. An in-place
operation makes a new version, also of the tensors that share its memory. Per-channel
averages are taken before a tensor is read, so that in-place operations cannot spoil
them and no feature map outlives the model's own use of it. Where neurons are the nodes,
their values are kept instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from captum_nif.tracing.disturbances import (
    batch_statistics_error,
    draws,
    running_module,
    takes_batch_statistics,
)
from captum_nif.tracing.functions import Call, distinct, memory_of
from captum_nif.tracing.label_tensors import rewritten
from captum_nif.tracing.model_tensors import ModelTensors
from captum_nif.tracing.origins import (
    Labels,
    average,
    batch_labels,
    by_channel,
    float_dtype,
    overwrite,
    untraceable,
)
from captum_nif.tracing.sources import Sources, moved, uniform
from captum_nif.tracing.undisturbed import is_stochastic

Nodes = Literal["channel", "neuron"]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module, or of a function with a parameter of that name.

    Args:
        path (str): the module's path in the model, or the parameter's.
        index (int): how often it was called before, in one forward pass.
    """

    path: str
    index: int = 0

    @property
    def name(self) -> str:
        """The name of the layer in the graph: ``"fc"``, ``"fc:1"`` for a second call.

        Names that inputs and the output have in every graph get a number at once.
        """
        reserved = self.path == "output" or self.path.rstrip("0123456789") == "input"
        return f"{self.path}:{self.index}" if self.index or reserved else self.path


@dataclass(eq=False)
class Node:
    """One version of one tensor.

    Args:
        labels (Labels or None): where its elements come from; None for constants.
        parents (tuple of Node): the versions that it was computed from.
        value (Tensor or None): mean per sample and channel, [N, C], or all elements in
            the order of channels, [N, C * places], if it was settled, depends on one
            source alone and still holds that source's channels.
        shape (tuple of int): arrangement of the nodes of one sample.
        weight (str): name of the parameter that it is computed from, for constants.
        refused (str): why nothing that reads this tensor can be traced.
        was_read (bool): whether a function has read it.
        is_settled (bool): whether its value is known.
    """

    labels: Labels | None = None
    parents: tuple[Node, ...] = ()
    value: Tensor | None = None
    shape: tuple[int, ...] = ()
    weight: str = ""
    refused: str = ""
    was_read: bool = False
    is_settled: bool = False

    @property
    def sources(self) -> frozenset[int]:
        """Indices of the sources that it depends on."""
        return frozenset() if self.labels is None else self.labels.sources.union

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
        call (ModuleCall or None): what was called, None for an input.
        size (int): number of channels.
        reads (list of Node): the tensors that the call took.
        roots (list of Node): the tensors that it returned, the main one first.
        shape (tuple of int): of a sample, for an input.
    """

    name: str
    index: int
    call: ModuleCall | None = None
    size: int = 0
    reads: list[Node] = field(default_factory=list)
    roots: list[Node] = field(default_factory=list)
    shape: tuple[int, ...] = ()


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
        overrides (Mapping): values, [N, C * places], that take the place of those of a
            layer as soon as they are made, by the node's position in ``order``.
        visits (Mapping): functions that are called with a tensor and its node as soon
            as it is made, by the node's position in ``order``.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        constants: Iterable[Tensor],
        nodes: Nodes = "channel",
        overrides: Mapping[int, Tensor] | None = None,
        visits: Mapping[int, Visit] | None = None,
    ) -> None:
        self.sources: list[Source] = []
        self.order: list[Node] = []
        self.made_by: list[tuple[int, int]] = []
        """For each of these the number of the call that made it, and which of its
        results it was; -1 for inputs and for what was written through another."""
        self.calls: list[str] = []
        """Names of functions between layers and of layers, as they returned."""
        self.moves_by_values = False
        """Whether elements were moved to where values say."""
        self._making: Sequence[Tensor] = ()
        self.chance: dict[str, None] = {}  # what draws random numbers, in order
        self.held = ModelTensors(model)
        self._nodes = nodes
        self._overrides = overrides or {}
        self._visits = visits or {}
        self.batch = inputs[0].shape[0]
        self._current = WeakTensorKeyDictionary()  # the last version of each tensor
        self._used_attributes: set[str] = set()
        self.integers = frozenset(
            i for i, x in enumerate(inputs) if not x.is_floating_point()
        )
        """Inputs that may hold numbers of categories, or masks."""
        self.looked_up: set[int] = set()  # those of them that are looked up in tables
        for x in constants:
            self._current[x] = CONSTANT
        for i, x in enumerate(inputs):
            name = "input" if len(inputs) == 1 else f"input{i}"
            root = Node(batch_labels(x, uniform([i])))
            self.sources.append(Source(name, i, roots=[root], shape=x.shape[1:]))
            self.add(x, root)

    def node(self, x: Tensor) -> Node:
        """The current version of a tensor."""
        node = self.known(x)
        if node is not None:
            return node
        if id(x) in self.held.parameters:
            return Node(weight=self.held.parameters[id(x)])
        if id(x) in self.held.attributes:
            self._used_attributes.add(self.held.attributes[id(x)][0])
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
            which = (i for i, t in enumerate(self._making) if t is x)
            self.made_by.append((len(self.calls) - 1, next(which, -1)))
            position = len(self.order) - 1
            if position in self._overrides:
                self._override(x, node, self._overrides[position])
            if position in self._visits:
                self._visits[position](x, node)

    def happened(self, name: str, made: Sequence[Tensor]) -> None:
        """A call returned, whose results are about to be added."""
        self.calls.append(name)
        self._making = made

    def isolate(self, output: Tensor, taken: Sequence[Tensor]) -> Tensor:
        """What a layer returned, with memory of its own where it may be overwritten."""
        shared = any(memory_of(output) == memory_of(t) for t in taken)
        return output.clone() if self._overrides and shared else output

    def _override(self, x: Tensor, node: Node, values: Tensor) -> None:
        """Keep what a layer computes, and pass others on to its readers."""
        self.settle(x)
        source = self._one_source(node)
        if source is None:
            raise NotImplementedError(
                "The model took another path through its functions than in the pass "
                "before: a value that is to be overridden is not there."
            )
        assert node.labels is not None
        grouped = values.view(self.batch, source.size, -1)
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
        if node.is_settled or node.labels is None:
            return
        source = self._one_source(node)
        if source is None:
            return
        node.is_settled = True
        if node.labels.channels is None or x.is_complex():
            return
        grouped = by_channel(x.detach(), node.labels, self.batch, source.size)
        if grouped is None:
            return
        if self._nodes == "channel" or grouped.shape[-1] == 1:
            node.value, node.shape = average(grouped), (source.size,)
            return
        plain = x.shape[2:] if node.labels.is_plain else grouped.shape[2:]
        node.shape = (source.size, *plain)
        node.value = grouped.flatten(1).to(float_dtype(x)).clone()

    def _one_source(self, node: Node) -> Source | None:
        """The one layer that a node depends on, besides inputs that may be no nodes."""
        layers = node.sources - self.integers
        if len(layers) != 1:
            return None
        source = self.sources[next(iter(layers))]
        return None if source.call is None else source

    def settle_read(self, keeps: bool, tensors: Sequence[Tensor]) -> None:
        """Settle what a function is about to read, and perhaps to overwrite.

        All but a tensor that is read for the first time, alone, by a function that
        ``keeps`` its channels: every path through it goes on through the result, which
        then makes the better value. Unless it is read again, and that settles it.
        """
        nodes = {id(node): node for t in tensors if (node := self.node(t)).sources}
        alone = len(nodes) == 1 and keeps
        for t in tensors:
            node = self.node(t)
            if alone and not node.was_read:
                continue
            self.settle(t)
        for node in nodes.values():
            node.was_read = True

    def relatives(self, x: Tensor) -> list[Tensor]:
        """Other tensors that share the memory of ``x``."""
        memory = memory_of(x)
        held = [t for _, t in self.held.attributes.values()]
        candidates = [*self._current.keys(), *held]
        found = [t for t in candidates if t is not x and memory_of(t) == memory]
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
        sides = [p.labels or Labels(relative.shape, zero, zero) for p in (old, new)]
        (sources,) = moved(
            [side.sources for side in sides],
            lambda labels: [
                rewritten(relative, written, *(x.to(zero.device) for x in labels))
            ],
        )
        if not sources.union:
            self.add(relative, Node(refused=refused) if refused else CONSTANT)
            return
        if old.labels is not None and new.labels is None:  # constants change no labels
            labels = replace(old.labels, sources=sources)
        else:
            labels = _overlaid(relative, written, sides, sources)
        self.add(relative, Node(labels, parents, refused=refused))

    def unknown(self, x: Tensor) -> str:
        """Why a tensor that nothing traced has made cannot be read, if it may."""
        n = self.batch
        # What holds samples has an axis for them, alone or merged with another one.
        if n == 1 or not any(x.shape) or not any(extent % n == 0 for extent in x.shape):
            return ""
        return (
            f"its origin is unknown (a tensor of shape {tuple(x.shape)} that no traced "
            "torch function made: a scripted function, a numpy round trip, vmap, or a "
            "value kept from an earlier call; a constant should be a buffer)"
        )

    def check_state(self) -> None:
        """Refuse models that keep values of one call for the next."""
        held = self.held.attributes_now() if self._used_attributes else {}
        for name, x in held.items():
            if name in self._used_attributes and not self.node(x).is_constant:
                raise NotImplementedError(
                    f"{name!r} is read and then overwritten with values that depend on "
                    "the inputs: the model keeps state between calls, so samples of "
                    "one batch would explain another. Reset the state in `forward`, or "
                    "wrap the stateful part in a module and name it in `layers=`."
                )

    def look_up(self, sources: frozenset[int]) -> None:
        """Note that what depends on these sources is looked up in a table."""
        if sources <= self.integers:
            self.looked_up |= sources

    def watch(
        self,
        name: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        is_inside: bool,
    ) -> None:
        """Note a call that draws random numbers, refuse one that mixes samples.

        Args:
            name (str): of the function.
            args (Sequence): its positional arguments.
            kwargs (Mapping): its keyword arguments.
            is_inside (bool): whether it is called inside a layer.
        """
        mixes = takes_batch_statistics(name, args, kwargs)
        if mixes:
            data = args[0] if args else kwargs.get("input")
            mixes = isinstance(data, Tensor) and self._holds_samples(data, is_inside)
        if not mixes and not draws(name, args, kwargs):
            return
        module, where = running_module(self.held.model)
        if mixes and not module.training:
            raise batch_statistics_error(name, where)
        if not mixes or not is_stochastic(module):
            self.chance[f"`{name}` in {where}"] = None

    def _holds_samples(self, x: Tensor, is_inside: bool) -> bool:
        """Whether the first axis of a tensor that is normalized may count samples.

        Weights are normalized by the same function, as one sample; inside a layer it is
        not known what tensors are made of.
        """
        node = self.known(x)
        if node is not None:
            return not node.is_constant
        return is_inside and (len(x) > 1 or self.batch == 1)

    def located(self, labels: list[Labels], parents: Sequence[Node]) -> list[Labels]:
        """Labels with the module whose code made its results untraceable."""
        known = (node.labels.untraceable for node in parents if node.labels)
        if any(known) or not any(each.untraceable for each in labels):
            return labels
        _, where = running_module(self.held.model)
        return [
            replace(each, untraceable=f"{each.untraceable}, in {where}")
            if each.untraceable
            else each
            for each in labels
        ]

    def refine(self, call: Call, labels: list[Labels]) -> list[Labels]:
        """Labels of the results of a call, as they are to be kept."""
        return labels


def _overlaid(
    relative: Tensor, written: Tensor, sides: Sequence[Labels], sources: Sources
) -> Labels:
    """Labels of ``relative``, some of whose memory ``written`` overwrote."""
    old, new = sides
    if old.rows is None or new.rows is None:
        why = old.untraceable or new.untraceable
        return untraceable(relative.shape, why, sources)
    channels = None
    if old.channels is not None and new.channels is not None:
        channels = rewritten(relative, written, old.channels, new.channels)
    rows = rewritten(relative, written, old.rows, new.rows)
    return Labels(relative.shape, rows, channels, sources)
