r"""How often nodes lie on shortest paths: Brandes' dependency accumulation.

With :math:`\sigma_{sv}` the number of shortest paths from s to v and :math:`P_s(v)`
the predecessors of v on them, the dependency of s on v,
:math:`\delta_s(v) = \sum_t \sigma_{st}(v) / \sigma_{st}`, obeys (Brandes, 2001)

.. math::
    \delta_s(u) = \sum_{v:\, u \in P_s(v)}
        \frac{\sigma_{su}}{\sigma_{sv}} \, (1 + \delta_s(v)),

and betweenness is its sum over s. In a layered graph no queue is needed: layers are
already in an order in which every predecessor comes first, the same for all sources, so
a block of sources is swept at once and the innermost loop runs over its columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from captum_nif._compile import kernel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Sources per block: many enough for vector instructions, few enough for the caches.
_BLOCK = 64


class Network(NamedTuple):
    """Links by their source (compressed sparse rows), each with a length."""

    starts: Integers
    """Place of the first link of each node, and of the end of the last one's."""
    targets: Integers
    lengths: Floats

    @classmethod
    def from_matrix(cls, matrix: csr_array) -> Network:
        """Takes the links of node u to be the stored entries of row u."""
        starts, targets = (
            part.astype(np.int64) for part in (matrix.indptr, matrix.indices)
        )
        return cls(starts, targets, matrix.data.astype(np.float64))


class Tolerance(NamedTuple):
    """How much a path may exceed the shortest one, by rounding, and still tie."""

    relative: float
    absolute: float


def layered_betweenness(
    matrix: csr_array,
    source_layers: Iterable[tuple[int, int]],
    ends: NDArray[np.bool_],
    tolerance: Tolerance,
) -> Floats:
    """Sums the dependencies of sources in a graph in topological order.

    Args:
        matrix (csr_array): Lengths of links, at least 0, in rows of their sources.
            Stored entries are links, those of length 0 too.
        source_layers (iterable of (int, int)): First node, and last plus one, of each
            layer whose nodes are sources. No links run within a layer.
        ends (array of bool): Which nodes count as ends of paths.
        tolerance (Tolerance): Which lengths are equal.

    Returns:
        array: Betweenness of every node.
    """
    network = Network.from_matrix(matrix)

    def sweep(block: tuple[int, int, int]) -> Floats:
        return _swept(*network, *block, ends, *tolerance)

    blocks = [
        (first, min(first + _BLOCK, layer_end), layer_end)
        for layer_start, layer_end in source_layers
        for first in range(layer_start, layer_end, _BLOCK)
    ]
    total = np.zeros(len(ends))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        # In the order of the blocks, so that threads do not change the rounding.
        for dependencies in threads.map(sweep, blocks):
            total += dependencies
    return total


def undirected_betweenness(
    matrix: csr_array,
    sources: Integers,
    ends: NDArray[np.bool_],
    tolerance: Tolerance,
) -> Floats:
    """Sums the dependencies of sources in an undirected graph.

    Shortest paths may now turn back to earlier layers, so every source has an order of
    its own: that of its distances, which Dijkstra's algorithm gives.

    Args:
        matrix (csr_array): Symmetric; lengths of links, more than 0.
        sources (array of int): Where paths start.
        ends (array of bool): Which nodes count as ends of paths.
        tolerance (Tolerance): Which lengths are equal.

    Returns:
        array: Betweenness of every node, for ordered pairs of source and end.
    """
    network = Network.from_matrix(matrix)
    total = np.zeros(len(ends))
    for first in range(0, len(sources), _BLOCK):
        block = sources[first : first + _BLOCK]
        for distances in dijkstra(matrix, indices=block):
            order = np.argsort(distances)[: np.isfinite(distances).sum()]
            total += _accumulated(*network, distances, order, ends, *tolerance)
    return total


@kernel
def _swept(
    starts: Integers,
    targets: Integers,
    lengths: Floats,
    first: int,
    last: int,
    later: int,
    ends: NDArray[np.bool_],
    relative: float,
    absolute: float,
) -> Floats:
    # Sources first..last-1 are the columns. Rows are the nodes that can matter to them:
    # themselves, and all nodes of later layers, which begin with node `later`.
    columns = last - first
    shape = (columns + len(ends) - later, columns)
    offset = columns - later
    distance = np.full(shape, np.inf)
    paths = np.zeros(shape)
    for column in range(columns):
        distance[column, column] = 0.0
        paths[column, column] = 1.0

    for row in range(shape[0]):
        node = first + row if row < columns else row - offset
        from_here = distance[row]
        for link in range(starts[node], starts[node + 1]):
            there, length = distance[targets[link] + offset], lengths[link]
            for column in range(columns):
                there[column] = min(there[column], from_here[column] + length)

    for row in range(shape[0]):
        node = first + row if row < columns else row - offset
        from_here, paths_here = distance[row], paths[row]
        for link in range(starts[node], starts[node + 1]):
            target, length = targets[link] + offset, lengths[link]
            there, paths_there = distance[target], paths[target]
            for column in range(columns):
                limit = there[column] * (1.0 + relative) + absolute
                tied = from_here[column] + length <= limit
                paths_there[column] += paths_here[column] if tied else 0.0

    # What a path to the node, or through it, passes on to each of its predecessors.
    share = np.zeros(shape)
    betweenness = np.zeros(len(ends))
    for row in range(shape[0] - 1, columns - 1, -1):
        node = row - offset
        from_here, paths_here, share_here = distance[row], paths[row], share[row]
        for link in range(starts[node], starts[node + 1]):
            target, length = targets[link] + offset, lengths[link]
            there, share_there = distance[target], share[target]
            for column in range(columns):
                limit = there[column] * (1.0 + relative) + absolute
                tied = from_here[column] + length <= limit
                share_here[column] += share_there[column] if tied else 0.0
        is_end = 1.0 if ends[node] else 0.0
        for column in range(columns):
            if paths_here[column] > 0.0:
                dependency = paths_here[column] * share_here[column]
                betweenness[node] += dependency
                share_here[column] += is_end / paths_here[column]
            else:
                share_here[column] = 0.0
    return betweenness


@kernel
def _accumulated(
    starts: Integers,
    targets: Integers,
    lengths: Floats,
    distance: Floats,
    order: Integers,
    ends: NDArray[np.bool_],
    relative: float,
    absolute: float,
) -> Floats:
    # The same two sweeps for the one source order[0], over nodes by distance.
    paths = np.zeros(len(ends))
    paths[order[0]] = 1.0
    for node in order[1:]:
        limit = distance[node] * (1.0 + relative) + absolute
        for link in range(starts[node], starts[node + 1]):
            before = targets[link]
            # Almost always false, so asked first.
            if (
                distance[before] + lengths[link] <= limit
                and distance[before] < distance[node]
            ):
                paths[node] += paths[before]

    dependency = np.zeros(len(ends))
    for node in order[:0:-1]:
        limit = distance[node] * (1.0 + relative) + absolute
        is_end = 1.0 if ends[node] else 0.0
        for link in range(starts[node], starts[node + 1]):
            before = targets[link]
            if (
                distance[before] + lengths[link] <= limit
                and distance[before] < distance[node]
            ):
                share = (is_end + dependency[node]) / paths[node]
                dependency[before] += paths[before] * share
    dependency[order[0]] = 0.0
    return dependency
