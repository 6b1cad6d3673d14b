r"""The algebra of label tensors.

A label tensor says of each element of another tensor where it comes from. Labels count
from 1; 0 means "from nowhere" (padding, constants, a mean over all channels) and agrees
with everything. A label tensor has the rank of the tensor that it labels, and extent 1
along the axes where it is constant, so that the labels of large maps cost next to
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def collapse(labels: Tensor, dims: Iterable[int]) -> Tensor | None:
    """Labels with extent 1 along ``dims``; None where they are not constant there."""
    dims = [d for d in dims if labels.size(d) > 1]
    if not dims:
        return labels
    top = labels.amax(dims, keepdim=True)
    return top if bool(((labels == top) | (labels == 0)).all()) else None


def compact(labels: Tensor) -> Tensor:
    """The same labels with extent 1 along every axis where they repeat themselves."""
    for d in reversed(range(labels.dim())):  # maps first: they shrink the most
        if labels.size(d) > 1:
            first = labels.narrow(d, 0, 1)
            if labels.stride(d) == 0 or bool((labels == first).all()):
                labels = first
    # a slice of a large tensor would keep all of it alive
    return labels.clone(memory_format=torch.contiguous_format)


def merge(labels: Sequence[Tensor]) -> Tensor | None:
    """Labels that agree with all (0 agrees with any); None where they differ."""
    merged = labels[0]
    for other in labels[1:]:
        if other is merged:
            continue
        a, b = torch.broadcast_tensors(merged, other)
        if bool(((a != b) & (a > 0) & (b > 0)).any()):
            return None
        if a.shape != merged.shape or bool((b > a).any()):
            merged = torch.maximum(a, b)
    return merged


def on_axis(line: Tensor, axis: int, rank: int) -> Tensor:
    """A 1-d label tensor laid along one axis of a tensor of that rank."""
    return line.view([-1 if d == axis else 1 for d in range(rank)])


def rewritten(seen: Tensor, written: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Labels of ``seen``, [*seen.shape], after ``written`` overwrote shared memory.

    Args:
        seen (Tensor): a tensor labeled ``old``.
        written (Tensor): a tensor on the same memory, now labeled ``new``.
        old (Tensor): broadcastable to ``seen.shape``.
        new (Tensor): broadcastable to ``written.shape``.
    """
    size = seen.untyped_storage().nbytes() // seen.element_size()
    places = torch.arange(size, device=seen.device)
    memory = torch.zeros(size, device=seen.device)
    for x, labels in ((seen, old), (written, new)):
        at = places.as_strided(x.shape, x.stride(), x.storage_offset())
        memory[at] = labels.expand(x.shape)
    return memory.as_strided(seen.shape, seen.stride(), seen.storage_offset()).clone()
