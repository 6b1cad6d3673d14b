r"""Read layers, links and node values off the record of a forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_nif.graph.elements import Kind, Layer
from captum_nif.tracing.layer_types import layer_type_of
from captum_nif.tracing.layers import channel_axis
from captum_nif.tracing.origins import Labels
from captum_nif.tracing.record import ModuleCall, Node, Record, Source
from captum_nif.tracing.refusals import no_layer, unfollowed


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
        positions (dict of int): where in the order of versions of tensors the value of
            a hidden layer is made, if there is one from which all its readers take it.
        made (dict of int): where it is made, also if some read it elsewhere.
        results (dict of int): where the main result of a layer's call is made.
        calls (dict of ModuleCall): what was called for each layer, by name; without
            inputs, and without an output that is no layer's value.
        chance (tuple of str): what drew random numbers, if anything did.
        channels_last (frozenset of str): the inputs whose features lie along the last
            axis, as tokens have them: [T, D], and not [C, H, W].
    """

    structure: Structure
    values: dict[str, Tensor]
    positions: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)
    calls: dict[str, ModuleCall] = field(default_factory=dict)
    chance: tuple[str, ...] = ()
    channels_last: frozenset[str] = frozenset()


class Dataflow:
    """The part of a record that reaches the output.

    Args:
        record (Record): after the forward pass.
        output (Tensor): what the model returned.

    Raises:
        NotImplementedError: if a layer or the output reads what cannot be followed.
    """

    def __init__(self, record: Record, output: Tensor) -> None:
        self.output = output
        self._end = record.node(output)
        self._order, self._held = record.order, record.held
        self._chance = tuple(record.chance)
        self._inputs = [s for s in record.sources if s.call is None]
        self._layers = [s for s in record.sources if s.call is not None]
        self._categories = frozenset(self._categorical(record))
        self._flow_back()
        self.sources = [s for s in self._layers if s.index in self._used]
        self._refuse_unknown()

    def _categorical(self, record: Record) -> set[int]:
        """Which integer inputs are no nodes: numbers of categories, masks, lengths.

        What is looked up in a table is a category, whatever else is made of it. Other
        integers are values if something reads them alone, as pixels are read; what is
        only met together with values of layers is a mask, a length or a position.
        """
        alone: set[int] = set()
        for reads in (*(source.reads for source in self._layers), [self._end]):
            sources = [node.sources for node in reads]
            if all(some <= record.integers for some in sources):
                alone.update(*sources)
        return {i for i in record.integers if i in record.looked_up or i not in alone}

    def _flow_back(self) -> None:
        """Find what reaches the output, from the last version of a tensor to the first.

        A path may end on the way: a slice may leave out what a source has written. So
        each version gets the sources that reach the output *through it*.
        """
        roots = {id(node): s for s in self._layers for node in s.roots}
        self._used: set[int] = set()  # indices of layers
        self._read: set[int] = {id(self._end)}  # ids of nodes that are read
        self._live: dict[int, frozenset[int]] = {}  # sources, by id of the node
        self._children: dict[int, list[Node]] = {}
        reaching: dict[int, frozenset[int]] = {id(self._end): self._end.sources}
        nodes = [self._end, *reversed(self._order)]
        for node in nodes:
            if id(node) in self._live or id(node) not in reaching:
                continue
            live = self._live[id(node)] = reaching[id(node)] & node.sources
            source = roots.get(id(node))
            if source is not None and source.index in live:
                self._used.add(source.index)
                for read in source.reads:
                    self._read.add(id(read))
                    known = reaching.get(id(read), frozenset())
                    reaching[id(read)] = known | read.sources
            for parent in node.parents:
                self._children.setdefault(id(parent), []).append(node)
                known = reaching.get(id(parent), frozenset())
                reaching[id(parent)] = known | live

    def _refuse_unknown(self) -> None:
        for source in self.sources:
            for read in source.reads:
                why = read.refused or (read.labels.untraceable if read.labels else "")
                if why:
                    raise unfollowed(f"The layer {source.name!r}", why)
            for root in source.roots[:1]:
                if root.labels is not None and root.labels.untraceable:
                    raise no_layer(source.name, root.labels.untraceable)
        labels, why = self._end.labels, self._end.refused
        if labels is None:
            why = why or "it does not depend on the inputs"
        elif labels.rows is None:
            why = why or labels.untraceable
        elif not labels.in_order():
            why = why or (
                f"it has shape {tuple(self.output.shape)}, and sample i is not what "
                "stands at place i of its first axis"
            )
        if why:
            raise unfollowed("The output", why)

    def trace(self, inputs: tuple[Tensor, ...]) -> Trace:
        """Structure and values.

        Args:
            inputs (tuple of Tensor): as the caller gave them; their elements are nodes.
        """
        output, n = self.output.detach(), len(self.output)
        shape = tuple(output.shape[1:])
        names: dict[int, str] = {}
        layers: list[Layer] = []
        values: dict[str, Tensor] = {}
        positions: dict[str, int] = {}
        made: dict[str, int] = {}
        results: dict[str, int] = {}
        calls: dict[str, ModuleCall] = {}
        links: list[tuple[str, str]] = []
        versions = {id(node): i for i, node in enumerate(self._order)}

        def add(name: str, value: Tensor, kind: Kind, shape: tuple[int, ...]) -> None:
            layers.append(Layer(name, value.shape[1], kind, shape=shape))
            values[name] = value

        def link(nodes: Sequence[Node], name: str) -> None:
            read = {i for node in nodes for i in node.sources} - self._categories
            links.extend((names[i], name) for i in sorted(read))

        for source, x in zip(self._inputs, inputs, strict=True):
            names[source.index] = source.name
            flat = x.detach().clone().reshape(len(x), -1)
            add(source.name, flat, "input", tuple(x.shape[1:]))
        is_own = True  # whether the output is a layer of its own
        for source in self.sources:
            assert source.call is not None
            node, passes_on = self._value(source)
            name = source.name
            if passes_on and node is self._end and self._is_value(source):
                is_own = False
                name = "output" if source.call == ModuleCall("output") else name
                add(name, output.reshape(n, -1), "output", shape)
            else:
                assert node.value is not None
                add(name, node.value, "hidden", node.shape)
                made[name] = versions[id(node)]
                results[name] = versions[id(source.roots[0])]
                if passes_on:
                    positions[name] = versions[id(node)]
            names[source.index] = name
            calls[name] = source.call
            link(source.reads, name)
        if is_own:
            add("output", output.reshape(n, math.prod(shape)), "output", shape)
            link([self._end], "output")
        structure = Structure(tuple(layers), tuple(links))
        last = frozenset(self._channels_last())
        return Trace(
            structure, values, positions, made, results, calls, self._chance, last
        )

    def _channels_last(self) -> Iterator[str]:
        """Inputs of which all that is known to read them mixes the last axis."""
        for source in (s for s in self._inputs if len(s.shape) > 1):
            read = [
                self._mixes_channels(reader, node.labels, source.shape[-1])
                for reader in self.sources
                for node in reader.reads
                if node.sources == {source.index} and node.labels is not None
            ]
            if read and all(read):
                yield source.name

    def _mixes_channels(self, reader: Source, labels: Labels, count: int) -> bool:
        """Whether a layer takes so many channels of what it reads for its features."""
        assert reader.call is not None
        module = self._held.module(reader.call.path)
        layer_type = None if module is None else layer_type_of(module)
        if module is None or layer_type is None:
            return False
        axis = layer_type.channel_axis(module, len(labels.shape))
        return channel_axis(labels) == axis and labels.shape[axis] == count

    def _value(self, source: Source) -> tuple[Node, bool]:
        """The version that gives the values of a layer's nodes.

        And whether all that read the layer read it through this version.
        """
        own = frozenset([source.index])
        region = [
            node
            for node in self._order
            if source.index in self._live.get(id(node), ())
            and node.sources - self._categories == own
        ]
        place = {id(node): i for i, node in enumerate(region)}
        # A node lies on every path from the layer to its readers if no edge jumps over
        # it: `furthest` is where the edges from before it lead.
        furthest = max(place[id(root)] for root in source.roots if id(root) in place)
        last: Node | None = None
        for i, node in enumerate(region):
            if furthest <= i and node.value is not None:
                last = node
            leaves = id(node) in self._read
            for child in self._children.get(id(node), []):
                if source.index not in self._live[id(child)]:
                    continue
                leaves = leaves or id(child) not in place
                furthest = max(furthest, place.get(id(child), 0))
            if leaves:
                break
        if last is not None:
            return last, True
        main = source.roots[0]
        if main.value is not None:  # its states are read as well
            return main, False
        assert source.call is not None
        why = "it gives values for only some of the samples"
        raise no_layer(source.name, why, self._held.around(source.call.path))

    def _is_value(self, source: Source) -> bool:
        """Whether the output is the layer's value, one element a channel, in order."""
        assert self._end.labels is not None
        index = self._end.labels.pairs(source.size)
        return index is not None and torch.equal(
            index, torch.arange(len(self.output) * source.size, device=index.device)
        )
