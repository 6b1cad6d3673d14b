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
    its shape beyond the first axis, the channels.

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
    sources = [by_name[name] for name in dict.fromkeys(a for a, _ in structure.links)]
    most = max(places(layer) for layer in sources)
    fields = {
        (a, b): torch.zeros(places(by_name[a]), places(by_name[b]), dtype=torch.bool)
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
                name: _changed(by_name[name], x, other[name], start)
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
    return {link: field for link, field in fields.items() if not field.all()}


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
