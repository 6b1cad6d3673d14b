"""Which places of a feature map depend on which places of the map before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_nif.flow.overriding import OverriddenModel
from captum_nif.flow.population import Population, places
from captum_nif.graph.elements import Layer

_PROBES = 8
"""Samples in which each place is changed, to see which places depend on it. More than
one, since a dead unit or an unchosen maximum hides a dependence."""

_ROUNDING = 1e-5
"""Changes smaller than this share of a layer's largest value are rounding."""


def receptive_fields(
    model: nn.Module,
    population: Population,
    seed: int,
) -> dict[tuple[str, str], Tensor]:
    """Which places of a layer's map depend on which places of the map that it reads.

    Found by changing one place at a time. A layer's map has a place for each element of
    its shape beyond the first axis, the channels; an input of tokens one for each of
    its elements, since they do not stand in the order of channels.

    Returns:
        dict of Tensor: bool, [places of the source, places of the target], by link;
        only links in which some place does not depend on some other.
    """
    overridden = OverriddenModel(model, population)
    structure = population.structure
    generator = torch.Generator().manual_seed(seed)
    batch, extra = population.batches[0]
    size = batch.stop - batch.start
    by_name = {layer.name: layer for layer in structure.layers}
    sources = dict.fromkeys(a for a, _ in structure.links)
    place_of = {
        name: _place_of(by_name[name], name in population.channels_last)
        for name in sources
    }
    most = max(int(x.max()) + 1 for x in place_of.values())
    fields = {
        (a, b): torch.zeros(
            int(place_of[a].max()) + 1, places(by_name[b]), dtype=torch.bool
        )
        for a, b in structure.links
    }
    extremes = {
        name: x.aminmax(dim=0)
        for name, x in population.values.items()
        if overridden.is_read(name)
    }
    for _ in range(_PROBES):
        base = {}  # the same values in all rows
        for name, x in population.values.items():
            picked = torch.randint(len(x), (1, x.shape[1]), generator=generator)
            one = x.gather(0, picked.to(x.device)) if name in extremes else x[:1]
            base[name] = one.expand(size, -1)
        other = {name: _farthest(base[name], *ends) for name, ends in extremes.items()}
        before = overridden.run(base, extra).values
        for start in range(0, most, size):
            values = {
                name: _changed(place_of[name], x, other[name], start)
                if name in other
                else x
                for name, x in base.items()
            }
            after = overridden.run(values, extra).values
            moved = {
                b: _moved(by_name[b], before[b], after[b])
                for b in dict.fromkeys(b for _, b in fields)
            }
            for (_, b), field in fields.items():
                rows = field[start : start + size]
                rows |= moved[b][: len(rows)]
    return {
        (a, b): field[place_of[a]] if a in population.channels_last else field
        for (a, b), field in fields.items()
        if not field.all()
    }


def _place_of(layer: Layer, channels_last: bool) -> Tensor:
    """The place of each element of a layer's map, [elements]."""
    elements = torch.arange(layer.size)
    if channels_last:
        return elements // layer.shape[-1]
    return elements % places(layer)


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


def _changed(place_of: Tensor, base: Tensor, other: Tensor, start: int) -> Tensor:
    """Row i has the values of ``other`` at place ``start`` + i, else of ``base``."""
    row = torch.arange(start, start + len(base), device=base.device)
    return torch.where(place_of.to(base.device) == row.unsqueeze(1), other, base)
