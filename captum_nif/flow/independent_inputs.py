r"""Samples of what each layer does with independent inputs.

In observed data the nodes of a layer depend on each other, so a link's information is
partly that of its neighbors: Eq. 3 of the paper subtracts this redundancy. Here it
vanishes by construction instead: every layer reads values that are drawn from
the background *node by node*, each node's from a sample of its own, and what the layer
computes from them is recorded. All layers do so in the same pass: what one computes is
overridden by independent values before the next reads it.

Sums over paths are made for this setting: with independent inputs, the correlations of
a linear layer's inputs with its output are Wright's path coefficients (*The method of
path coefficients*, Ann. Math. Stat. 5, 1934), and their products along a path, summed
over all paths, give the correlation of its two ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_nif._blocks import blocks
from captum_nif.flow.overriding import OverriddenModel
from captum_nif.flow.population import Population

_BUDGET = 1 << 31
"""Bytes that draws may take."""

_FEWEST = 256
"""Draws below which links would be noise."""

_BLOCK = 1 << 22
"""Draws of all nodes made at a time."""

Members = Mapping[str, Tensor]
"""For some layers, the node that each element belongs to, [elements]."""


@dataclass(frozen=True)
class Draws:
    """What layers passed on, and what they computed.

    Args:
        passed_on (dict of Tensor): values that each layer passed on to its readers,
            drawn independently for each node, [M, elements], by name.
        computed (dict of Tensor): values that these override, which the layer computed
            from what those before it passed on, [M, elements], by name.
    """

    passed_on: dict[str, Tensor]
    computed: dict[str, Tensor]


def draw(
    model: nn.Module,
    population: Population,
    draws: int,
    seed: int,
    members: Members,
    advance: Callable[[int], object] = lambda done: None,
    kept: Tensor | None = None,
) -> Draws:
    """Draws independent values, and runs every layer on them.

    Args:
        model (Module): the network.
        population (Population): of neurons; each element's values are drawn from it.
        draws (int): how many; fewer where they would take too much memory.
        seed (int): of the draws; populations that are alike give draws that are.
        members (Mapping): elements that are drawn together, by layer.
        advance (Callable): told how many draws were made since.
        kept (Tensor, optional): the numbers of those draws that are made, ascending;
            they are as they would be among all. All by default.

    Raises:
        ValueError: if memory is enough for too few draws.
        NotImplementedError: if the values of a layer cannot be overridden.
    """
    overridden = OverriddenModel(model, population)
    draws = max_draws(population, draws)
    generator = torch.Generator().manual_seed(seed)
    read = {}
    for name, x in population.values.items():
        if overridden.is_read(name):
            drawn = _independent(x, draws, generator, members.get(name))
            read[name] = drawn if kept is None else drawn.mT[:, kept.to(x.device)].mT
    draws = draws if kept is None else len(kept)
    computed: dict[str, Tensor] = {}
    done = 0
    for part, extra in itertools.cycle(population.batches):
        if done >= draws:
            break
        size = part.stop - part.start
        rows = torch.arange(done, done + size) % draws  # too many are cut away below
        values = {
            name: read[name][rows.to(x.device)] if name in read else x[part]
            for name, x in population.values.items()
        }
        for name, x in overridden.run(values, extra).values.items():
            if name not in computed:
                computed[name] = _empty(draws, x)
            computed[name][done : done + size] = x[: draws - done]
        done += size
        advance(size)
    turn = torch.arange(draws) % population.size
    whole = {
        name: x[turn.to(x.device)]
        for name, x in population.values.items()
        if name not in read
    }
    return Draws(read | whole, computed)


def max_draws(population: Population, draws: int) -> int:
    """How many of so many draws memory is enough for."""
    samples = [x[0] for x in population.values.values()]
    neurons = sum(x.numel() for x in samples)
    row = 2 * sum(x.numel() * x.element_size() for x in samples)
    most = _BUDGET // row
    if most < min(draws, _FEWEST):
        raise ValueError(
            f"A sample of all {neurons:,} neurons takes {row:,} bytes, so only {most} "
            f"draws fit in {_BUDGET >> 30} GiB: too few to estimate links from. Use "
            "sampling='observed' and nodes='channel', or name fewer `layers`."
        )
    return min(draws, most)


def _independent(
    values: Tensor,
    draws: int,
    generator: torch.Generator,
    members: Tensor | None = None,
) -> Tensor:
    """For each node values of samples of its own, [draws, elements].

    What is drawn is not the sample but its rank among the node's values (or means, of a
    group): where populations differ by a few samples only, so do the values, by little.
    """
    by_element = values.mT.contiguous()
    of = torch.arange(len(by_element)) if members is None else members.cpu()
    by_node = by_element.new_zeros(int(of.max()) + 1, len(values))
    by_node.index_add_(0, of.to(values.device), by_element)
    drawn = _empty(draws, values)
    for nodes in blocks(len(by_node), max(1, _BLOCK // draws)):
        shape = nodes.stop - nodes.start, draws
        shares = torch.rand(shape, generator=generator, dtype=torch.float64)
        ranks = (shares * len(values)).long().to(values.device)
        samples = by_node[nodes].argsort(dim=1, stable=True).gather(1, ranks)
        inside = ((of >= nodes.start) & (of < nodes.stop)).nonzero().flatten()
        picked = samples[(of[inside] - nodes.start).to(values.device)]
        inside = inside.to(values.device)
        drawn.mT[inside] = by_element[inside].gather(1, picked)
    return drawn


def _empty(draws: int, values: Tensor) -> Tensor:
    """Memory for draws of some nodes, of which each node's lie together in memory.

    Links are estimated from the draws of a few nodes at a time.
    """
    return values.new_empty(values.shape[1], draws).mT
