r"""Pruning by information flow (Davis et al., 2020, section 4.2)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn
from torch.nn.utils import prune as torch_prune

from captum_nif._messages import warn
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.pruning.prunable import check_sizes, connections, nodes
from captum_nif.pruning.units import Units, count_of, lowest
from captum_nif.pruning.wiring import Example, copied, wiring
from captum_nif.tracing.tracer import find_layers

Level = Literal["link", "node"]


def prune(
    model: nn.Module,
    graph: FlowGraph,
    amount: float,
    level: Level = "link",
    example_inputs: Example | None = None,
    inplace: bool = False,
) -> nn.Module:
    r"""
    Zeroes the connections or the nodes that carry the least information.

    Masks are applied by ``torch.nn.utils.prune.custom_from_mask``. So a pruned module
    holds ``weight_orig`` and ``weight_mask`` in place of ``weight``, in its state dict
    too; it trains on while zeros stay zero, and ``torch.nn.utils.prune.remove`` makes
    them permanent. A model that is pruned already is pruned further.

    ``level="link"``: the importance of a connection is the sum of :math:`|w|` over its
    links. It is one weight of a linear layer, or one kernel of a convolution, from an
    input channel (of an image, a color with the links of all its pixels) to an output
    channel. A neuron that reads flattened maps has one connection to each map, with the
    weights of all its positions. Where maps are added before they are read, their links
    share one kernel and count together. Links without weights of their own (shortcuts,
    recurrent layers, attention, embeddings) are left alone. Amounts of information in
    different layers may not compare, and a layer that is pruned whole breaks the
    network: above all in networks with shortcuts, pass ``graph.normalized("layer")``.

    ``level="node"``: the importance of a hidden neuron or channel is its share of the
    flow from the inputs to the outputs: the sum, over all paths through it, of the
    products of :math:`|w|`. Its weights and bias are zeroed, and the scale and shift of
    norms that read it alone. Its value is then constant, and 0 unless an activation
    such as a sigmoid makes something of 0.

    Args:

        model (torch.nn.Module): The network that the graph was made of.
        graph (FlowGraph): Its flow, such as ``NIFAttribution(model).fit(x).flow()``.
        amount (float or int): How many connections or nodes of the whole network to
            prune, of those not yet pruned: a share in [0, 1] if a float, a number if an
            int. Of equals the first is pruned first.
        level (str, optional): ``"link"`` or ``"node"``.
            Default: ``"link"``
        example_inputs (Tensor or tuple, optional): What to call the model with, to see
            which weight reads what: its input, or a tuple of all its arguments, with
            samples along axis 0. Needed by models that take token ids or further
            arguments.
            Default: None (random numbers of the shapes of the graph's inputs)
        inplace (bool, optional): Prune the model itself, not a copy.
            Default: False

    Returns:

        **torch.nn.Module**: the pruned copy, or ``model`` if ``inplace``.

    Raises:

        TypeError: If an argument is of the wrong type.
        ValueError: If ``amount`` is out of range, ``level`` unknown, the graph that of
            another model or of the neurons of feature maps (``nodes="neuron"``), which
            are pruned whole, a weight computed from others (weight_norm), or if there
            is nothing to prune. The model is then as it was.
        NotImplementedError: If the model cannot be hooked (scripted, compiled).

    Warns:

        UserWarning: If a layer is left alone because it cannot be told which of its
            weights reads what.

    Examples::

        >>> import torch
        >>> from captum_nif import NIFAttribution
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ... ).eval()
        >>> graph = NIFAttribution(net).fit(torch.randn(200, 4)).flow()
        >>> pruned = prune(net, graph, 0.25)  # of 4 * 8 + 8 * 3 weights
        >>> sum(int((pruned[i].weight == 0).sum()) for i in (0, 2))
        14
        >>> sorted(pruned[0].state_dict())
        ['bias', 'weight_mask', 'weight_orig']
        >>> torch.nn.utils.prune.remove(pruned[0], "weight")
        Linear(in_features=4, out_features=8, bias=True)
    """
    units = find_units(model, graph, level, example_inputs)
    left = units.left(model)
    chosen = lowest(units.flow, left, count_of(amount, left, units.kind))
    target = model if inplace else copied(model)
    for part, mask in units.masks(chosen, target):
        for path, name in part.names:
            torch_prune.custom_from_mask(target.get_submodule(path), name, mask)
    return target


def find_units(
    model: nn.Module, graph: FlowGraph, level: Level, example_inputs: Example | None
) -> Units:
    """Finds the connections or nodes of a model, and says which layers have none.

    Args:
        model (Module): as :func:`prune` takes it, and so are the others.
        graph (FlowGraph): its flow.
        level (str): ``"link"`` or ``"node"``.
        example_inputs (Tensor or tuple or None): what to call it with.
    """
    find_layers(model)  # refuses what is no module, or one that cannot be hooked
    if not isinstance(graph, FlowGraph):
        raise TypeError(f"`graph` must be a FlowGraph, got {type(graph).__name__}")
    if level not in get_args(Level):
        raise ValueError(f"`level` must be one of {get_args(Level)}, got {level!r}")
    check_sizes(model, graph)
    find = connections if level == "link" else nodes
    units = find(model, graph, wiring(model, graph, example_inputs))
    if not len(units.flow):
        raise ValueError(
            f"the model has no {units.kind} to prune: only linear and convolutional "
            "layers of the graph have weights of their own, and of nodes only hidden "
            "ones are pruned" + "".join(f"; left alone: {x}" for x in units.left_alone)
        )
    if units.left_alone:
        warn(f"Layers left alone: {'; '.join(units.left_alone)}.")
    return units
