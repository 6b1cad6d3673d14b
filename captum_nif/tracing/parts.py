r"""Labels of one result in the making, and what the labels of several agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from captum_nif.tracing.label_tensors import collapse, merge
from captum_nif.tracing.origins import Labels
from captum_nif.tracing.sources import Sources, collapsed, rearranged, united


class Part(NamedTuple):
    """Row labels and channel labels, None where they are mixed, and sources."""

    rows: Tensor | None
    channels: Tensor | None
    sources: Sources


def part_of(labels: Labels) -> Part:
    """All that labels say of the elements."""
    return Part(labels.rows, labels.channels, labels.sources)


def merged(parts: Sequence[Part], rank: int) -> Part:
    """What all agree on, broadcast as torch does to tensors of that rank."""

    def all_agree(labels: Sequence[Tensor | None]) -> Tensor | None:
        known = [part for part in labels if part is not None]
        agreed = merge(known) if len(known) == len(labels) else None
        if agreed is None or agreed.dim() >= rank:
            return agreed
        return agreed.reshape((1,) * (rank - agreed.dim()) + agreed.shape)

    return Part(
        all_agree([part.rows for part in parts]),
        all_agree([part.channels for part in parts]),
        united([part.sources for part in parts], rank),
    )


def along(part: Part, dims: Iterable[int]) -> Part:
    """What holds of all that stands along some axes, which then have extent 1."""
    dims = list(dims)
    return Part(
        None if part.rows is None else collapse(part.rows, dims),
        None if part.channels is None else collapse(part.channels, dims),
        collapsed(part.sources, dims),
    )


def each(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """All label tensors of a part, arranged otherwise."""
    return Part(
        None if part.rows is None else change(part.rows),
        None if part.channels is None else change(part.channels),
        rearranged(part.sources, change),
    )
