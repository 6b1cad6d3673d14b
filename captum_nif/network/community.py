"""Which nodes belong together: communities and modularity (Eq. 2 of the paper)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.network.adjacency import (
    by_layer,
    check_by_layer,
    check_graph,
    positive_adjacency,
    scaled_in_range,
)

Method = Literal["louvain", "greedy"]


def communities(
    graph: FlowGraph, gamma: float = 1.0, method: Method = "louvain", seed: int = 0
) -> dict[str, Tensor]:
    r"""Groups nodes that exchange more flow than chance, by modularity (Eq. 2).

    Links count in both directions, with their weights; links of weight 0 or less are
    left out. The maximization is networkx's. The result depends strongly on
    ``gamma``: see :func:`gamma_sweep`.

    Args:
        graph (FlowGraph): The graph.
        gamma (float, optional): Resolution as in :func:`modularity`: **less** gives
            more and smaller communities. It is the reciprocal of the ``resolution``
            of networkx and igraph.
            Default: ``1.0``
        method (str, optional): ``"louvain"`` (Blondel et al., 2008), which visits the
            nodes in random order, or ``"greedy"`` (Clauset et al., 2004), which draws
            nothing and is slower.
            Default: ``"louvain"``
        seed (int, optional): Seed of ``"louvain"``; random state elsewhere is neither
            used nor changed.
            Default: ``0``

    Returns:
        dict of str to Tensor: For each layer by name the community of its nodes, int64
        of shape [size of the layer], on the CPU. Community 0 is the one with the most
        nodes, and so on; a node without links is a community by itself.

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph``, or ``gamma`` or ``seed`` no number.
        ValueError: If ``gamma`` is not more than 0 and finite, or ``method`` unknown.

    Examples::

        >>> from captum_nif import Layer, Link
        >>> graph = FlowGraph(
        ...     [Layer("x", 2, "input"), Layer("y", 2, "output")],
        ...     [Link("x", "y", torch.tensor([[0.9, 0.1], [0.1, 0.9]]))],
        ... )
        >>> communities(graph)
        {'x': tensor([0, 1]), 'y': tensor([0, 1])}
    """
    _check(graph, gamma)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    if not isinstance(seed, numbers.Integral):
        # Of None networkx would make the global random state.
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    weights = scaled_in_range(positive_adjacency(graph))
    return by_layer(graph, _labels(_grouped(weights, gamma, method, seed)))


def modularity(
    graph: FlowGraph, partition: Mapping[str, Tensor], gamma: float = 1.0
) -> float:
    r"""Measures how much flow stays within communities, beyond chance (Eq. 2).

    .. math::
        Q = \frac{1}{2m} \sum_{ij} \left[ A_{ij}
            - \frac{1}{\gamma} \frac{k_i k_j}{2m} \right] \delta(g_i, g_j)

    (Newman and Girvan, 2004; Davis et al., 2020, Eq. 2), where :math:`A` holds the
    weights in both directions, without those of 0 or less, :math:`k_i` is the sum of
    the weights at node i, and :math:`m` the sum of all.

    Args:
        graph (FlowGraph): The graph.
        partition (mapping of str to Tensor): For each layer by name the community of
            its nodes, integers of shape [size of the layer], as from
            :func:`communities`.
        gamma (float, optional): Resolution, more than 0. Note that here, as in the
            paper, less gives more weight to chance.
            Default: ``1.0``

    Returns:
        float: The modularity; 0 for a graph without flow.

    Raises:
        TypeError: If ``graph`` is no ``FlowGraph`` or the communities are no integers.
        ValueError: If ``gamma`` is not more than 0 and finite, or ``partition`` has
            other layers or sizes than the graph.
    """
    _check(graph, gamma)
    return _modularity(
        scaled_in_range(positive_adjacency(graph)),
        flat_partition(graph, partition),
        gamma,
    )


@dataclass(frozen=True, eq=False)
class SweepStep:
    """The communities at one resolution.

    Args:
        gamma (float): The resolution.
        partition (dict of str to Tensor): As from :func:`communities`.
        count (int): Number of communities.
        modularity (float): Eq. 2 at this ``gamma``: what the communities maximize.
        standard_modularity (float): Eq. 2 at ``gamma=1``, to compare the steps.
    """

    gamma: float
    partition: dict[str, Tensor]
    count: int
    modularity: float
    standard_modularity: float


def gamma_sweep(
    graph: FlowGraph,
    gammas: Iterable[float] = (0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0),
    method: Method = "louvain",
    seed: int = 0,
) -> list[SweepStep]:
    r"""Finds communities at several resolutions, to choose one with open eyes.

    A resolution is to be trusted where the number of communities stays the same over a
    range of ``gamma``.

    Args:
        graph (FlowGraph): The graph.
        gammas (iterable of float, optional): The resolutions.
            Default: nine from 0.5 to 2
        method (str, optional): As in :func:`communities`.
            Default: ``"louvain"``
        seed (int, optional): As in :func:`communities`, the same for each step.
            Default: ``0``

    Returns:
        list of SweepStep: For each resolution its ``gamma``, ``partition``, ``count``
        of communities, ``modularity`` and ``standard_modularity``.

    Raises:
        TypeError, ValueError: As :func:`communities`.
    """
    check_graph(graph)
    weights, steps = scaled_in_range(positive_adjacency(graph)), []
    for gamma in gammas:
        partition = communities(graph, gamma, method, seed)
        labels = flat_partition(graph, partition)
        steps.append(
            SweepStep(
                gamma=gamma,
                partition=partition,
                count=int(labels.max()) + 1,
                modularity=_modularity(weights, labels, gamma),
                standard_modularity=_modularity(weights, labels, 1.0),
            )
        )
    return steps


def _check(graph: FlowGraph, gamma: float) -> None:
    check_graph(graph)
    if not isinstance(gamma, numbers.Real):
        raise TypeError(f"gamma must be a number, got {type(gamma).__name__}")
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be more than 0 and finite, got {gamma}")


def _grouped(
    weights: csr_array, gamma: float, method: Method, seed: int
) -> list[set[int]]:
    # Nodes are integers: the order of sets of strings changes from run to run.
    network = nx.from_scipy_sparse_array(weights, create_using=nx.Graph)
    if not weights.nnz:
        return [{node} for node in network]
    if method == "greedy":
        found = nx.community.greedy_modularity_communities(
            network, weight="weight", resolution=1 / gamma
        )
    else:
        found = nx.community.louvain_communities(
            network, weight="weight", resolution=1 / gamma, seed=int(seed)
        )
    return [set(group) for group in found]


def _labels(groups: Iterable[set[int]]) -> NDArray[np.int64]:
    ordered = sorted(groups, key=lambda group: (-len(group), min(group)))
    labels = np.empty(sum(map(len, ordered)), dtype=np.int64)
    for label, group in enumerate(ordered):
        labels[list(group)] = label
    return labels


def flat_partition(
    graph: FlowGraph, partition: Mapping[str, Tensor]
) -> NDArray[np.int64]:
    """Checks a partition and returns the communities of all nodes in one row."""
    check_by_layer(graph, partition, "partition")
    groups = torch.cat([partition[layer.name] for layer in graph.layers])
    if groups.is_floating_point() or groups.is_complex():
        raise TypeError(f"communities must be integers, got {groups.dtype}")
    return groups.long().cpu().numpy()


def _modularity(weights: csr_array, labels: NDArray[np.int64], gamma: float) -> float:
    total = weights.sum()
    if total == 0:
        return 0.0
    entries = weights.tocoo()
    within = entries.data[labels[entries.row] == labels[entries.col]].sum()
    strength = weights.sum(axis=0) + weights.sum(axis=1)
    _, group = np.unique(labels, return_inverse=True)
    share = np.bincount(group, weights=strength) / (2 * total)
    return float(within / total - (share**2).sum() / gamma)
