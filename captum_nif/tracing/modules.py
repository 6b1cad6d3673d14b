r"""What modules mean: which are layers, where samples and channels are in theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captum_nif.tracing.origins import (
    Labels,
    lost,
    merge,
    on_axis,
    sample_axes,
    samples_along,
)

LAYER_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
"""Modules that mix features, and so are layers unless the user names others."""


def output_labels(
    module: nn.Module,
    name: str,
    read: Sequence[tuple[int, Labels | None]],
    outputs: Sequence[Tensor],
    functions: Sequence[str],
) -> list[Labels]:
    """Labels of what a layer returned: samples stay on their axis, channels start anew.

    Args:
        module (Module): the layer.
        name (str): its name in the graph.
        read (Sequence): rank and labels of what it took, None for constants.
        outputs (Sequence of Tensor): what it returned. The first holds its channels;
            states and attention weights have no values of their own.
        functions (Sequence of str): names of the functions that mixed features in it.
    """
    who = f"the layer {name!r} ({type(module).__name__})"
    known = [labels for _, labels in read if labels is not None]
    if not known:  # it reads only what is refused
        return [lost(t.shape, f"{who} cannot be followed") for t in outputs]
    mixed = next((labels.lost for labels in known if labels.rows is None), "")
    mixed = mixed or _mixing(module, read, who)
    if mixed:
        return [lost(t.shape, mixed) for t in outputs]
    lines = [samples_along([labels]) for labels in known]
    axes = {axis for labels in known for axis in sample_axes(labels)}
    found = []
    for i, t in enumerate(outputs):
        axis = _sample_axis(module, i, t.dim(), axes)
        rows = None if axis is None else _laid_out(lines, axis, t)
        if rows is None:
            shapes = ", ".join(str(tuple(labels.shape)) for labels in known)
            why = (
                f"{who} took tensors of shape {shapes} and gave {tuple(t.shape)}, "
                "where the axis of the samples cannot be told"
            )
            found.append(lost(t.shape, why))
        else:
            found.append(
                Labels(t.shape, rows, _channels(t, functions) if not i else None)
            )
    return found


def _sample_axis(
    module: nn.Module, position: int, rank: int, axes: set[int]
) -> int | None:
    """The axis of the samples in a layer's result, or None."""
    if isinstance(module, nn.RNNBase) and rank == 3:
        return 0 if module.batch_first and position == 0 else 1
    if isinstance(module, nn.MultiheadAttention) and rank == 3:
        return 0 if module.batch_first or position > 0 else 1
    return None if len(axes) > 1 else next(iter(axes), 0)


def _laid_out(lines: Sequence[Tensor | None], axis: int, out: Tensor) -> Tensor | None:
    """Row labels of ``out`` with its samples along one axis, if they fit there."""
    given = [line for line in lines if line is not None]
    if len(given) < len(lines) or len({len(line) for line in given} - {1}) > 1:
        return None
    line = merge(given)
    if line is None or out.dim() <= axis or len(line) not in (1, out.shape[axis]):
        return None
    return on_axis(line, axis, out.dim())


def _channels(out: Tensor, functions: Sequence[str]) -> Tensor:
    """Channel labels of a layer's result, by the last functions that mixed features.

    The second axis after a convolution of that rank, the last one after a product.
    Where both have run, as in a block of attention and convolutions, images have their
    channels second and sequences have them as the last function left them.
    """
    rank = out.dim()
    if rank < 2:
        return torch.ones((1,) * rank, device=out.device)
    convolutions = [
        f for f in functions if f.startswith("conv") and f"{rank - 2}d" in f
    ]
    last = functions[-1] if functions else "conv"
    images = rank > 3 and (convolutions or not functions)
    axis = 1 if images or last in convolutions else rank - 1
    count = torch.arange(1, out.shape[axis] + 1, device=out.device, dtype=torch.float32)
    return on_axis(count, axis, rank)


def _mixing(
    module: nn.Module, read: Sequence[tuple[int, Labels | None]], who: str
) -> str:
    """Why a layer mixes samples, if it takes them for time steps or for features."""
    checked = read
    if isinstance(module, nn.MultiheadAttention):
        checked = read[:3]  # what follows are masks
    elif isinstance(module, nn.RNNBase):
        checked = read[:1]  # what follows are states
    for rank, labels in checked:
        if labels is None or not (axes := set(sample_axes(labels))):
            continue
        allowed, hint = set(range(max(rank - 1, 1))), ""
        if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            allowed = set() if rank == 2 else {0 if module.batch_first else 1}
            hint = f" has batch_first={module.batch_first} and"
        elif isinstance(module, nn.modules.conv._ConvNd):
            allowed = {0} if rank == len(module.kernel_size) + 2 else set()
        elif isinstance(module, (nn.Linear, nn.Bilinear, nn.RNNCellBase)):
            allowed = set(range(rank - 1))
        if axes - allowed:
            return (
                f"{who}{hint} got a tensor of shape {tuple(labels.shape)} with the "
                f"samples along axis {min(axes - allowed)}: it mixes samples"
            )
    return ""
