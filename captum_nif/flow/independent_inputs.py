r"""Samples of what each layer does with independent inputs.

In observed data the nodes of a layer depend on each other, so a link's information is
partly that of its neighbours: Eq. 3 of the paper subtracts this redundancy. Here it
vanishes by construction instead: every layer is fed values that are drawn from the
background *node by node*, each node's from a sample of its own, and what the layer
makes of them is recorded. All layers are fed in the same pass: what one gives is
exchanged for independent values before the next reads it.

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
from captum_nif.flow.checks import check_same
from captum_nif.flow.population import Population, places
from captum_nif.graph.elements import Layer
from captum_nif.tracing.tracer import Trace, trace

_BUDGET = 1 << 31
"""Bytes that draws may take."""

_FEWEST = 256
"""Draws below which links would be noise."""

_PROBES = 8
"""Samples in which each place is changed, to see which places depend on it. More than
one, since a dead unit or an unchosen maximum hides a dependence."""

_ROUNDING = 1e-5
"""Changes smaller than this share of a layer's largest value are rounding."""

_BLOCK = 1 << 22
"""Draws of all nodes made at a time."""

Members = Mapping[str, Tensor]
"""For some layers, the node that each element belongs to, [elements]."""


@dataclass(frozen=True)
class Draws:
    """What layers were fed, and what they gave.

    Args:
        fed (dict of Tensor): values that each layer handed on to its readers, drawn
            independently for each node, [M, elements], by name.
        given (dict of Tensor): values that each layer gave before, from what those
            before it had handed on, [M, elements], by name.
    """

    fed: dict[str, Tensor]
    given: dict[str, Tensor]


def draw(
    model: nn.Module,
    population: Population,
    draws: int,
    seed: int,
    members: Members,
    tick: Callable[[int], object] = lambda done: None,
    kept: Tensor | None = None,
) -> Draws:
    """Feeds every layer independent values.

    Args:
        model (Module): the network.
        population (Population): of neurons; each element's values are drawn from it.
        draws (int): how many; fewer where they would take too much memory.
        seed (int): of the draws; populations that are alike give draws that are.
        members (Mapping): elements that are drawn together, by layer.
        tick (Callable): told how many draws were made since.
        kept (Tensor, optional): the numbers of those draws that are made, ascending;
            they are as they would be among all. All by default.

    Raises:
        ValueError: if memory is enough for too few draws.
        NotImplementedError: if what a layer gives cannot be exchanged.
    """
    feeder = _Feeder(model, population)
    draws = affordable(population, draws)
    generator = torch.Generator().manual_seed(seed)
    read = {}
    for name, x in population.values.items():
        if feeder.is_read(name):
            drawn = _independent(x, draws, generator, members.get(name))
            read[name] = drawn if kept is None else drawn.mT[:, kept.to(x.device)].mT
    draws = draws if kept is None else len(kept)
    given: dict[str, Tensor] = {}
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
        for name, x in feeder.run(values, extra).values.items():
            if name not in given:
                given[name] = _empty(draws, x)
            given[name][done : done + size] = x[: draws - done]
        done += size
        tick(size)
    turn = torch.arange(draws) % population.size
    whole = {
        name: x[turn.to(x.device)]
        for name, x in population.values.items()
        if name not in read
    }
    return Draws(read | whole, given)


def affordable(population: Population, draws: int) -> int:
    """How many of so many draws memory is enough for."""
    samples = [x[0] for x in population.values.values()]
    neurons = sum(x.numel() for x in samples)
    row = 2 * sum(x.numel() * x.element_size() for x in samples)
    most = _BUDGET // row
    if most < min(draws, _FEWEST):
        raise ValueError(
            f"A sample of all {neurons:,} neurons takes {row:,} bytes, so only {most} "
            f"draws fit in {_BUDGET >> 30} GiB: too few to estimate links from. Use "
            "inputs='observed' and nodes='channel', or name fewer `layers`."
        )
    return min(draws, most)


def receptive_fields(
    model: nn.Module,
    population: Population,
    seed: int,
) -> dict[tuple[str, str], Tensor]:
    """Which places of a layer's map depend on which places of the map that it reads.

    Found by changing one place at a time. A layer's map has a place for each element of
    its shape beyond the first axis, the channels.

    Returns:
        dict of Tensor: bool, [places of the source, places of the target], by link;
        only links in which some place does not depend on some other.
    """
    feeder = _Feeder(model, population)
    structure = population.structure
    generator = torch.Generator().manual_seed(seed)
    batch, extra = population.batches[0]
    size = batch.stop - batch.start
    by_name = {layer.name: layer for layer in structure.layers}
    sources = [by_name[name] for name in dict.fromkeys(a for a, _ in structure.links)]
    most = max(places(layer) for layer in sources)
    fields = {
        (a, b): torch.zeros(places(by_name[a]), places(by_name[b]), dtype=torch.bool)
        for a, b in structure.links
    }
    extremes = {
        name: x.aminmax(dim=0)
        for name, x in population.values.items()
        if feeder.is_read(name)
    }
    for _ in range(_PROBES):
        base = {}  # the same values in all rows
        for name, x in population.values.items():
            picked = torch.randint(len(x), (1, x.shape[1]), generator=generator)
            one = x.gather(0, picked.to(x.device)) if name in extremes else x[:1]
            base[name] = one.expand(size, -1)
        other = {name: _farthest(base[name], *ends) for name, ends in extremes.items()}
        before = feeder.run(base, extra).values
        for start in range(0, most, size):
            values = {
                name: _changed(by_name[name], x, other[name], start)
                if name in other
                else x
                for name, x in base.items()
            }
            after = feeder.run(values, extra).values
            moved = {
                b: _moved(by_name[b], before[b], after[b])
                for b in dict.fromkeys(b for _, b in fields)
            }
            for (_, b), field in fields.items():
                rows = field[start : start + size]
                rows |= moved[b][: len(rows)]
    return {link: field for link, field in fields.items() if not field.all()}


class _Feeder:
    """Runs a model with the values of all layers exchanged."""

    def __init__(
        self,
        model: nn.Module,
        population: Population,
    ) -> None:
        self._model = model
        self._population = population
        self._read = {source for source, _ in population.structure.links}
        for layer in population.structure.layers:
            if layer.kind == "hidden" and layer.name not in population.positions:
                raise NotImplementedError(
                    f"The layer {layer.name!r} hands on several tensors, or one that "
                    "not all its readers take, so its values cannot be exchanged for "
                    "independent ones: use inputs='observed' and nodes='channel'."
                )

    def is_read(self, name: str) -> bool:
        """Whether the elements of this layer are nodes; token ids are none."""
        return name in self._read

    def run(self, values: Mapping[str, Tensor], extra: tuple[object, ...]) -> Trace:
        """One pass, in which each layer hands on these values."""
        population = self._population
        inputs = tuple(
            values[layer.name].reshape(-1, *shape).to(dtype)
            for layer, shape, dtype in zip(
                population.inputs, population.shapes, population.dtypes, strict=True
            )
        )
        overrides = {
            position: values[name] for name, position in population.positions.items()
        }
        try:
            found = trace(
                self._model, inputs, extra, population.modules, "neuron", overrides
            )
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # says by itself what is wrong
                raise
            raise NotImplementedError(
                f"The model does not run with independent inputs ({error}): use "
                "inputs='observed' and nodes='channel'."
            ) from error
        check_same(population.structure, found.structure, "independent inputs")
        if found.positions != population.positions:
            raise NotImplementedError(
                "With independent inputs the model took another path through its "
                "functions than for the background: use inputs='observed' and "
                "nodes='channel'."
            )
        return found


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
    """Room for draws of some nodes, of which each node's lie together in memory.

    Links are estimated from the draws of a few nodes at a time.
    """
    return values.new_empty(values.shape[1], draws).mT


def _farthest(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The end of each node's range that is farther away from its value.

    Another sample would often have the same value: most pixels of a drawing are blank.
    """
    return torch.where(high - values > values - low, high, low)


def _moved(layer: Layer, before: Tensor, after: Tensor) -> Tensor:
    """In each row, the places where some channel is another, bool, [rows, places]."""
    change = (after - before).abs().double()
    other = change > _ROUNDING * before.abs().max()
    return other.view(len(after), -1, places(layer)).any(1).cpu()


def _changed(layer: Layer, base: Tensor, other: Tensor, start: int) -> Tensor:
    """Row i has the values of ``other`` at place ``start`` + i, else of ``base``."""
    at = torch.arange(base.shape[1], device=base.device) % places(layer)
    row = torch.arange(start, start + len(base), device=base.device)
    return torch.where(at == row.unsqueeze(1), other, base)
