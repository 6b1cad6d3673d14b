"""Neural Information Flow from scratch: hooks, one pair at a time, one path at a time.

Shares nothing with the library. Node values come from plain forward hooks on modules
that a test names; the information of a pair from :mod:`oracles_ksg`; and paths are
enumerated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import oracles_ksg
import torch
from torch import Tensor, nn

Values = dict[str, list[list[float]]]
"""By layer: for each sample, the value of each node."""
Weights = dict[tuple[str, str], list[list[float]]]
"""By source and target layer: for each source node, the weight to each target node."""


def node_values(
    model: nn.Module, inputs: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> Values:
    """Elements of the inputs, and channel means of what the named modules return."""
    seen = {name: x.flatten(1) for name, x in inputs.items()}

    def keep(name: str, out: Tensor) -> None:
        seen[name] = out.flatten(2).mean(2) if out.dim() > 2 else out.clone()

    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: keep(name, out))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(*inputs.values())
    for handle in handles:
        handle.remove()
    return {name: value.tolist() for name, value in seen.items()}


def column(values: Sequence[Sequence[float]], node: int) -> list[tuple[float]]:
    return [(row[node],) for row in values]


def instance_weights(
    links: Sequence[tuple[str, str]],
    population: Values,
    sample: Mapping[str, Sequence[float]],
    k: int,
    beta: float = 0.0,
    joint: bool = False,
) -> Weights:
    """Eq. 3 for one sample, with pointwise mutual information."""

    def pmi(x: str, i: int, y: str, j: int) -> float:
        return oracles_ksg.pmi_of_query(
            column(population[x], i),
            column(population[y], j),
            ((sample[x][i],), (sample[y][j],)),
            k,
        )

    def whole(x: str, y: str, j: int) -> float:
        return oracles_ksg.pmi_of_query(
            population[x],
            column(population[y], j),
            (sample[x], (sample[y][j],)),
            k,
        )

    weights: Weights = {}
    for x, y in links:
        rows = []
        for i in range(len(sample[x])):
            redundancy = sum(pmi(x, i, x, j) for j in range(i)) if beta else 0.0
            rows.append(
                [
                    (whole(x, y, j) if joint else pmi(x, i, y, j)) - beta * redundancy
                    for j in range(len(sample[y]))
                ]
            )
        weights[x, y] = rows
    return weights


def population_weights(
    links: Sequence[tuple[str, str]],
    population: Values,
    k: int,
    beta: float = 0.0,
    joint: bool = False,
) -> Weights:
    """Eq. 3 with mutual information: the mean over samples, each against the others."""
    count = len(next(iter(population.values())))
    graphs = []
    for i in range(count):
        others = {name: rows[:i] + rows[i + 1 :] for name, rows in population.items()}
        sample = {name: rows[i] for name, rows in population.items()}
        graphs.append(instance_weights(links, others, sample, k, beta, joint))
    return {
        ends: [
            [
                sum(g[ends][i][j] for g in graphs) / count
                for j in range(len(graphs[0][ends][0]))
            ]
            for i in range(len(graphs[0][ends]))
        ]
        for ends in links
    }


def normalized(weights: Weights, by: str | None) -> Weights:
    """Every weight over the sum of |w| into its target node, or into its layer."""
    if by is None:
        return weights
    totals: dict[tuple[str, int], float] = {}
    for (_, y), rows in weights.items():
        for row in rows:
            for j, w in enumerate(row):
                key = (y, j if by == "node" else 0)
                totals[key] = totals.get(key, 0.0) + abs(w)
    return {
        (x, y): [
            [
                w / (totals[y, j if by == "node" else 0] or 1.0)
                for j, w in enumerate(row)
            ]
            for row in rows
        ]
        for (x, y), rows in weights.items()
    }


def paths(
    weights: Weights, layer: str, node: int, end: str, end_node: int
) -> Iterator[float]:
    """The product of the weights on every path between two nodes (Eq. 4)."""
    if (layer, node) == (end, end_node):
        yield 1.0
    for (x, y), rows in weights.items():
        if x == layer:
            for j, w in enumerate(rows[node]):
                for rest in paths(weights, y, j, end, end_node):
                    yield w * rest


def attributions(
    weights: Weights, source: str, size: int, end: str, end_node: int
) -> list[float]:
    """Eq. 4: the sum over paths from each element of an input to one node."""
    return [sum(paths(weights, source, i, end, end_node)) for i in range(size)]
