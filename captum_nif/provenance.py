r"""Where every element of a tensor comes from: its sample and its channel.

Between two layers a model may reshape, permute, pool, slice or rescale a tensor in any
way that Python allows. To average such a tensor per sample and channel, one must know
which elements belong to which pair. :class:`Labels` says so, and :func:`propagate`
carries labels through one torch function: reshape-like functions are simply *run on the
labels*, pointwise ones keep them, reductions and pools keep what is constant over the
axes that they sum up.

Labels count from 1; 0 means "of no sample" or "of no channel" (padding, constants, a
mean over all channels) and agrees with everything. A label tensor has extent 1 along
the axes where it is constant, so that labels of large maps cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True, eq=False)
class Labels:
    """The sample (``rows``) and the channel of each element of a tensor.

    Args:
        shape (torch.Size): shape of the labelled tensor.
        rows (Tensor or None): sample of each element, from 1, broadcastable to ``shape``;
            0 for elements of no sample. None: samples were mixed, see ``lost``.
        channels (Tensor or None): the same for channels. None: channels were mixed.
        lost (str): what mixed the samples.
    """

    shape: torch.Size
    rows: Tensor | None
    channels: Tensor | None = None
    lost: str = ""

    def pairs(self, n_channels: int) -> Tensor | None:
        """Flat index ``row * n_channels + channel`` per element, -1 for neither."""
        if self.rows is None or self.channels is None:
            return None
        rows, channels = self.rows.long(), self.channels.long()
        index = (rows - 1) * n_channels + channels - 1
        index = torch.where((rows > 0) & (channels > 0), index, -1)
        return index.expand(self.shape).flatten()

    @cached_property
    def _is_plain(self) -> bool:
        """Whether the tensor is [N, C, ...] with rows and channels in order."""
        if self.rows is None or self.channels is None or len(self.shape) < 2:
            return False
        rank = len(self.shape)
        n, c = self.shape[:2]
        device = self.rows.device
        return bool(
            self.rows.numel() == n
            and self.rows.shape == (n, *(1,) * (rank - 1))
            and self.channels.shape == (1, c, *(1,) * (rank - 2))
            and (self.rows.flatten() == torch.arange(1, n + 1, device=device)).all()
            and (self.channels.flatten() == torch.arange(1, c + 1, device=device)).all()
        )

    def order(self, n_rows: int, n_channels: int) -> Tensor | None:
        """Flat positions that sort the elements by (sample, channel), or None.

        None when some pair does not appear as often as the others: such a tensor no
        longer holds every channel of every sample.
        """
        key = (n_rows, n_channels)
        if key not in self._orders:
            self._orders[key] = self._order(n_rows, n_channels)
        return self._orders[key]

    @cached_property
    def _orders(self) -> dict[tuple[int, int], Tensor | None]:
        return {}

    def _order(self, n_rows: int, n_channels: int) -> Tensor | None:
        index = self.pairs(n_channels)
        if index is None:
            return None
        positions = torch.nonzero(index >= 0).flatten()
        index = index[positions]
        counts = torch.bincount(index, minlength=n_rows * n_channels)
        if counts.numel() != n_rows * n_channels or counts.min() != counts.max():
            return None
        if counts[0] == 0:
            return None
        return positions[torch.argsort(index, stable=True)]


def average(x: Tensor, labels: Labels, n_rows: int, n_channels: int) -> Tensor | None:
    """Mean of ``x`` per sample and channel, [n_rows, n_channels], or None.

    None when ``x`` does not hold every channel of every sample equally often. The mean is
    taken in double precision over the elements of a pair in memory order, so that a
    reshaped tensor has bitwise the mean of the original.
    """
    if labels._is_plain and x.shape[:2] == (n_rows, n_channels):
        grouped = x.reshape(n_rows, n_channels, -1)
    else:
        order = labels.order(n_rows, n_channels)
        if order is None:
            return None
        grouped = x.flatten()[order].view(n_rows, n_channels, -1)
    if grouped.shape[-1] == 1:
        mean = grouped[..., 0].clone()
    elif x.device.type == "mps":  # Apple's GPUs have no double precision
        mean = grouped.float().mean(-1)
    else:
        mean = grouped.mean(-1, dtype=torch.float64)
    return mean.to(x.dtype if x.is_floating_point() else torch.float32)


def rows_of_batch(x: Tensor) -> Labels:
    """Labels of a model input: axis 0 is the sample."""
    rows = torch.arange(1, x.shape[0] + 1, device=x.device, dtype=torch.float32)
    return Labels(x.shape, rows.view(-1, *(1,) * (x.dim() - 1)))


def layer_output(
    out: Tensor, sources: Sequence[Labels], channel_axis: int | None, who: str
) -> Labels:
    """Labels of what a layer returns: rows follow the input, channels start anew."""
    labels = _rows_by_axis(out, sources, who)
    if channel_axis is None or out.dim() < 2:
        channels = torch.ones((1,) * out.dim(), device=out.device)
    else:
        count = torch.arange(1, out.shape[channel_axis] + 1, device=out.device)
        shape = [1] * out.dim()
        shape[channel_axis] = -1
        channels = count.float().view(shape)
    return Labels(labels.shape, labels.rows, channels, labels.lost)


def row_axes(labels: Labels) -> list[int]:
    """The axes along which the sample changes."""
    rows = labels.rows
    if rows is None:
        return []
    return [
        d
        for d in range(rows.dim())
        if rows.size(d) > 1 and _collapse(rows, [d]) is None
    ]


# --- functions -----------------------------------------------------------------------

_STRUCTURAL = frozenset(
    """view reshape view_as reshape_as flatten unflatten ravel permute transpose t T mT H
    mH swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to
    repeat tile repeat_interleave narrow select index_select gather take_along_dim getitem
    chunk split tensor_split unbind hsplit vsplit dsplit split_with_sizes unsafe_chunk
    unsafe_split cat concat concatenate stack hstack vstack dstack column_stack roll flip
    fliplr flipud rot90 pad unfold pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle tril triu diagonal adjoint atleast_1d atleast_2d atleast_3d
    constant_pad_nd""".split()
)
_POINTWISE = frozenset(
    """relu relu6 elu selu celu gelu silu mish hardtanh hardswish hardsigmoid leaky_relu
    prelu rrelu logsigmoid log_sigmoid softplus softshrink hardshrink tanhshrink softsign
    tanh sigmoid threshold _threshold softmax log_softmax softmin gumbel_softmax normalize
    layer_norm native_layer_norm batch_norm native_batch_norm instance_norm group_norm
    native_group_norm rms_norm local_response_norm dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_dropout feature_alpha_dropout native_dropout add sub subtract
    mul multiply div divide true_divide floor_divide remainder mod fmod pow float_power
    rsub neg negative pos positive abs absolute sign sgn exp exp2 expm1 log log2 log10
    log1p sqrt rsqrt square reciprocal sin cos tan asin acos atan arcsin arccos arctan
    sinh cosh asinh acosh atanh atan2 arctan2 erf erfc erfinv expit logit clamp clip
    clamp_min clamp_max minimum maximum fmin fmax where masked_fill masked_scatter lerp
    addcmul addcdiv round floor ceil trunc fix frac nan_to_num eq ne lt le gt ge equal_to
    greater greater_equal less less_equal not_equal logical_and logical_or logical_not
    logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor and or xor invert isnan
    isinf isfinite hypot logaddexp logaddexp2 xlogy xlog1py sinc i0 digamma lgamma entr
    ndtr log_ndtr erfcx copysign heaviside deg2rad rad2deg to float double half bfloat16
    int long short bool byte type type_as cpu cuda clone detach contiguous data real copy
    requires_grad pin_memory alias rdiv rtruediv rpow rmul radd truediv floordiv
    rfloordiv rmod iadd isub imul itruediv idiv ipow""".split()
)
_REDUCTIONS = {  # name -> position of `dim` among the positional arguments
    **dict.fromkeys(
        """mean sum nansum nanmean amax amin aminmax max min prod std var std_mean
        var_mean logsumexp median nanmedian argmax argmin all any count_nonzero mode
        softargmax""".split(),
        1,
    ),
    **dict.fromkeys(["norm", "vector_norm", "quantile", "nanquantile"], 2),
}
_MATMUL = frozenset(["matmul", "rmatmul", "bmm", "mm", "scaled_dot_product_attention"])
_NOTHING = frozenset(
    """zeros_like ones_like empty_like full_like rand_like randn_like randint_like
    new_zeros new_ones new_empty new_full new_tensor zero fill bernoulli normal uniform
    shape size dim numel""".split()
)
MIXING_FUNCTIONS = frozenset(
    """linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution addmm addbmm baddbmm addmv mm mv bmm matmul rmatmul
    einsum tensordot inner dot embedding embedding_bag
    multi_head_attention_forward""".split()
)


def function_name(func: Callable[..., Any]) -> str:
    """The plain name of a torch function: ``Tensor.relu_`` and ``F.relu`` are ``relu``."""
    name = str(getattr(func, "__name__", func))
    if name in ("__get__", "__set__"):
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    if name.startswith("__") and name.endswith("__"):
        return name.strip("_")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name.split(".")[-1]


def carries_nothing(name: str) -> bool:
    """Whether a function takes only its argument's shape, none of its values."""
    return name in _NOTHING


def propagate(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    labels_of: Callable[[Tensor], Labels | None],
    outputs: Sequence[Tensor],
) -> list[Labels]:
    """Labels of the tensors that ``func(*args, **kwargs)`` gave.

    Args:
        func (Callable): a torch function or method.
        args (Sequence): its positional arguments.
        kwargs (Mapping): its keyword arguments.
        labels_of (Callable): the labels of an argument from before the call, None for a
            constant; at least one tensor among the arguments has labels.
        outputs (Sequence of Tensor): the tensors that it returned or overwrote.

    Returns:
        list of Labels: one for each output.
    """
    name = function_name(func)
    leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    known = [known for t in leaves if (known := labels_of(t)) is not None]
    data = args[0] if args else next(iter(kwargs.values()))
    first = labels_of(data) if isinstance(data, Tensor) else None

    if name == "setitem":
        return [_assigned(func, args, labels_of)]
    if name in _STRUCTURAL:
        return _structural(func, name, args, kwargs, labels_of, outputs)
    if any(labels.rows is None for labels in known):
        lost = next(labels.lost for labels in known if labels.rows is None)
        return [Labels(out.shape, None, None, lost) for out in outputs]
    if name in _POINTWISE or (name in _REDUCTIONS and len(leaves) > 1):
        return [_pointwise(out, known, name) for out in outputs]
    if name in _REDUCTIONS and first is not None:
        dim = _dims(name, args, kwargs, len(first.shape))
        return [_reduced(out, first, dim, name) for out in outputs]
    if ("pool" in name or name in ("interpolate", "upsample")) and first is not None:
        digit = re.search(r"(\d)d", name)
        spatial = int(digit.group(1)) if digit else len(first.shape) - 2
        return [_pooled(out, first, spatial, name) for out in outputs]
    if name in _MATMUL and len(known) >= 1:
        return [_matmul(out, name, args, kwargs, labels_of) for out in outputs]
    if name == "linear" and first is not None and first.rows is not None:
        rows = _collapse(first.rows, [first.rows.dim() - 1])
        return [_or_lost(out.shape, rows, None, name) for out in outputs]
    return [_rows_by_axis(out, known, f"`{name}`") for out in outputs]


def _core(labels: Tensor) -> Tensor:
    """Cut the axes along which an expanded label tensor repeats itself."""
    for d in range(labels.dim()):
        if labels.stride(d) == 0 and labels.size(d) > 1:
            labels = labels.narrow(d, 0, 1)
    return labels


def _collapse(labels: Tensor, dims: Sequence[int]) -> Tensor | None:
    """Labels with extent 1 along ``dims``; None where they are not constant there."""
    dims = [d for d in dims if labels.size(d) > 1]
    if not dims:
        return labels
    top = labels.amax(dims, keepdim=True)
    return top if bool(((labels == top) | (labels == 0)).all()) else None


def _merge(labels: Sequence[Tensor]) -> Tensor | None:
    """Labels that agree with all of ``labels`` (0 agrees with any); None: they differ."""
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


def _or_lost(
    shape: torch.Size, rows: Tensor | None, channels: Tensor | None, name: str
) -> Labels:
    if rows is None:
        return Labels(shape, None, None, f"`{name}` mixes samples")
    return Labels(shape, rows, channels)


def _pointwise(out: Tensor, known: Sequence[Labels], name: str) -> Labels:
    first = known[0]
    if len(known) == 1 and first.shape == out.shape:
        return first
    rows = _merge([labels.rows for labels in known if labels.rows is not None])
    parts = [labels.channels for labels in known if labels.channels is not None]
    channels = _merge(parts) if len(parts) == len(known) else None
    if rows is first.rows and channels is first.channels and first.shape == out.shape:
        return first
    return _or_lost(out.shape, rows, channels, name)


def _dims(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], rank: int
) -> list[int]:
    position = _REDUCTIONS[name]
    dim = kwargs.get("dim", kwargs.get("axis"))
    if dim is None and len(args) > position:
        dim = args[position]
    if dim is None or isinstance(dim, bool):
        return list(range(rank))
    dims = list(dim) if isinstance(dim, (tuple, list)) else [dim]
    return [int(d) % rank for d in dims] or list(range(rank))


def _reduced(out: Tensor, data: Labels, dims: Sequence[int], name: str) -> Labels:
    assert data.rows is not None
    rows, channels = _collapse(data.rows, dims), data.channels
    if channels is not None:
        kept = _collapse(channels, dims)
        # a mean over channels belongs to none of them, as in a hand-written LayerNorm
        if kept is None:
            kept = torch.zeros((1,) * channels.dim(), device=channels.device)
        channels = kept
    if out.dim() < len(data.shape):
        gone = tuple(dims)
        rows = None if rows is None else rows.squeeze(gone)
        channels = None if channels is None else channels.squeeze(gone)
    return _or_lost(out.shape, rows, channels, name)


def _pooled(out: Tensor, data: Labels, spatial: int, name: str) -> Labels:
    assert data.rows is not None
    rank = len(data.shape)
    dims = range(rank - spatial, rank)
    channels = None if data.channels is None else _collapse(data.channels, dims)
    return _or_lost(out.shape, _collapse(data.rows, dims), channels, name)


def _structural(
    func: Callable[..., Any],
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    labels_of: Callable[[Tensor], Labels | None],
    outputs: Sequence[Tensor],
) -> list[Labels]:
    """Run a function that only moves elements on the labels of its first argument."""
    first, rest = (args[0], args[1:]) if args else (next(iter(kwargs.values())), ())
    options = dict(kwargs) if args else dict(list(kwargs.items())[1:])
    if name == "pad":  # padding belongs to no sample, whatever its value
        rest, options = rest[:2], {k: v for k, v in options.items() if k != "value"}
    data = [labels_of(t) for t in tree_leaves(first) if isinstance(t, Tensor)]
    lost = next((d.lost for d in data if d is not None and d.rows is None), "")
    if lost or all(d is None for d in data):  # only an index carries information
        lost = lost or f"`{name}` picks elements of a constant by sample"
        return [Labels(out.shape, None, None, lost) for out in outputs]

    def run(which: str) -> list[Tensor] | None:
        if any(d is not None and getattr(d, which) is None for d in data):
            return None

        def label(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            known = labels_of(t)
            part = t.new_zeros((), dtype=torch.float32)
            if known is not None:
                part = getattr(known, which)
            return part.expand(t.shape)

        moved = func(tree_map(label, first), *rest, **options)
        return [_core(t) for t in tree_leaves(moved) if isinstance(t, Tensor)]

    rows, channels = run("rows"), run("channels")
    assert rows is not None
    return [
        Labels(out.shape, rows[i], None if channels is None else channels[i])
        for i, out in enumerate(outputs)
    ]


def _assigned(
    func: Callable[..., Any],
    args: Sequence[Any],
    labels_of: Callable[[Tensor], Labels | None],
) -> Labels:
    """Labels of ``x`` after ``x[index] = value``."""
    target, index, value = args
    before = labels_of(target)
    new = labels_of(value) if isinstance(value, Tensor) else None
    for labels in (before, new):
        if labels is not None and labels.rows is None:
            return Labels(target.shape, None, None, labels.lost)

    def part(which: str) -> Tensor | None:
        old = None if before is None else getattr(before, which)
        put = None if new is None else getattr(new, which)
        if (before is not None and old is None) or (new is not None and put is None):
            return None
        if old is None:
            old = torch.zeros((), device=target.device)
        written = old.expand(target.shape).clone()
        func(written, index, 0 if put is None else put.expand(value.shape))
        return written

    return _or_lost(target.shape, part("rows"), part("channels"), "setitem")


def _matmul(
    out: Tensor,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    labels_of: Callable[[Tensor], Labels | None],
) -> Labels:
    """Rows of a product: what is summed over must lie within one sample."""
    operands = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)][:3]
    if name == "rmatmul":
        operands = operands[::-1]
    parts = []
    for i, operand in enumerate(operands):
        known = labels_of(operand)
        if known is None or known.rows is None:
            continue
        rank = known.rows.dim()
        if name == "scaled_dot_product_attention":
            summed = [rank - 1] if i == 0 else [rank - 2, rank - 1]
        else:
            summed = [rank - 1] if i == 0 or rank == 1 else [rank - 2]
        rows = _collapse(known.rows, summed)
        if rows is None:
            return _or_lost(out.shape, None, None, name)
        parts.append(rows)
    ranks_fit = all(rows.dim() <= out.dim() for rows in parts)
    return _or_lost(out.shape, _merge(parts) if ranks_fit else None, None, name)


def _rows_by_axis(out: Tensor, known: Sequence[Labels], who: str) -> Labels:
    """Rows of what an unknown function gave, if the axis of the samples stayed."""
    for labels in known:
        if labels.rows is None:
            return Labels(out.shape, None, None, labels.lost)
    axes = {axis for labels in known for axis in row_axes(labels)}
    if not axes:  # one sample, or one row that all share
        single = {float(labels.rows.max()) for labels in known if labels.rows is not None}
        if len(single) == 1:
            row = torch.full((1,) * out.dim(), single.pop(), device=out.device)
            return Labels(out.shape, row)
    if len(axes) == 1:
        axis = axes.pop()
        merged = _axis_rows(known, axis)
        if merged is not None and out.dim() > axis:
            shape = [1] * out.dim()
            shape[axis] = -1
            if out.shape[axis] == merged.numel():
                return Labels(out.shape, merged.view(shape))
    shapes = ", ".join(str(tuple(labels.shape)) for labels in known)
    return Labels(
        out.shape,
        None,
        None,
        f"{who} took tensors of shape {shapes} and gave {tuple(out.shape)}, where the "
        "axis of the samples cannot be told",
    )


def _axis_rows(known: Sequence[Labels], axis: int) -> Tensor | None:
    """The rows along ``axis``, where all of ``known`` that vary agree on them."""
    rows = []
    for labels in known:
        assert labels.rows is not None
        others = [d for d in range(labels.rows.dim()) if d != axis]
        line = _collapse(labels.rows, others)
        if line is None:
            return None
        if line.numel() > 1:
            rows.append(line.flatten())
    if any(r.shape != rows[0].shape for r in rows):
        return None
    return _merge(rows)
