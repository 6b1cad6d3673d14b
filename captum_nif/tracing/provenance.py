r"""What each torch function does to the samples and channels of its arguments.

Functions fall into few families: those that only move elements are *run on the labels*,
pointwise ones keep labels, reductions and pools keep what is constant over the axes
that they sum up, and products are read as Einstein sums. A function of no family may
mix samples for all we know, so its result is lost: refused if a layer reads it, never
guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from captum_nif.tracing.functions import (
    ALL_BUT_FIRST_AXIS,
    BATCHED,
    DIM,
    EQUATIONS,
    MOVING,
    PADDING,
    POINTWISE,
    REDUCING,
    SCANNING,
    SOFTMAX,
    TRAILING_AXES,
    Call,
    raw_name,
    tensors_in,
)
from captum_nif.tracing.origins import (
    Labels,
    collapse,
    compact,
    lost,
    merge,
    on_axis,
    samples_along,
)

Parts: TypeAlias = "tuple[Tensor | None, Tensor | None]"
"""Row labels and channel labels of one result, None where they are lost."""


def propagate(call: Call) -> list[Labels]:
    """Labels of the outputs of a call, at least one of whose arguments has labels."""
    name, known = call.name, call.known
    family = _pooled if "pool" in name else _FAMILIES.get(name)
    why = next((labels.lost for labels in known if labels.rows is None), "")
    if family is None:
        why = why or f"`{name}` is not known to keep samples apart"
    if not known:
        why = f"`{name}` picks elements of a constant, for each sample others"
    if why or family is None:
        return [lost(out.shape, why) for out in call.outputs]
    found = family(call)
    if len(found) == 1:
        found *= len(call.outputs)
    return [
        _labels(out, rows, channels, known, name)
        for out, (rows, channels) in zip(call.outputs, found, strict=True)
    ]


def _labels(
    out: Tensor,
    rows: Tensor | None,
    channels: Tensor | None,
    known: Sequence[Labels],
    name: str,
) -> Labels:
    if rows is None:
        return lost(out.shape, f"`{name}` mixes samples")
    for part in (rows, channels):
        if part is not None and not _fits(part, out):
            return lost(out.shape, f"`{name}` gave an unexpected shape")
    for k in known:  # the same object: what was found out about it stays known
        if k.shape == out.shape and k.rows is rows and k.channels is channels:
            return k
    return Labels(out.shape, rows, channels)


def _fits(part: Tensor, out: Tensor) -> bool:
    extents = zip(part.shape, out.shape, strict=False)
    return part.dim() == out.dim() and all(a in (1, b) for a, b in extents)


def _each(labels: Labels, change: Callable[[Tensor], Tensor | None]) -> Parts:
    rows, channels = labels.rows, labels.channels
    return (
        None if rows is None else change(rows),
        None if channels is None else change(channels),
    )


def _merged(parts: Sequence[Parts], rank: int) -> Parts:
    """What all agree on, broadcast as torch does to tensors of that rank."""

    def all_agree(labels: Sequence[Tensor | None]) -> Tensor | None:
        given = [part for part in labels if part is not None]
        agreed = merge(given) if len(given) == len(labels) else None
        if agreed is None or agreed.dim() >= rank:
            return agreed
        return agreed.reshape((1,) * (rank - agreed.dim()) + agreed.shape)

    return all_agree([r for r, _ in parts]), all_agree([c for _, c in parts])


# --- families -------------------------------------------------------------------------


def _pointwise(call: Call) -> list[Parts]:
    parts = [(k.rows, k.channels) for k in call.known]
    return [_merged(parts, call.outputs[0].dim())]


def _normalized(call: Call) -> list[Parts]:
    """Softmax and norms: a sample's elements are scaled by one another."""
    for labels in call.known[:1]:
        rows = labels.rows
        if rows is None or collapse(rows, _axes(call, rows.dim())) is None:
            return [(None, None)]
    return _pointwise(call)


def _reduced(call: Call) -> list[Parts]:
    """Sums and extremes: one element takes the place of an axis."""
    known = call.known
    if len(call.tensors) > 1 and call.name in ("max", "min"):
        return _pointwise(call)
    rank = max(len(k.shape) for k in known)
    merged = _merged([(k.rows, k.channels) for k in known], rank)
    dims = _axes(call, rank)
    rows, channels = (part if part is None else collapse(part, dims) for part in merged)
    if channels is None and merged[1] is not None:
        # a mean over channels belongs to none of them, as in a hand-written LayerNorm
        channels = torch.zeros((1,) * rank, device=merged[1].device)
    return [_squeezed(rows, channels, dims, call.outputs[0].dim())]


def _scanned(call: Call) -> list[Parts]:
    """Running sums and sorting: elements change places or meaning along an axis."""
    labels = call.labels
    if labels is None:
        return [(None, None)]
    dims = _axes(call, len(labels.shape))
    rows, channels = _each(labels, lambda part: collapse(part, dims))
    return [_squeezed(rows, channels, dims, call.outputs[0].dim())]


def _squeezed(
    rows: Tensor | None, channels: Tensor | None, dims: Sequence[int], rank: int
) -> Parts:
    """Without the axes ``dims``, if the result has lost them."""
    rows, channels = (
        part if part is None or part.dim() == rank else part.squeeze(tuple(dims))
        for part in (rows, channels)
    )
    return rows, channels


def _axes(call: Call, rank: int) -> list[int]:
    """The axes that a function works along."""
    if call.name in TRAILING_AXES:
        return list(range(rank - len(call.get(1, "normalized_shape")), rank))
    if call.name in ALL_BUT_FIRST_AXIS:
        return list(range(1, rank))
    position, default = DIM[call.name]
    dim = call.get(position, "dim axis", default)
    if dim is None and call.name in SOFTMAX:  # torch's legacy choice
        dim = 0 if rank in (0, 1, 3) else 1
    if dim is None or isinstance(dim, bool):
        return list(range(rank))
    dims = dim if isinstance(dim, (tuple, list)) else [dim]
    return [int(d) % rank for d in dims if rank] or list(range(rank))


def _pooled(call: Call) -> list[Parts]:
    """Pooling and resampling: over the last axes, within a channel."""
    known = call.known
    rank = len(known[0].shape)
    digit = re.search(r"(\d)d", call.name)
    spatial = range(rank - (int(digit.group(1)) if digit else rank - 2), rank)
    parts = [_each(k, lambda part: collapse(part, spatial)) for k in known]
    return [_merged(parts, rank)]


def _batched(call: Call) -> list[Parts]:
    """Convolutions and their like: the first axis is the sample."""
    out = call.outputs[0]
    line = samples_along(call.known, axis=0)
    rows = None if line is None or out.dim() < 3 else on_axis(line, 0, out.dim())
    labels, weight = call.labels, call.get(1, "weight")
    if labels is None or labels.channels is None or not call.name.startswith("conv"):
        return [(rows, None)]
    if weight.shape[:2] != (labels.shape[1], 1) or call.labels_of(weight) is not None:
        return [(rows, None)]
    # one fixed filter for each channel, such as a blur: pooling by another name
    return [(rows, collapse(labels.channels, range(2, labels.channels.dim())))]


def _looked_up(call: Call) -> list[Parts]:
    """``embedding`` and ``one_hot``: a vector takes the place of a number."""
    labels = call.labels
    if labels is None or labels.rows is None:
        return [(None, None)]
    return [(labels.rows.unsqueeze(-1), None)]


def _scattered(call: Call) -> list[Parts]:
    """``scatter``: an element may come to stand anywhere along one axis."""
    rank = call.outputs[0].dim()
    dims = [call.get(1, "dim") % rank]
    parts = [_each(k, lambda part: collapse(part, dims)) for k in call.known]
    return [(_merged(parts, rank)[0], None)]


_COPYING: dict[str, Callable[..., Any]] = {
    "view": torch.Tensor.reshape,
    "view_as": torch.Tensor.reshape_as,
}


def _moved(call: Call) -> list[Parts]:
    """Run a function that only moves elements on the labels of its data."""
    args, options = tuple(call.args), dict(call.kwargs)
    if call.name == "setitem" and call.labels is not None:
        value = args[2]
        if not isinstance(value, Tensor) or call.labels_of(value) is None:
            return [(call.labels.rows, call.labels.channels)]  # as `masked_fill` does
    if call.name in PADDING:  # what is padded belongs to no sample, whatever its value
        args = args[: PADDING[call.name]]
        options.pop("value", None)
    if call.name == "view" and isinstance(call.get(1, "dtype"), torch.dtype):
        return [(None, None)]
    # labels are expanded, without memory of their own to be viewed or written
    func = _COPYING.get(call.name, call.func)
    writes = call.name == "setitem" or raw_name(func).endswith("_")
    moving = {id(t) for t in call.tensors}

    def run(which: str) -> list[Tensor | None]:
        def label(t: object) -> object:
            if not isinstance(t, Tensor) or id(t) not in moving:
                return t
            labels = call.labels_of(t)
            if labels is None:
                return torch.zeros(t.shape, device=t.device)
            part = getattr(labels, which).expand(labels.shape)
            return part.clone() if writes else part

        if any(getattr(labels, which) is None for labels in call.known):
            return [None] * len(call.outputs)
        labelled, named = tree_map(label, (args, options))
        result = func(*labelled, **named)
        moved = labelled[0] if result is None else result  # `x[index] = value`
        return [compact(t) for t in tensors_in(moved)]

    return list(zip(run("rows"), run("channels"), strict=True))


# --- products -------------------------------------------------------------------------


def _product(call: Call) -> list[Parts]:
    factors, rank = call.tensors, call.outputs[0].dim()
    term = factors.pop(0) if call.name in ("addmm", "baddbmm") else None
    if call.name == "rmatmul":
        factors.reverse()
    if call.name == "einsum":
        equation = call.first
        if not isinstance(equation, str):  # torch.einsum(x, [0, 1], ...)
            return [(None, None)]
    else:
        equation = EQUATIONS.get(call.name) or _matrix_product(*factors)
    n = equation.split("->")[0].count(",") + 1
    labelled = [(t.dim(), call.labels_of(t)) for t in factors[:n]]
    parts = [einsum_labels(equation, labelled)] if any(k for _, k in labelled) else []
    masked = call.name == "scaled_dot_product_attention"
    added = [t for t in (term, *factors[n:]) if t is not None]
    terms = [labels for t in added if (labels := call.labels_of(t)) is not None]
    # a bias is added to the product, a mask is not
    parts += [(None if masked else labels.rows, None) for labels in terms]
    return [_merged(parts, rank)]


def _matrix_product(a: Tensor, b: Tensor) -> str:
    left = "...ij" if a.dim() > 1 else "j"
    right = "...jk" if b.dim() > 1 else "j"
    return f"{left},{right}->...{'i' * (a.dim() > 1)}{'k' * (b.dim() > 1)}"


def einsum_labels(equation: str, factors: Sequence[tuple[int, Labels | None]]) -> Parts:
    """Labels of an Einstein sum: what is summed over must lie within one sample.

    Args:
        equation (str): as for :func:`torch.einsum`.
        factors (Sequence): rank and labels of each factor, None for a constant.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    ranks = [rank for rank, _ in factors]
    terms = [_letters(t, rank) for t, rank in zip(left.split(","), ranks, strict=True)]
    spread = max(([x for x in t if x.isdigit()] for t in terms), key=len)
    if arrow:
        before, dots, after = right.partition("...")
        kept = [*before, *(spread if dots else ()), *after]
    else:  # the letters that appear once, in alphabetical order
        every = [x for term in terms for x in term if not x.isdigit()]
        kept = [*spread, *sorted(x for x in set(every) if every.count(x) == 1)]

    def arranged(part: Tensor, letters: Sequence[str]) -> Tensor | None:
        summed = [d for d, x in enumerate(letters) if x not in kept]
        core = collapse(part, summed)
        if core is None or len(set(letters)) < len(letters):  # a diagonal
            return None
        order = [letters.index(x) for x in kept if x in letters]
        extents = dict(zip(letters, core.shape, strict=True))
        return core.permute(*order, *summed).reshape([extents.get(x, 1) for x in kept])

    parts = []
    for letters, (_, labels) in zip(terms, factors, strict=True):
        if labels is not None:
            rows, channels = labels.rows, labels.channels
            parts.append(
                (
                    None if rows is None else arranged(rows, letters),
                    None if channels is None else arranged(channels, letters),
                )
            )
    return _merged(parts, len(kept))


def _letters(term: str, rank: int) -> list[str]:
    """The axes of an einsum term; those of its ellipsis are digits that count down."""
    before, dots, after = term.partition("...")
    spread = rank - len(before) - len(after) if dots else 0
    return [*before, *map(str, reversed(range(spread))), *after]


_FAMILIES: dict[str, Callable[[Call], list[Parts]]] = {
    **dict.fromkeys(MOVING, _moved),
    **dict.fromkeys(POINTWISE, _pointwise),
    "copy": _pointwise,
    **dict.fromkeys(
        [*SOFTMAX, *TRAILING_AXES, *ALL_BUT_FIRST_AXIS, "normalize", "gumbel_softmax"],
        _normalized,
    ),
    **dict.fromkeys(REDUCING, _reduced),
    **dict.fromkeys(SCANNING, _scanned),
    **dict.fromkeys(["interpolate", "upsample"], _pooled),
    **dict.fromkeys(
        BATCHED,
        _batched,
    ),
    **dict.fromkeys(["embedding", "one_hot"], _looked_up),
    "scatter": _scattered,
    **dict.fromkeys(
        ["matmul", "rmatmul", "mm", "bmm", "mv", "einsum", "addmm", "baddbmm"], _product
    ),
    **dict.fromkeys(EQUATIONS, _product),
}
"""The family of each function; pools are told by their names."""
