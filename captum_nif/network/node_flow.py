r"""How much of the flow from the inputs to the outputs runs through each node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_nif.graph.elements import Kind, Layer, Link
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import backward_sums


def path_flow(graph: FlowGraph) -> dict[str, Tensor]:
    r"""Sums the paths through each node, as a share of all paths.

    .. math::
        \frac{F_v B_v}{\sum_i B_i}

    where :math:`F_v` sums the products of :math:`|w|` over all paths from the inputs to
    node v, :math:`B_v` those from v to the outputs (Davis et al., 2020, Eq. 4), and i
    runs over the nodes of the inputs. In a chain the nodes of each layer share 1. Where
    routes differ in length, the links into each node are divided by their sum first.

    Args:
        graph (FlowGraph): the graph.

    Returns:
        dict of str to Tensor: shares in [0, 1] by layer, float64, on the CPU; 0 if
        nothing flows.

    Examples::

        >>> layers = [
        ...     Layer("x", 1, "input"), Layer("h", 2, "hidden"), Layer("y", 1, "output")
        ... ]
        >>> into = Link("x", "h", torch.tensor([[0.3, 0.1]]))
        >>> out = Link("h", "y", torch.tensor([[0.4], [-0.4]]))
        >>> path_flow(FlowGraph(layers, [into, out]))["h"]
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    links = [Link(*x.ends, x.weight.detach().cpu().double().abs()) for x in graph.links]
    if _has_branches(links):
        links = FlowGraph(graph.layers, links).normalized("node").links
    turned = [Link(x.target, x.source, x.weight.t()) for x in links]
    to_outputs = _sums(graph.layers, links, "output")
    from_inputs = _sums(graph.layers[::-1], turned, "input")
    total = sum(float(to_outputs[layer.name].sum()) for layer in graph.inputs)
    return {
        name: flow * from_inputs[name] / (total or 1.0)
        for name, flow in to_outputs.items()
    }


def _has_branches(links: Sequence[Link]) -> bool:
    sources, targets = {x.source for x in links}, {x.target for x in links}
    return len(sources) < len(links) or len(targets) < len(links)


def _sums(
    layers: Sequence[Layer], links: Sequence[Link], kind: Kind
) -> dict[str, Tensor]:
    """Sums over all paths from each node to the nodes of layers of a kind."""
    found = {x.name: torch.zeros(x.size, dtype=torch.float64) for x in layers}
    for end in layers:
        if end.kind == kind:
            seed = torch.ones(end.size, dtype=torch.float64)
            sums = backward_sums(layers, links, end.name, seed, lambda x: x.weight)
            for name, part in sums.items():
                found[name] += part
    return found
