r"""What can be pruned: connections and nodes, the weights they own, the flow in them.

Pruning zeroes weights, and a flow graph has links. A *connection* is the smallest set
of weights that serves a set of links alone:

- between linear layers, one weight and its link;
- between convolutions, one kernel and its link;
- from a feature map to a neuron, the weights of all its positions and their link;
- from an image to a channel, the kernel over one color and the links of its pixels;
- after a residual sum, one weight or kernel and the links of all that was added.

A *node* owns the weights into it, its bias, and the scale and shift of the norms that
read it alone. Links without a weight of their own, such as shortcuts, own nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from captum_nif.graph.elements import Layer
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.node_flow import path_flow
from captum_nif.pruning.units import (
    Entries,
    Name,
    Units,
    has_parameter,
    parameter,
    stored_name,
)
from captum_nif.pruning.wiring import NORMS, WEIGHTED, Call, Reads, layer_calls

Ends = tuple[str, str]


def check_sizes(model: nn.Module, graph: FlowGraph) -> None:
    """Refuses a graph whose layers do not have the nodes that weights lead to.

    Args:
        model (Module): the network.
        graph (FlowGraph): its flow.

    Raises:
        ValueError: if the graph is another model's, or one of the neurons of feature
            maps: all places of a map share their weights.
    """
    for name, call in layer_calls(model, graph).items():
        module, layer = model.get_submodule(call.path), graph.layer(name)
        if not isinstance(module, WEIGHTED) or not has_parameter(module, "weight"):
            continue
        size, _ = _sizes(module)
        if layer.size == size:
            continue
        if len(layer.shape) > 1 and layer.shape[0] == size:
            raise ValueError(
                f"the graph's layer {name!r} has {layer.size} neurons at the places of "
                f"{size} feature maps, and `prune` zeroes weights, which serve whole "
                'maps: make the graph with `nodes="channel"`, also beside '
                '`preset="faithful"`, whose nodes are neurons'
            )
        raise ValueError(
            f"the graph's layer {name!r} has {layer.size} nodes, and the model's "
            f"{size}: the graph was made of another model"
        )


def connections(
    model: nn.Module, graph: FlowGraph, wires: Mapping[Call, Reads]
) -> Units:
    """The connections of a model; each carries the sum of :math:`|w|` of its links.

    Args:
        model (Module): the network.
        graph (FlowGraph): its flow.
        wires (Mapping): what :func:`captum_nif.pruning.wiring.wiring` found.

    Raises:
        ValueError: if the graph is another model's, or a weight is no parameter.
    """
    entries, flows, left_alone, count = [], [_NOTHING], [], 0
    for weight in _weights(model, graph, wires):
        n_nodes, n_columns = weight.sizes
        reads, unknown = _reads_of(weight, n_columns, graph, wires)
        if unknown or weight.outsiders:
            left_alone += unknown or [weight.tied]
            continue
        group_of, node_groups = _column_groups(graph, reads, n_columns)
        flow = torch.zeros(int(group_of.max()) + 1, n_nodes, dtype=torch.float64)
        for link in graph.links:
            if link.ends in reads:
                sources, targets, values = (part.cpu() for part in link.entries())
                groups = node_groups[link.ends][sources]
                used = groups >= 0
                at = (groups[used], targets[used])
                flow.index_put_(at, values[used].detach().abs().double(), True)
        node, column = weight.places()
        group = group_of[column]
        units = count + group * n_nodes + node
        entries.append(Entries(weight.names, torch.where(group < 0, -1, units)))
        flows.append(flow.flatten())
        count += flow.numel()
    return Units(
        kind="connections",
        entries=tuple(entries),
        flow=torch.cat(flows),
        left_alone=tuple(left_alone),
    )


def nodes(model: nn.Module, graph: FlowGraph, wires: Mapping[Call, Reads]) -> Units:
    """The neurons and channels of hidden layers; each carries its share of path flow.

    Args:
        model (Module): the network.
        graph (FlowGraph): its flow.
        wires (Mapping): what :func:`captum_nif.pruning.wiring.wiring` found.

    Raises:
        ValueError: if the graph is another model's, or a weight is no parameter.
    """
    share, names = path_flow(graph), _names_of_parameters(model)
    entries, flows, layers, left_alone, count = [], [_NOTHING], [], [], 0
    for weight in _weights(model, graph, wires):
        if any(layer.kind == "output" for layer, _ in weight.calls):
            continue  # classes stay
        if weight.outsiders:
            left_alone.append(weight.tied)
            continue
        n_nodes, _ = weight.sizes
        node, _ = weight.places()
        entries.append(Entries(weight.names, count + node))
        users = [model.get_submodule(path) for path, _ in weight.names]
        biases = [parameter(x, "bias") for x in users if has_parameter(x, "bias")]
        own = count + torch.arange(n_nodes)
        keys = dict.fromkeys(map(id, biases))
        entries += [Entries(tuple(names[key]), own) for key in keys]
        layers += [(layer, count) for layer, _ in weight.calls]
        flows.append(torch.stack([share[x.name] for x, _ in weight.calls]).sum(0))
        count += n_nodes
    entries += _norms(model, wires, {layer.name: start for layer, start in layers})
    return Units(
        kind="nodes",
        entries=tuple(entries),
        flow=torch.cat(flows),
        layers=tuple(layers),
        left_alone=tuple(left_alone),
    )


_NOTHING = torch.zeros(0, dtype=torch.float64)


# --- weights and those who use them ---------------------------------------------------


@dataclass(frozen=True)
class _Weight:
    """One weight, of a module with one or more calls, or of modules that share it."""

    module: nn.Module
    names: tuple[Name, ...]
    calls: tuple[tuple[Layer, Call], ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of nodes that it leads to, and of columns that it reads."""
        return _sizes(self.module)

    def places(self) -> tuple[Tensor, Tensor]:
        """The node that each entry leads to, and the column that it reads."""
        rows, others = parameter(self.module, "weight").shape[:2]
        row = torch.arange(rows).unsqueeze(1).expand(rows, others)
        other = row // (rows // _groups(self.module)) * others + torch.arange(others)
        return (other, row) if _is_transposed(self.module) else (row, other)

    @property
    def outsiders(self) -> list[str]:
        """Modules that use the weight for something else, such as an embedding."""
        users = {call.path for _, call in self.calls}
        return sorted({path for path, _ in self.names} - users)

    @property
    def tied(self) -> str:
        """Why it is left alone if there are outsiders."""
        layers = ", ".join(repr(layer.name) for layer, _ in self.calls)
        return f"{layers} (tied to {', '.join(map(repr, self.outsiders))})"


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Number of nodes that a weight leads to, and of columns that it reads."""
    rows, others = parameter(module, "weight").shape[:2]
    others *= _groups(module)
    return (others, rows) if _is_transposed(module) else (rows, others)


def _is_transposed(module: nn.Module) -> bool:
    """Whether columns come before nodes in the shape of its weight."""
    return bool(getattr(module, "transposed", False))


def _groups(module: nn.Module) -> int:
    """Groups of a convolution: the axis behind the first is that of one group."""
    return int(getattr(module, "groups", 1))


def _weights(
    model: nn.Module, graph: FlowGraph, wires: Mapping[Call, Reads]
) -> list[_Weight]:
    """The weights of the layers of a graph, which fit it."""
    names = _names_of_parameters(model)
    modules: dict[int, nn.Module] = {}
    users: dict[int, list[tuple[Layer, Call]]] = defaultdict(list)
    for name, call in layer_calls(model, graph).items():
        module = model.get_submodule(call.path)
        if not isinstance(module, WEIGHTED):
            continue
        if not has_parameter(module, "weight"):
            raise ValueError(
                f"the weight of layer {name!r} is computed from other parameters, as "
                "by weight_norm: make it a parameter first, for example by "
                "`torch.nn.utils.parametrize.remove_parametrizations`"
            )
        key = id(parameter(module, "weight"))
        modules[key] = module
        users[key].append((graph.layer(name), call))
    weights = [
        _Weight(modules[key], tuple(names[key]), tuple(calls))
        for key, calls in users.items()
    ]
    for weight in weights:
        for layer, call in weight.calls:
            for source in wires.get(call, {}):
                if source not in _linked(graph, layer):
                    raise ValueError(
                        f"the model's layer {layer.name!r} reads {source!r}, and the "
                        "graph has no such link: it was made of another model"
                    )
    return weights


def _linked(graph: FlowGraph, layer: Layer) -> list[str]:
    """The layers that a layer has links from."""
    return [link.source for link in graph.links if link.target == layer.name]


def _names_of_parameters(model: nn.Module) -> Mapping[int, list[Name]]:
    """All names of every parameter, by its id: one that is tied has several."""
    names: dict[int, list[Name]] = defaultdict(list)
    for path, module in model.named_modules():
        for key, value in module._parameters.items():
            name = key.removesuffix("_orig")
            is_masked = stored_name(module, name) == key
            names[id(value)].append((path, name if is_masked else key))
    return names


# --- columns --------------------------------------------------------------------------


def _reads_of(
    weight: _Weight, n_columns: int, graph: FlowGraph, wires: Mapping[Call, Reads]
) -> tuple[dict[Ends, Tensor], list[str]]:
    """Nodes and columns of all links into a weight, and calls that cannot be told."""
    reads: dict[Ends, Tensor] = {}
    unknown = []
    for layer, call in weight.calls:
        found = _reads_by_source(graph, layer, n_columns, wires.get(call, {}))
        if not found:
            unknown.append(f"{layer.name!r} (what it reads is mixed on the way)")
        reads.update({(source, layer.name): pairs for source, pairs in found.items()})
    return reads, unknown


def _reads_by_source(
    graph: FlowGraph, layer: Layer, n_columns: int, reads: Reads
) -> dict[str, Tensor]:
    """Nodes and columns by source, for the links of a layer that have weights."""
    # What is mixed with others on its way, as by attention, has no column of its own.
    known = {name: pairs for name, pairs in reads.items() if pairs is not None}
    if known:
        return {name: pairs for name, pairs in known.items() if pairs.numel()}
    # Where everything is mixed, as by a norm written out, columns keep their places.
    by_place = {}
    for source in map(graph.layer, _linked(graph, layer)):
        if source.shape[0] != n_columns:
            return {}
        places = torch.arange(source.size)
        columns = places // (source.size // n_columns)
        by_place[source.name] = torch.stack((places, columns))
    return by_place


def _column_groups(
    graph: FlowGraph, reads: Mapping[Ends, Tensor], n_columns: int
) -> tuple[Tensor, dict[Ends, Tensor]]:
    """Joins columns into the smallest groups such that no node feeds two of them.

    Returns:
        Tensor and dict of Tensor: the group of each column, and by link that of each
        node of its source; -1 for columns without nodes and nodes without columns.
    """
    starts, stop = {}, n_columns
    for ends in reads:
        starts[ends] = stop
        stop += graph.layer(ends[0]).size
    edges = torch.cat(
        [pairs + torch.tensor([[starts[ends]], [0]]) for ends, pairs in reads.items()],
        dim=1,
    )
    rows, columns = edges.numpy()
    bipartite = coo_array((rows >= 0, (rows, columns)), shape=(stop, stop))
    _, labels = connected_components(bipartite, directed=False)
    group = torch.full((stop,), -1)
    met = edges.flatten()
    group[met] = torch.from_numpy(labels).long()[met]
    of_nodes = {
        ends: group[start : start + graph.layer(ends[0]).size]
        for ends, start in starts.items()
    }
    return group[:n_columns], of_nodes


# --- norms ----------------------------------------------------------------------------


def _norms(
    model: nn.Module, wires: Mapping[Call, Reads], starts: Mapping[str, int]
) -> list[Entries]:
    """Scale and shift of norms, where a channel holds the value of one node alone."""
    reads: dict[str, list[Reads]] = defaultdict(list)
    for call, found in wires.items():
        reads[call.path].append(found)
    entries = []
    for path, module in model.named_modules():
        for name in ("weight", "bias"):
            if not isinstance(module, NORMS) or not has_parameter(module, name):
                continue
            value = parameter(module, name)
            if value.dim() == 1:
                units = _nodes_alone(reads[path], starts, len(value))
                entries.append(Entries(((path, name),), units))
    return entries


def _nodes_alone(
    reads: Sequence[Reads], starts: Mapping[str, int], n_channels: int
) -> Tensor:
    """The node that each channel of a norm holds, -1 where there is none or several."""
    first = torch.full((n_channels,), torch.iinfo(torch.int64).max)
    last = torch.full((n_channels,), -1)
    for source, pairs in (item for found in reads for item in found.items()):
        if pairs is None or not pairs.numel():
            return torch.full((n_channels,), -1)
        nodes, channels = pairs
        units = (
            nodes + starts[source] if source in starts else torch.full_like(nodes, -1)
        )
        first.scatter_reduce_(0, channels, units, "amin")
        last.scatter_reduce_(0, channels, units, "amax")
    return torch.where(first == last, first, -1)
