r"""Sums over all paths of a layered graph (Eq. 4 of the paper), without listing them.

The attribution of output :math:`y_j` to input :math:`x_i` is the sum, over all
directed paths from :math:`x_i` to :math:`y_j`, of the product of the weights on the
path (Davis et al., 2020, Eq. 4). There are exponentially many paths, but the sums
obey the recursion of the chain rule: with :math:`v_B` the sums from layer B on,

.. math::
    v_A = \sum_{A \to B} W_{AB} \, v_B ,

so one pass over the links in reverse topological order gives them all.
"""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from captum_nif.graph.elements import Layer, sorted_sparse
from captum_nif.graph.field_matrix import FieldMatrix

Normalization = Literal["layer", "node"]

Weight = Tensor | FieldMatrix
"""Of all connections of a link: full, sparse (COO), or full for each pair of places."""


class Ends(Protocol):
    """Anything that runs from a layer to a later one, such as a ``Link``."""

    @property
    def source(self) -> str:
        """Name of the layer it starts from."""

    @property
    def target(self) -> str:
        """Name of the layer it runs to."""


L = TypeVar("L", bound=Ends)


def is_chain(links: Iterable[Ends]) -> bool:
    """Whether every layer reads one layer at most, and is read by one at most."""
    ends = [(link.source, link.target) for link in links]
    return all(len(set(side)) == len(ends) for side in zip(*ends, strict=True))


def backward_sums(
    layers: Sequence[Layer],
    links: Iterable[L],
    layer: str,
    seed: Tensor,
    weight_of: Callable[[L], Weight],
    normalize: Normalization | None = None,
    gains: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""Accumulates path sums backwards from the nodes of one layer.

    Weights may carry batch dimensions in front, one graph per sample, and so may the
    seed; they broadcast. ``weight_of`` is called once per link that can reach
    ``layer``, just before the link is used, so weights can be made on the fly: only
    the links into one layer are held at a time. The sums are as differentiable as
    the weights.

    Args:
        layers (sequence of Layer): All layers, in topological order.
        links (iterable): The links, each with a ``source`` and a ``target``.
        layer (str): Name of the layer where the paths end.
        seed (Tensor): What each of its nodes counts for, shape [..., size of
            ``layer``]: a row of the identity picks one node. It carries the whole
            batch shape, and its dtype and device are those of the computation.
        weight_of (callable): Gives the weight of a link, shape [..., size of source,
            size of target]; weights that are not full have no batch dimensions.
        normalize (str, optional): Divide the weights as :func:`incoming_totals`
            says before they are used: ``"layer"``, ``"node"`` or ``None`` for no
            division (Eq. 4 as printed).
            Default: ``None``
        gains (Mapping, optional): Factors of the nodes of some layers, shape [...,
            size], by which every path through a node is multiplied. They are applied
            where paths pass through a node or end in it, not where they begin.
            Default: ``None``

    Returns:
        dict of str to Tensor: For every layer, the sums from its nodes to the seed,
        shape [..., size]; 0 where no path leads there, and the seed itself for
        ``layer``, whose paths have length 0.

    Examples::

        >>> from types import SimpleNamespace
        >>> layers = [Layer("x", 2, "input"), Layer("y", 1, "output")]
        >>> link = SimpleNamespace(source="x", target="y")
        >>> weight = torch.tensor([[[3.0], [4.0]], [[5.0], [6.0]]])  # two samples
        >>> sums = backward_sums(
        ...     layers, [link], "y", torch.ones(2, 1), weight_of=lambda link: weight
        ... )
        >>> sums["x"]
        tensor([[3., 4.],
                [5., 6.]])
    """
    incoming: dict[str, list[L]] = defaultdict(list)
    for link in links:
        incoming[link.target].append(link)
    sums = {layer: seed}
    for reached in reversed(layers):
        if reached.name not in sums or reached.name not in incoming:
            continue
        value = sums[reached.name]
        if gains is not None and reached.name in gains:
            value = value * gains[reached.name]
        weights = [weight_of(link) for link in incoming[reached.name]]
        if normalize is not None:
            # Dividing what the columns meet is dividing the columns.
            value = value / incoming_totals(weights, normalize).to(value.dtype)
        for link, weight in zip(incoming[reached.name], weights, strict=True):
            flow = _contract(weight, value)
            earlier = sums.get(link.source)
            sums[link.source] = flow if earlier is None else earlier + flow
    for unreached in layers:
        if unreached.name not in sums:
            sums[unreached.name] = seed.new_zeros(*seed.shape[:-1], unreached.size)
    return sums


def incoming_totals(weights: Sequence[Weight], by: Normalization) -> Tensor:
    r"""Sums up how much flow enters each node of a layer, to divide it by.

    Raw products of weights favor long routes. With every *layer's* incoming flow
    scaled to 1 the layers compare, as in a picture; with every *node's* incoming flow
    scaled to 1 long and short routes do.

    Args:
        weights (sequence): The weights of all links into one layer, each of
            shape [..., size of its source, size of the layer].
        by (str): ``"layer"`` for the sum of :math:`|w|` over all links into the
            layer, ``"node"`` for the sum over those into each node.

    Returns:
        Tensor: The divisor of each target node, shape [..., size of the layer], in
        at least single precision. Sums of 0 come as 1: no flow stays no flow.

    Raises:
        ValueError: If ``by`` is neither ``"layer"`` nor ``"node"``.

    Examples::

        >>> weight = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
        >>> incoming_totals([weight], "node"), incoming_totals([weight], "layer")
        (tensor([4., 1.]), tensor([4., 4.]))
    """
    if by not in get_args(Normalization):
        raise ValueError(
            f"normalization must be one of {get_args(Normalization)}, got {by!r}"
        )
    totals = functools.reduce(operator.add, map(_column_magnitudes, weights))
    if by == "layer":
        totals = totals.sum(-1, keepdim=True).expand_as(totals)
    return torch.where(totals == 0, 1.0, totals)


def divide_columns(weight: Tensor, divisors: Tensor) -> Tensor:
    """Divides the flow into each target node by a number, in single precision up."""
    weight = weight.to(at_least_single(weight.dtype))
    divisors = divisors.to(weight.dtype)
    if weight.is_sparse:
        values = weight.values() / divisors[weight.indices()[1]]
        return sorted_sparse(weight.indices(), values, weight.shape)
    return weight / divisors.unsqueeze(-2)


def at_least_single(*dtypes: torch.dtype) -> torch.dtype:
    """Returns the dtype to compute in: half precisions overflow and round early."""
    computed = torch.float32
    for dtype in dtypes:
        computed = torch.promote_types(computed, dtype)
    return computed


def _column_magnitudes(weight: Weight) -> Tensor:
    if isinstance(weight, FieldMatrix):
        absolute = replace(weight, blocks=weight.blocks.abs())
        return (absolute.mT @ weight.blocks.new_ones(weight.shape[0], 1))[:, 0]
    dtype = at_least_single(weight.dtype)
    if weight.is_sparse:
        magnitudes = weight.values().abs().to(dtype)
        zeros = magnitudes.new_zeros(weight.shape[1])
        return zeros.index_add(0, weight.indices()[1], magnitudes)
    norms: Tensor = torch.linalg.vector_norm(weight, ord=1, dim=-2, dtype=dtype)
    return norms


def _contract(weight: Weight, value: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        weight = weight.to(value.dtype)
        if weight.layout == torch.strided:
            return torch.einsum("...ab,...b->...a", weight, value)
    columns = value.reshape(-1, value.shape[-1]).mT
    flow: Tensor = weight @ columns
    return flow.mT.reshape(*value.shape[:-1], -1)
