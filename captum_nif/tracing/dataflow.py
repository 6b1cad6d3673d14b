r"""Read layers, links and node values off the record of a forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_nif.graph.elements import Kind, Layer
from captum_nif.tracing.record import Node, Record, Source


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
        places (dict of int): where in the order of nodes the value of a hidden layer
            is made, if there is one place where all its readers take it from.
        made (dict of int): where it is made, also if some read it elsewhere.
    """

    structure: Structure
    values: dict[str, Tensor]
    places: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)


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
        self._read: set[int] = set()  # ids of the nodes that layers read
        self._children: dict[int, list[Node]] = {}
        roots = {id(node): s for s in record.sources for node in s.roots}
        live, used, stack = {id(self._end)}, set[int](), [self._end]
        while stack:
            node = stack.pop()
            for parent in node.parents:
                self._children.setdefault(id(parent), []).append(node)
            reached = list(node.parents)
            source = roots.get(id(node))
            if source is not None and source.index not in used:
                used.add(source.index)
                reached += source.reads
                self._read |= {id(read) for read in source.reads}
            for found in reached:
                if id(found) not in live:
                    live.add(id(found))
                    stack.append(found)
        self._nodes = [node for node in record.order if id(node) in live]
        self._places = {id(node): i for i, node in enumerate(record.order)}
        self._inputs = [s for s in record.sources if s.module is None]
        self.sources = [
            s for s in record.sources if s.index in used and s.module is not None
        ]
        self._refuse_unknown()

    def _refuse_unknown(self) -> None:
        for source in self.sources:
            for read in source.reads:
                why = read.refused or (read.labels.lost if read.labels else "")
                if why:
                    raise _unfollowed(f"The layer {source.name!r}", why)
            for root in source.roots[:1]:
                if root.labels is not None and root.labels.lost:
                    raise _no_layer(source, root.labels.lost)
        labels, why = self._end.labels, self._end.refused
        if labels is None:
            why = why or "it does not depend on the inputs"
        elif labels.rows is None:
            why = why or labels.lost
        elif not labels.in_order():
            why = why or (
                f"it has shape {tuple(self.output.shape)}, and sample i is not what "
                "stands at place i of its first axis"
            )
        if why:
            raise _unfollowed("The output", why)

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
        places: dict[str, int] = {}
        made: dict[str, int] = {}
        links: list[tuple[str, str]] = []

        def add(name: str, value: Tensor, kind: Kind, shape: tuple[int, ...]) -> None:
            layers.append(Layer(name, value.shape[1], kind, shape=shape))
            values[name] = value

        for source, x in zip(self._inputs, inputs, strict=True):
            names[source.index] = source.name
            flat = x.detach().clone().reshape(len(x), -1)
            add(source.name, flat, "input", tuple(x.shape[1:]))
        is_own = True  # whether the output is a layer of its own
        for source in self.sources:
            node, is_handed_on = self._value(source)
            name = source.name
            if is_handed_on and node is self._end and self._is_value(source):
                is_own = False
                name = name.replace("output:0", "output")
                add(name, output.reshape(n, -1), "output", shape)
            else:
                assert node.value is not None
                add(name, node.value, "hidden", node.shape)
                made[name] = self._places[id(node)]
                if is_handed_on:
                    places[name] = self._places[id(node)]
            names[source.index] = name
            read = {i for node in source.reads for i in node.sources}
            links += [(names[i], name) for i in sorted(read)]
        if is_own:
            add("output", output.reshape(n, math.prod(shape)), "output", shape)
            links += [(names[i], "output") for i in sorted(self._end.sources)]
        return Trace(Structure(tuple(layers), tuple(links)), values, places, made)

    def _value(self, source: Source) -> tuple[Node, bool]:
        """The version that gives the values of a layer's nodes.

        And whether all that read the layer read it through this version.
        """
        region = [node for node in self._nodes if node.sources == {source.index}]
        place = {id(node): i for i, node in enumerate(region)}
        # A node lies on every path from the layer to its readers if no edge jumps over
        # it: `furthest` is where the edges from before it lead.
        furthest = max(place[id(root)] for root in source.roots if id(root) in place)
        last: Node | None = None
        for i, node in enumerate(region):
            if furthest <= i and node.value is not None:
                last = node
            leaves = node is self._end or id(node) in self._read
            children = [place.get(id(c)) for c in self._children.get(id(node), [])]
            for child in children:
                leaves = leaves or child is None
                furthest = max(furthest, child or 0)
            if leaves:
                break
        if last is not None:
            return last, True
        main = source.roots[0]
        if main.value is not None:  # its states are read as well
            return main, False
        raise _no_layer(source, "it gives values for only some of the samples")

    def _is_value(self, source: Source) -> bool:
        """Whether the output is the layer's value, one element a channel, in order."""
        assert self._end.labels is not None
        index = self._end.labels.pairs(source.size)
        return index is not None and torch.equal(
            index, torch.arange(len(self.output) * source.size, device=index.device)
        )


def _unfollowed(reader: str, why: str) -> NotImplementedError:
    return NotImplementedError(
        f"{reader} reads a tensor that cannot be followed: {why}. " + _advice(why)
    )


def _no_layer(source: Source, why: str) -> NotImplementedError:
    return NotImplementedError(
        f"The layer {source.name!r} cannot be a layer of the graph: {why}. "
        + _advice(why)
    )


def _advice(why: str) -> str:
    if "mixes samples" in why:
        return "The values of a sample must depend on that sample alone."
    return "Naming the module around it in `layers=` makes it one layer."
