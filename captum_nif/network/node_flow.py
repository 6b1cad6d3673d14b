r"""How much flow runs through a node: two questions, and an answer to each.

:func:`flow_shares` traces the flow back from the outputs: what reaches a node divides
among the links into it. It is what pictures show, and tells where the flow to the
outputs comes from. :func:`path_flow` counts the paths through a node (Eq. 4 of the
paper) against all paths. It is what pruning goes by: a node that is strongly linked to
outputs, and hardly to inputs, has little of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_nif.graph.elements import Kind, Layer, Link
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import backward_sums, is_chain
from captum_nif.network.adjacency import check_graph, in_range


def flow_shares(graph: FlowGraph) -> dict[str, Tensor]:
    r"""Traces the flow back from the outputs: how much of it runs through each node.

    The outputs count alike. Each node's flow divides among the links into it in
    proportion to their :math:`|w|`, and so on back to the inputs: the path sums (Eq. 4)
    of the graph with weights divided by the flow into their targets.

    Args:
        graph (FlowGraph): The graph.

    Returns:
        dict of str to Tensor: For each layer by name the shares of its nodes, float64
        of shape [size of the layer]. In a chain the nodes of each layer share 1, less
        what ends at nodes that nothing flows into.

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph``.

    Examples::

        >>> from captum_nif import Layer, Link
        >>> layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
        >>> link = Link("x", "y", torch.tensor([[0.6], [-0.2]]))
        >>> flow_shares(FlowGraph(layers, [link]))["x"]
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    check_graph(graph)
    graph = in_range(graph)
    outputs = [layer for layer in graph.layers if layer.kind == "output"]
    ends = sum(layer.size for layer in outputs)
    shares = {
        layer.name: torch.zeros(layer.size, dtype=torch.float64)
        for layer in graph.layers
    }
    for output in outputs:
        seed = torch.full((output.size,), 1.0 / ends, dtype=torch.float64)
        sums = backward_sums(
            graph.layers,
            graph.links,
            output.name,
            seed,
            weight_of=lambda link: link.weight.detach().cpu().abs(),
            normalize="node",
        )
        for name, part in sums.items():
            shares[name] += part
    return shares


def path_flow(graph: FlowGraph) -> dict[str, Tensor]:
    r"""Sums the paths through each node, as a share of all paths.

    .. math::
        \frac{F_v B_v}{\sum_i B_i}

    where :math:`F_v` sums the products of :math:`|w|` over all paths from the inputs to
    node v, :math:`B_v` those from v to the outputs (Davis et al., 2020, Eq. 4), and i
    runs over the nodes of the inputs. In a chain the nodes of each layer share 1. Where
    routes differ in length, the links into each node are divided by their sum first.

    Args:
        graph (FlowGraph): The graph.

    Returns:
        dict of str to Tensor: Shares in [0, 1] by layer, float64, on the CPU; 0 if
        nothing flows.

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph``.

    Examples::

        >>> from captum_nif import Layer, Link
        >>> layers = [
        ...     Layer("x", 1, "input"), Layer("h", 2, "hidden"), Layer("y", 1, "output")
        ... ]
        >>> into = Link("x", "h", torch.tensor([[0.3, 0.1]]))
        >>> out = Link("h", "y", torch.tensor([[0.4], [-0.4]]))
        >>> path_flow(FlowGraph(layers, [into, out]))["h"]
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    from_inputs, to_outputs = paths_both_ways(graph)
    total = sum(float(to_outputs[layer.name].sum()) for layer in graph.inputs)
    return {
        name: flow * from_inputs[name] / (total or 1.0)
        for name, flow in to_outputs.items()
    }


def paths_both_ways(graph: FlowGraph) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums the products of :math:`|w|` over paths from inputs, and to outputs.

    Where routes differ in length, the links into each node are divided by their sum
    first, as in attributions.

    Args:
        graph (FlowGraph): The graph.

    Returns:
        tuple of dict: By layer the sums over paths from all inputs to each node, and
        from it to all outputs, float64, on the CPU.
    """
    check_graph(graph)
    graph = in_range(graph)
    links = [Link(*x.ends, x.weight.detach().cpu().double().abs()) for x in graph.links]
    if not is_chain(links):
        links = FlowGraph(graph.layers, links).normalized("node").links
    turned = [Link(x.target, x.source, x.weight.t()) for x in links]
    from_inputs = _sums(graph.layers[::-1], turned, "input")
    return from_inputs, _sums(graph.layers, links, "output")


def _sums(
    layers: Sequence[Layer], links: Sequence[Link], kind: Kind
) -> dict[str, Tensor]:
    """Sums over all paths from each node to the nodes of layers of a kind."""
    sums = {x.name: torch.zeros(x.size, dtype=torch.float64) for x in layers}
    for end in layers:
        if end.kind == kind:
            seed = torch.ones(end.size, dtype=torch.float64)
            parts = backward_sums(layers, links, end.name, seed, lambda x: x.weight)
            for name, part in parts.items():
                sums[name] += part
    return sums
