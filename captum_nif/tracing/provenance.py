r"""What each torch function does to the samples and channels of its arguments.

Functions fall into few families: those that only move elements are *run on the labels*,
pointwise ones keep labels, reductions and pools keep what is constant over the axes
that they sum up, and products are read as Einstein sums. A function of no family may
mix samples for all we know, so its result is untraceable: refused if a layer reads it,
never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from captum_nif.tracing.functions import (
    ALL_BUT_FIRST_AXIS,
    BATCHED,
    DIM,
    FOURIER,
    MOVING,
    PADDING,
    POINTWISE,
    REDUCING,
    SCANNING,
    SCATTERING,
    SOFTMAX,
    TRAILING_AXES,
    Call,
    raw_name,
    tensors_in,
)
from captum_nif.tracing.label_tensors import collapse, compact, on_axis
from captum_nif.tracing.origins import Labels, samples_along, untraceable
from captum_nif.tracing.parts import Part, along, each, merged, part_of
from captum_nif.tracing.products import PRODUCTS, product_of
from captum_nif.tracing.sources import Sources, moved, uniform, united


def propagate(call: Call) -> list[Labels]:
    """Labels of the outputs of a call, at least one of whose arguments has labels."""
    name, known = call.name, call.known
    family = _pooled if "pool" in name else _FAMILIES.get(name)
    why = next((labels.untraceable for labels in known if labels.rows is None), "")
    if family is None:
        why = why or f"`{name}` is not known to keep samples apart"
    if not known:
        family = _picked
    if why or family is None:
        return [untraceable(t.shape, why, call.all_sources) for t in call.outputs]
    parts = family(call)
    if len(parts) == 1:
        parts *= len(call.outputs)
    return [
        _labels(out, part, known, call)
        for out, part in zip(call.outputs, parts, strict=True)
    ]


def is_lookup(call: Call) -> bool:
    """Whether traced integers choose elements of a constant, or are made one-hot."""
    return call.name == "one_hot" or (call.name in MOVING and not call.known)


def _labels(out: Tensor, part: Part, known: Sequence[Labels], call: Call) -> Labels:
    rows, channels, sources = part
    indices = _index_sources(call)
    if indices is not None:
        sources = united([sources, indices], out.dim())
    if rows is None:
        return untraceable(out.shape, f"`{call.name}` mixes samples", sources)
    for labels in (rows, channels, sources.which):
        if labels is not None and not _fits(labels, out):
            why = f"`{call.name}` gave an unexpected shape"
            return untraceable(out.shape, why, uniform(sources.union))
    for k in known:  # the same object: what was found out about it stays known
        if k.shape == out.shape and k.rows is rows and k.channels is channels:
            return k if k.sources is sources else replace(k, sources=sources)
    return Labels(out.shape, rows, channels, sources)


def _fits(part: Tensor, out: Tensor) -> bool:
    extents = zip(part.shape, out.shape, strict=False)
    return part.dim() == out.dim() and all(a in (1, b) for a, b in extents)


def _index_sources(call: Call) -> Sources | None:
    """The sources of what is read besides the data: what chooses the elements."""
    data = {id(t) for t in call.tensors}
    others = [t for t in call.read if id(t) not in data and call.labels_of(t)]
    members = frozenset[int]().union(*(call.sources_of(t).union for t in others))
    return uniform(members) if others else None


# --- families -------------------------------------------------------------------------


def _pointwise(call: Call) -> list[Part]:
    return [merged([part_of(k) for k in call.known], call.outputs[0].dim())]


def _normalized(call: Call) -> list[Part]:
    """Softmax and norms: a sample's elements are scaled by one another."""
    labels = call.known[0]
    scale = along(part_of(labels), _axes(call, len(labels.shape)))
    if scale.rows is None:
        return [Part(None, None, scale.sources)]
    part = _pointwise(call)[0]
    if part.sources.which is not None:
        rank = call.outputs[0].dim()
        part = part._replace(sources=united([part.sources, scale.sources], rank))
    return [part]


def _reduced(call: Call) -> list[Part]:
    """Sums and extremes: one element takes the place of an axis."""
    known = call.known
    if len(call.tensors) > 1 and call.name in ("max", "min"):
        return _pointwise(call)
    rank = max(len(k.shape) for k in known)
    joined = merged([part_of(k) for k in known], rank)
    dims = _axes(call, rank)
    part = along(joined, dims)
    if part.channels is None and joined.channels is not None:
        # a mean over channels belongs to none of them, as in a hand-written LayerNorm
        none = torch.zeros((1,) * rank, device=joined.channels.device)
        part = part._replace(channels=none)
    return [_squeezed(part, dims, call.outputs[0].dim())]


def _scanned(call: Call) -> list[Part]:
    """Running sums and sorting: elements change places or meaning along an axis."""
    labels = call.labels
    if labels is None:
        return [Part(None, None, call.all_sources)]
    dims = _axes(call, len(labels.shape))
    return [_squeezed(along(part_of(labels), dims), dims, call.outputs[0].dim())]


def _squeezed(part: Part, dims: Sequence[int], rank: int) -> Part:
    """Without the axes ``dims``, if the result has lost them."""
    return each(part, lambda x: x if x.dim() == rank else x.squeeze(tuple(dims)))


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


def _pooled(call: Call) -> list[Part]:
    """Pooling and resampling: over the last axes, within a channel."""
    known = call.known
    rank = len(known[0].shape)
    digit = re.search(r"(\d)d", call.name)
    spatial = range(rank - (int(digit.group(1)) if digit else rank - 2), rank)
    return [merged([along(part_of(k), spatial) for k in known], rank)]


def _batched(call: Call) -> list[Part]:
    """Convolutions and their like: the first axis is the sample."""
    out = call.outputs[0]
    sources = call.all_sources
    line = samples_along(call.known, axis=0)
    rows = None if line is None or out.dim() < 3 else on_axis(line, 0, out.dim())
    labels, weight = call.labels, call.get(1, "weight")
    if labels is None or labels.channels is None or not call.name.startswith("conv"):
        return [Part(rows, None, sources)]
    if weight.shape[:2] != (labels.shape[1], 1) or call.labels_of(weight) is not None:
        return [Part(rows, None, sources)]
    # one fixed filter for each channel, such as a blur: pooling by another name
    channels = collapse(labels.channels, range(2, labels.channels.dim()))
    return [Part(rows, channels, sources)]


def _looked_up(call: Call) -> list[Part]:
    """``embedding`` and ``one_hot``: a vector takes the place of a number."""
    labels = call.labels
    if labels is None or labels.rows is None:
        return [Part(None, None, call.all_sources)]
    part = each(part_of(labels), lambda x: x.unsqueeze(-1))
    return [part._replace(channels=None)]


def _picked(call: Call) -> list[Part]:
    """Elements of a constant, which traced numbers choose: each is of their sample."""
    table, index = call.get(0, "input self"), call.get(1, "index indices")
    if call.name in ("gather", "index_select"):
        index = call.get(2, "index")
    labels = call.labels_of(index) if isinstance(index, Tensor) else None
    if labels is None or labels.rows is None:
        return [Part(None, None, call.all_sources)]
    rows, out = labels.rows, call.outputs[0]
    if call.name == "index_select":
        rows = on_axis(rows, call.get(1, "dim") % table.dim(), table.dim())
    elif call.name == "getitem":  # whole rows of the table
        rows = rows.reshape(*rows.shape, *[1] * (out.dim() - rows.dim()))
    elif call.name not in ("gather", "take_along_dim", "take"):
        return [Part(None, None, call.all_sources)]
    return [Part(rows, None, call.all_sources)]


def _scattered(call: Call) -> list[Part]:
    """``scatter``: an element may come to stand anywhere along one axis."""
    rank = call.outputs[0].dim()
    if any(len(k.shape) != rank for k in call.known):
        return [Part(None, None, call.all_sources)]
    dim = call.get(1, "dim") % rank
    part = merged([along(part_of(k), [dim]) for k in call.known], rank)
    if call.name not in SCATTERING:
        return [part._replace(channels=None)]
    if part.rows is None:  # along the axis of the samples
        part = part._replace(rows=_rows_of_segments(call, dim))
    return [part]


def _rows_of_segments(call: Call, dim: int) -> Tensor | None:
    """Row labels where all that is added up in one place is of one sample."""
    onto, index, added = call.tensors
    if call.labels_of(index) is not None:  # each sample chooses by itself
        return None
    if index.dim() == 1:  # one for each place along the axis
        index = on_axis(index, dim, added.dim()).expand(added.shape)

    def rows(t: Tensor, nowhere: float) -> Tensor:
        labels = call.labels_of(t)
        if labels is None or labels.rows is None:
            return torch.full(t.shape, nowhere, device=t.device)
        full = labels.rows.expand(t.shape)
        return torch.where(full > 0, full, nowhere)

    def extreme(which: str, nowhere: float) -> Tensor:
        part = rows(added, nowhere)
        return rows(onto, nowhere).scatter_reduce(dim, index, part, which)

    high, low = extreme("amax", 0.0), extreme("amin", torch.inf)
    return compact(high) if bool(((high == low) | (high == 0)).all()) else None


def _complex_pairs(call: Call) -> list[Part]:
    """``view_as_complex``: pairs along the last axis become one element."""
    rank = len(call.known[0].shape)
    part = along(part_of(call.known[0]), [rank - 1])
    return [_squeezed(part, [rank - 1], rank - 1)]


def _real_pairs(call: Call) -> list[Part]:
    """``view_as_real``: an element becomes a pair along a new last axis."""
    return [each(part_of(call.known[0]), lambda x: x.unsqueeze(-1))]


_COPYING: dict[str, Callable[..., Any]] = {
    "view": torch.Tensor.reshape,
    "view_as": torch.Tensor.reshape_as,
}


_CONCATENATING = frozenset(["cat", "concat", "concatenate"])


def _moved(call: Call) -> list[Part]:
    """Run a function that only moves elements on the labels of its data."""
    sources = call.all_sources
    if call.name == "view" and isinstance(call.get(1, "dtype"), torch.dtype):
        return [Part(None, None, sources)]
    if call.name == "index_put" and call.get(3, "accumulate", False):
        return [Part(None, None, sources)]
    if call.name == "setitem" and call.labels is not None:
        value = call.args[2]
        if not isinstance(value, Tensor) or call.labels_of(value) is None:
            moved_sources = _moved_sources(call)[0]  # the rest as `masked_fill` does
            return [Part(call.labels.rows, call.labels.channels, moved_sources)]
    labels = [call.labels_of(t) for t in call.tensors]

    def run(parts: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        if any(k is not None and p is None for k, p in zip(labels, parts, strict=True)):
            return [None] * len(call.outputs)
        return _run_on(call, parts)

    rows = run([None if k is None else k.rows for k in labels])
    channels = run([None if k is None else k.channels for k in labels])
    return [
        Part(*part) for part in zip(rows, channels, _moved_sources(call), strict=True)
    ]


def _moved_sources(call: Call) -> list[Sources]:
    """Sources of the results of a move, which is run only where it matters."""
    parts = [call.sources_of(t) for t in call.tensors]
    chosen = call.name == "setitem" and _index_sources(call) is not None
    written = call.name == "setitem" and len(parts) == 1  # with a number
    if chosen or (united(parts, 0).which is None and not written and _alike(parts)):
        return [united(parts, call.outputs[0].dim())] * len(call.outputs)
    return moved(parts, lambda labels: _run_on(call, labels))


def _alike(parts: Sequence[Sources]) -> bool:
    return all(part.sets == parts[0].sets for part in parts)


def _concatenated(call: Call, parts: Sequence[Tensor | None]) -> Tensor:
    """Labels of a concatenation; axes along which none of them varies stay short."""
    rank = call.outputs[0].dim()
    dim = call.get(1, "dim axis", 0) % rank
    known = [part for part in parts if part is not None and part.dim()]
    wide = [max((part.size(d) for part in known), default=1) for d in range(rank)]
    pieces = []
    for t, part in zip(call.tensors, parts, strict=True):
        piece = torch.zeros((), device=t.device) if part is None else part.to(t.device)
        pieces.append(piece.expand(*wide[:dim], t.shape[dim], *wide[dim + 1 :]))
    return compact(torch.cat(pieces, dim))


def _run_on(call: Call, parts: Sequence[Tensor | None]) -> list[Tensor]:
    """The results of a move of label tensors, one for each tensor of data."""
    if call.name in _CONCATENATING and all(
        t.dim() == call.outputs[0].dim() for t in call.tensors
    ):
        return [_concatenated(call, parts)]
    args, options = tuple(call.args), dict(call.kwargs)
    if call.name in PADDING:  # what is padded belongs to no sample, whatever its value
        args = args[: PADDING[call.name]]
        options.pop("value", None)
    # labels are expanded, without memory of their own to be viewed or written
    func = _COPYING.get(call.name, call.func)
    writes = call.name == "setitem" or raw_name(func).endswith("_")
    by_id = {id(t): part for t, part in zip(call.tensors, parts, strict=True)}
    if call.name == "setitem" and id(args[2]) not in by_id:
        args = (*args[:2], 0)  # a constant is of no sample

    def label(t: object) -> object:
        if not isinstance(t, Tensor) or id(t) not in by_id:
            return t
        part, labels = by_id[id(t)], call.labels_of(t)
        if part is None or labels is None:
            return torch.zeros(t.shape, device=t.device)
        part = part.to(t.device).expand(labels.shape)  # as it was before the call
        return part.clone() if writes else part

    labeled, named = tree_map(label, (args, options))
    result = func(*labeled, **named)
    return [compact(t) for t in tensors_in(labeled[0] if result is None else result)]


def _multiplied(call: Call) -> list[Part]:
    product = product_of(call)
    if product is None:
        return [Part(None, None, call.all_sources)]
    return [product.labels(call.labels_of)]


def _attended(call: Call) -> list[Part]:
    """``flex_attention``: the result, and sums over keys for each query."""
    heads = [call.get(i, name) for i, name in enumerate(("query", "key", "value"))]
    plain = torch.nn.functional.scaled_dot_product_attention
    product = product_of(Call(plain, heads, {}, call.labels_of, call.outputs))
    assert product is not None
    part = product.labels(call.labels_of)
    rank = call.outputs[0].dim()
    sums = each(along(part, [rank - 1]), lambda x: x.squeeze(-1))
    return [part if out.dim() == rank else sums for out in call.outputs]


_FAMILIES: dict[str, Callable[[Call], list[Part]]] = {
    **dict.fromkeys(MOVING, _moved),
    **dict.fromkeys(POINTWISE, _pointwise),
    "copy": _pointwise,
    **dict.fromkeys(
        [*SOFTMAX, *TRAILING_AXES, *ALL_BUT_FIRST_AXIS, "normalize", "gumbel_softmax"],
        _normalized,
    ),
    **dict.fromkeys(REDUCING, _reduced),
    **dict.fromkeys([*SCANNING, *FOURIER], _scanned),
    **dict.fromkeys(["interpolate", "upsample"], _pooled),
    **dict.fromkeys(BATCHED, _batched),
    **dict.fromkeys(["embedding", "one_hot"], _looked_up),
    **dict.fromkeys(["scatter", *SCATTERING], _scattered),
    "flex_attention": _attended,
    "view_as_complex": _complex_pairs,
    "view_as_real": _real_pairs,
    **dict.fromkeys(PRODUCTS, _multiplied),
}
"""The family of each function; pools are told by their names."""
