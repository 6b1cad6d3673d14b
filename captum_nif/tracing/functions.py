r"""The vocabulary of torch functions: their names, arguments, and kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from captum_nif.tracing.origins import Labels
from captum_nif.tracing.sources import NOTHING, Sources, uniform


def function_name(func: Callable[..., Any]) -> str:
    """The plain name of a function: ``relu`` for ``Tensor.relu_`` and ``F.relu``."""
    name = raw_name(func)
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
    for prefix in ("special_", "linalg_", "fft_"):
        name = name.removeprefix(prefix)
    return name.rstrip("_")


def raw_name(func: Callable[..., Any]) -> str:
    """The name with its underscores: ``relu_`` writes, ``relu`` does not."""
    name = str(getattr(func, "__name__", func))
    if name in ("__get__", "__set__"):  # an attribute, as in `x.T`
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name.split(".")[0]  # operators are called `relu.default`


def tensors_in(arguments: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, such as a function's arguments."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = tuple(arguments.values())
    if isinstance(arguments, (tuple, list)):
        return [t for argument in arguments for t in tensors_in(argument)]
    return []


def leaves_of(tree: object) -> list[Tensor]:
    """The tensors in what a module takes or returns, whatever holds them."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def tensors_read(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """The tensors among the arguments whose values a function takes."""
    tensors = tensors_in((args, [v for k, v in kwargs.items() if k != "out"]))
    name = raw_name(func)
    if name in _VALUELESS:
        return []
    if name in _LIKE:
        return tensors[:1]
    return tensors[1:] if name == "copy_" else tensors


def version(x: Tensor) -> int:
    """How often the memory of a tensor was written."""
    return 0 if x.is_inference() else x._version


@dataclass(frozen=True)
class Performed:
    """What a call of a torch function did.

    Args:
        result (any): what it returned.
        made (list of Tensor): the tensors that it made or overwrote.
        written (list of Tensor): those of its arguments that it overwrote.
    """

    result: Any
    made: list[Tensor]
    written: list[Tensor]


def perform(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Performed:
    """Call a torch function, and see which tensors it makes and overwrites."""
    tensors = tensors_in((args, kwargs))
    versions = [version(t) for t in tensors]
    result = func(*args, **kwargs)
    written = [t for t, v in zip(tensors, versions, strict=True) if version(t) != v]
    name = function_name(func)
    if name == "data" and result is None:  # x.data = y
        written = tensors[:1]
    if name.endswith(("batch_norm", "instance_norm")):  # running statistics
        written = [t for t in written if t is tensors[0]]
    written = by_memory(written, tensors_in(kwargs.get("out")))
    made = [t for t in tensors_in(result) if not is_in(t, tensors)] + distinct(written)
    return Performed(result, made, written)


def is_in(x: object, tensors: Sequence[Tensor]) -> bool:
    """Whether ``x`` is one of the tensors, by identity."""
    return any(x is t for t in tensors)


def by_memory(tensors: Sequence[Tensor], first: Sequence[Tensor]) -> list[Tensor]:
    """One of all that share memory: of those in ``first``, or the first of them."""
    found: dict[object, Tensor] = {}
    for t in (*(t for t in tensors if is_in(t, first)), *tensors):
        memory = memory_of(t)
        found.setdefault(id(t) if memory is None else ("memory", memory), t)
    return list(found.values())


def distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors without repetitions, by identity."""
    return list({id(t): t for t in tensors}.values())


def memory_of(x: Tensor) -> int | None:
    """The memory that a tensor lies in."""
    return x.untyped_storage()._cdata if x.layout == torch.strided else None


@dataclass(frozen=True)
class Call:
    """One call of a torch function.

    Args:
        func (Callable): the function or method.
        args (Sequence): its positional arguments.
        kwargs (Mapping): its keyword arguments.
        labels_of (Callable): the labels of an argument from before the call, None for a
            constant.
        outputs (Sequence of Tensor): the tensors that it made or overwrote.
    """

    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    labels_of: Callable[[Tensor], Labels | None]
    outputs: Sequence[Tensor]

    @cached_property
    def name(self) -> str:
        """See :func:`function_name`."""
        return function_name(self.func)

    @property
    def first(self) -> object:
        """The first argument: the data, by the conventions of torch."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def labels(self) -> Labels | None:
        """Labels of the first argument."""
        return self.labels_of(self.first) if isinstance(self.first, Tensor) else None

    @cached_property
    def read(self) -> tuple[Tensor, ...]:
        """The tensors whose values it takes."""
        return tuple(tensors_read(self.func, self.args, self.kwargs))

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors whose values it takes, but not the indices of moves."""
        if self.name not in MOVING:
            return self.read
        data = {id(t) for t in tensors_in(self.first)}
        return tuple(t for t in self.read if id(t) in data or t.is_floating_point())

    @cached_property
    def known(self) -> list[Labels]:
        """The labels of those of :attr:`tensors` that have any."""
        return [k for t in self.tensors if (k := self.labels_of(t)) is not None]

    def sources_of(self, t: Tensor) -> Sources:
        """The sources of an argument from before the call."""
        labels = self.labels_of(t)
        return NOTHING if labels is None else labels.sources

    @property
    def all_sources(self) -> Sources:
        """The sources of all that it reads together."""
        return uniform(
            frozenset().union(*(self.sources_of(t).union for t in self.read))
        )

    @property
    def has_index_from_inputs(self) -> bool:
        """Whether integers that depend on the inputs say where elements go."""
        data = {id(t) for t in tensors_in(self.first)}
        return any(
            self.labels_of(t) is not None
            for t in tensors_read(self.func, self.args, self.kwargs)
            if id(t) not in data and not t.is_floating_point()
        )

    def get(self, position: int, names: str, default: object = None) -> Any:
        """An argument by position or by one of several names."""
        if len(self.args) > position:
            return self.args[position]
        return next(
            (self.kwargs[n] for n in names.split() if n in self.kwargs), default
        )


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LIKE = frozenset(["view_as", "reshape_as", "expand_as", "type_as", "to"])
_VALUELESS = _names(
    """zeros_like ones_like empty_like full_like rand_like randn_like randint_like
    new_zeros new_ones new_empty new_empty_strided new_full new_tensor zero_ fill_
    bernoulli_ normal_ uniform_ exponential_ random_ cauchy_ log_normal_ geometric_
    trunc_normal_ shape size dim numel"""
)
MIXING_FUNCTIONS = _names(
    """linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution addmm addbmm baddbmm addmv mm mv bmm matmul rmatmul
    einsum tensordot inner dot embedding embedding_bag multi_head_attention_forward lstm
    gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"""
)
"""Functions that, with a parameter, do what layers do."""

MOVING = _names(
    """view reshape view_as reshape_as flatten unflatten ravel permute transpose t T mT
    H mH swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as
    broadcast_to broadcast_tensors repeat tile repeat_interleave narrow select
    index_select gather take_along_dim masked_select getitem setitem chunk split
    tensor_split unbind hsplit vsplit dsplit split_with_sizes unsafe_chunk unsafe_split
    cat concat concatenate stack hstack vstack dstack column_stack roll flip fliplr
    flipud rot90 pad constant_pad_nd unfold pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle tril triu diagonal adjoint atleast_1d
    atleast_2d atleast_3d fftshift ifftshift take index index_put index_copy diag_embed
    select_scatter slice_scatter diagonal_scatter narrow_copy row_stack"""
)
PADDING = {"pad": 3, "constant_pad_nd": 2}  # how many arguments come before the value
POINTWISE = _names(
    """relu relu6 elu selu celu gelu silu mish hardtanh hardswish hardsigmoid leaky_relu
    prelu rrelu logsigmoid log_sigmoid softplus softshrink hardshrink tanhshrink
    softsign tanh sigmoid threshold _threshold batch_norm native_batch_norm dropout
    dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
    native_dropout add sub subtract mul multiply div divide true_divide floor_divide
    remainder mod fmod pow float_power rsub neg negative pos positive abs absolute sign
    sgn signbit exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos
    tan asin acos atan arcsin arccos arctan sinh cosh tanh asinh acosh atanh atan2
    arctan2 sinc erf erfc erfinv expit logit clamp clip clamp_min clamp_max minimum
    maximum fmin fmax where masked_fill lerp addcmul addcdiv round floor ceil trunc fix
    frac nan_to_num eq ne lt le gt ge greater greater_equal less less_equal not_equal
    logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not
    bitwise_xor and or xor invert isnan isinf isfinite isposinf isneginf hypot logaddexp
    logaddexp2 xlogy xlog1py i0 i0e i1 i1e digamma lgamma polygamma entr ndtr ndtri
    log_ndtr erfcx copysign ldexp heaviside deg2rad rad2deg bucketize bernoulli normal
    poisson to float double half bfloat16 int long short bool byte type type_as cpu cuda
    clone detach contiguous data real requires_grad pin_memory alias rdiv rtruediv rpow
    rmul radd truediv floordiv rfloordiv rmod iadd isub imul itruediv idiv ipow iand ior
    ixor ilshift irshift lshift rshift imod ifloordiv arccosh arcsinh arctanh angle conj
    conj_physical resolve_conj resolve_neg complex polar imag cfloat cdouble gammaln
    gammainc gammaincc igamma igammac isin isclose index_fill"""
)
KEEPING = POINTWISE - _names(
    "detach data alias real imag conj resolve_conj resolve_neg where"
)
"""Functions whose result is new memory that holds the channels of their argument.

Not views of their argument, nor ``where``, which of one argument gives indices.
"""

SOFTMAX = frozenset(["softmax", "log_softmax", "softmin"])
TRAILING_AXES = frozenset(["layer_norm", "native_layer_norm", "rms_norm"])
ALL_BUT_FIRST_AXIS = frozenset(
    ["group_norm", "native_group_norm", "instance_norm", "local_response_norm"]
)
REDUCING = _names(
    """mean sum nansum nanmean amax amin aminmax max min prod std var std_mean var_mean
    logsumexp median nanmedian argmax argmin all any count_nonzero mode norm vector_norm
    cosine_similarity pairwise_distance quantile nanquantile"""
)
SCATTERING = frozenset(["scatter_add", "scatter_reduce", "index_add", "index_reduce"])
FOURIER = _names(
    """fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 hfft2 ihfft2 fftn ifftn
    rfftn irfftn hfftn ihfftn"""
)
SCANNING = _names(
    """cumsum cumprod cummax cummin logcumsumexp sort argsort msort topk kthvalue glu
    diff"""
)
BATCHED = _names(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d fold
    grid_sample affine_grid"""
)
# position of the argument `dim`, and its default; None: all axes
DIM: dict[str, tuple[int, int | tuple[int, ...] | None]] = {
    **dict.fromkeys(REDUCING, (1, None)),
    **dict.fromkeys(["mode", "aminmax"], (1, -1)),
    **dict.fromkeys(["norm", "vector_norm"], (2, None)),
    "cosine_similarity": (2, 1),
    "pairwise_distance": (9, -1),
    **dict.fromkeys(SOFTMAX, (1, None)),
    "gumbel_softmax": (4, -1),
    "normalize": (2, 1),
    **dict.fromkeys(SCANNING, (1, -1)),
    "msort": (9, 0),
    **dict.fromkeys(["topk", "kthvalue", "diff"], (2, -1)),
    **dict.fromkeys(["quantile", "nanquantile"], (2, None)),
    **{
        name: (2, (-2, -1) if "2" in name else None if name.endswith("n") else -1)
        for name in FOURIER
    },
}
EQUATIONS = {
    "linear": "...i,oi->...o",
    "bilinear": "...i,...j,oij->...o",
    "addmv": "ij,j->i",
    "addr": "i,j->ij",
    "cdist": "...id,...jd->...ij",
    "outer": "i,j->ij",
    "scaled_dot_product_attention": "...qd,...kd,...kv->...qv",
}
