r"""Where samples and channels are in what a layer returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_nif.tracing.label_tensors import collapse, merge, on_axis
from captum_nif.tracing.layer_types import LayerType, layer_type_of
from captum_nif.tracing.origins import Labels, sample_axes, samples_along, untraceable
from captum_nif.tracing.sources import Sources, uniform

_BLOCK = LayerType(sample_axes=lambda module, rank: range(max(rank - 1, 1)))
"""A module of no registered class: samples lie where they lay in its arguments."""


@dataclass(frozen=True)
class Layer:
    """One call of a layer that has ended.

    Args:
        module (Module): what was called.
        name (str): the layer's name in the graph.
        index (int): the number of the source that it is.
        read (Sequence): rank and labels of what it took, None for constants.
        channel_axis (int, optional): the axis of its channels, if the user says so.
        inside (Sequence): for each tensor that it returned, the labels that following
            the module inside came to, if it was followed.
        functions (Sequence of str): names of the functions that mixed features in it.
    """

    module: nn.Module
    name: str
    index: int
    read: Sequence[tuple[int, Labels | None]]
    channel_axis: int | None = None
    inside: Sequence[Labels | None] = ()
    functions: Sequence[str] = ()

    @property
    def _who(self) -> str:
        return f"the layer {self.name!r} ({type(self.module).__name__})"

    def output_labels(self, outputs: Sequence[Tensor]) -> list[Labels]:
        """Labels of what it returned: samples stay apart, channels start anew.

        Args:
            outputs (Sequence of Tensor): the first holds its channels; states and
                attention weights have no values of their own.
        """
        sources = uniform([self.index])
        known = [labels for _, labels in self.read if labels is not None]
        if not known:  # it reads only what is refused
            why = f"{self._who} cannot be followed"
            return [untraceable(t.shape, why, sources) for t in outputs]
        mixed = next(
            (labels.untraceable for labels in known if labels.rows is None), ""
        )
        if mixed:
            return [untraceable(t.shape, mixed, sources) for t in outputs]
        return [self._labels(t, i, known, sources) for i, t in enumerate(outputs)]

    def _labels(
        self, out: Tensor, position: int, known: Sequence[Labels], sources: Sources
    ) -> Labels:
        inside = self.inside[position] if position < len(self.inside) else None
        rows = inside.rows if inside is not None else None
        if rows is None:  # told by the arguments
            if why := self._mixing():
                return untraceable(out.shape, why, sources)
            rows = self._rows(out, position, known)
        if rows is None:
            shapes = ", ".join(str(tuple(labels.shape)) for labels in known)
            why = (
                f"{self._who} took tensors of shape {shapes} and returned "
                f"{tuple(out.shape)}, where the axis of the samples cannot be told"
            )
            return untraceable(out.shape, why, sources)
        channels = None if position else self._channels(out, inside)
        return Labels(out.shape, rows, channels, sources)

    def _rows(
        self, out: Tensor, position: int, known: Sequence[Labels]
    ) -> Tensor | None:
        layer_type = layer_type_of(self.module) or _BLOCK
        axis = layer_type.result_axis(self.module, position, out.dim())
        if axis is None:
            axes = {axis for labels in known for axis in sample_axes(labels)}
            if len(axes) > 1:
                return None
            axis = next(iter(axes), 0)
        return _laid_out([samples_along([labels]) for labels in known], axis, out)

    def _channels(self, out: Tensor, inside: Labels | None) -> Tensor:
        rank = out.dim()
        axis = self.channel_axis
        if axis is not None and not -rank <= axis < rank:
            raise ValueError(
                f"`layers` says that the channels of {self.name!r} lie along axis "
                f"{axis}, and it returned a tensor of shape {tuple(out.shape)}."
            )
        if rank < 2:
            return torch.ones((1,) * rank, device=out.device)
        layer_type = layer_type_of(self.module)
        if axis is None and layer_type is not None:
            axis = layer_type.channel_axis(self.module, rank)
        if axis is None:
            axis = channel_axis(inside)
        if axis is None:
            axis = _by_functions(self.functions, rank)
        return numbered(out, [axis % rank])

    def _mixing(self) -> str:
        """Why it mixes samples, if it takes them for time steps or for features."""
        layer_type = layer_type_of(self.module) or _BLOCK
        for rank, labels in self.read[: layer_type.n_values]:
            if labels is None:
                continue
            allowed = set(layer_type.sample_axes(self.module, rank))
            if wrong := set(sample_axes(labels)) - allowed:
                batch_first = getattr(self.module, "batch_first", None)
                hint = "" if batch_first is None else f" has {batch_first=} and"
                return (
                    f"{self._who}{hint} got a tensor of shape {tuple(labels.shape)} "
                    f"with the samples along axis {min(wrong)}: it mixes samples"
                )
        return ""


def channel_axis(labels: Labels | None) -> int | None:
    """The one axis along which the channel changes, if there is one."""
    if labels is None or labels.channels is None:
        return None
    channels = labels.channels
    axes = [d for d in range(channels.dim()) if collapse(channels, [d]) is None]
    return axes[0] if len(axes) == 1 else None


def numbered(out: Tensor, axes: Sequence[int]) -> Tensor:
    """Channel labels where every place along some axes is a channel of its own."""
    shape = [n if d in axes else 1 for d, n in enumerate(out.shape)]
    count = torch.arange(1, math.prod(shape) + 1, device=out.device)
    return count.to(torch.float32).view(shape)


def _laid_out(lines: Sequence[Tensor | None], axis: int, out: Tensor) -> Tensor | None:
    """Row labels of ``out`` with its samples along one axis, if they fit there."""
    known = [line for line in lines if line is not None]
    if len(known) < len(lines) or len({len(line) for line in known} - {1}) > 1:
        return None
    line = merge(known)
    if line is None or out.dim() <= axis or len(line) not in (1, out.shape[axis]):
        return None
    return on_axis(line, axis, out.dim())


def _by_functions(functions: Sequence[str], rank: int) -> int:
    """The axis of the channels, by the last functions that mixed features.

    The second axis after a convolution of that rank, the last one after a product.
    Where both have run, as in a block of attention and convolutions, images have their
    channels second and sequences have them as the last function left them.
    """
    convolutions = [
        f for f in functions if f.startswith("conv") and f"{rank - 2}d" in f
    ]
    last = functions[-1] if functions else "conv"
    images = rank > 3 and (convolutions or not functions)
    return 1 if images or last in convolutions else rank - 1
