r"""Which sources every element of a tensor depends on.

Most tensors depend on the same sources throughout. Where parts of different origin
stand side by side, as a class token beside patches, a slice may depend on fewer sources
than the whole, and only those are linked to what reads the slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from captum_nif.tracing.label_tensors import compact


@dataclass(frozen=True, eq=False)
class Sources:
    """Sets of sources, and which of them each element depends on.

    Args:
        sets (tuple of frozenset): the different sets, none of them empty.
        which (Tensor or None): for each element the number of its set, from 1; 0 where
            it depends on nothing. Broadcastable to the tensor, as row labels are. None
            where all elements have the only set, or none.
    """

    sets: tuple[frozenset[int], ...] = ()
    which: Tensor | None = None

    @cached_property
    def union(self) -> frozenset[int]:
        """The sources of the tensor as a whole."""
        return frozenset().union(*self.sets)

    def labels(self, device: torch.device) -> Tensor:
        """Numbers as in ``which``, without axes where all elements have one set."""
        if self.which is not None:
            return self.which
        return torch.full((), float(len(self.sets)), device=device)


NOTHING = Sources()
"""The sources of a constant."""


def uniform(sources: Iterable[int]) -> Sources:
    """All elements depend on these sources."""
    members = frozenset(sources)
    return Sources((members,)) if members else NOTHING


def united(parts: Sequence[Sources], rank: int) -> Sources:
    """For each element the sources of all parts, broadcast to a tensor of that rank."""
    varied = next((part.which for part in parts if part.which is not None), None)
    if varied is None:
        return _the_same(parts) or uniform(frozenset().union(*(p.union for p in parts)))
    result = parts[0]
    for part in parts[1:]:
        a, b = result.labels(varied.device), part.labels(varied.device)
        if not _broadcast(a, b):  # grouped heads: to be safe, all of both
            return uniform(frozenset().union(*(p.union for p in parts)))
        sets = [
            mine | theirs
            for mine in (frozenset[int](), *result.sets)
            for theirs in (frozenset[int](), *part.sets)
        ]
        result = _numbered(sets, a * (len(part.sets) + 1) + b)
    which = result.which
    if which is None or which.dim() == rank:
        return result
    return Sources(
        result.sets, which.reshape((1,) * (rank - which.dim()) + which.shape)
    )


def collapsed(sources: Sources, dims: Iterable[int]) -> Sources:
    """All that stands along some axes together, which then have extent 1."""
    which = sources.which
    dims = [d for d in dims if which is not None and which.size(d) > 1]
    if which is None or not dims:
        return sources
    kept = [d for d in range(which.dim()) if d not in dims]
    flat = which.permute(*kept, *dims).reshape(*(which.size(d) for d in kept), -1)
    rows, inverse = flat.flatten(0, -2).unique(dim=0, return_inverse=True)
    by_number = (frozenset[int](), *sources.sets)
    sets = [
        frozenset().union(*(by_number[int(i)] for i in row.unique())) for row in rows
    ]
    shape = [1 if d in dims else which.size(d) for d in range(which.dim())]
    return _numbered(sets, inverse.view(shape))


def rearranged(sources: Sources, change: Callable[[Tensor], Tensor]) -> Sources:
    """With axes in other places, as ``change`` makes of a label tensor."""
    which = sources.which
    return sources if which is None else Sources(sources.sets, change(which))


def moved(
    parts: Sequence[Sources], run: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> list[Sources]:
    """Those of results into which elements are moved.

    Args:
        parts (Sequence of Sources): of the tensors that elements are moved from.
        run (Callable): moves label tensors, one for each part, in the same way.
    """
    sets = [members for part in parts for members in part.sets]
    labels, before = [], 0
    for part in parts:
        which = part.labels(torch.device("cpu")) if part.which is None else part.which
        labels.append(torch.where(which > 0, which + before, 0))
        before += len(part.sets)
    return [_numbered([frozenset(), *sets], which) for which in run(labels)]


def _broadcast(a: Tensor, b: Tensor) -> bool:
    pairs = zip(reversed(a.shape), reversed(b.shape), strict=False)
    return all(m == n or 1 in (m, n) for m, n in pairs)


def _the_same(parts: Sequence[Sources]) -> Sources | None:
    """The first of uniform parts that all have one set: the object itself."""
    first = parts[0] if parts else NOTHING
    return first if all(part.sets == first.sets for part in parts) else None


def _numbered(sets: Sequence[frozenset[int]], index: Tensor) -> Sources:
    """Each element has the set that its index picks; equal sets become one."""
    numbers: dict[frozenset[int], int] = {frozenset(): 0}
    used = index.unique().long().tolist()
    lookup = torch.zeros(len(sets), device=index.device)
    for i in used:
        lookup[i] = numbers.setdefault(sets[i], len(numbers))
    members = tuple(numbers)[1:]
    if len({sets[i] for i in used}) == 1:
        return Sources(members)
    return Sources(members, compact(lookup[index.long()]))
