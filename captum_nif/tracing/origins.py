r"""Where every element of a tensor comes from: its sample, its channel, its sources.

Between two layers a model may reshape, permute, pool, slice or rescale a tensor in any
way that Python allows. To average such a tensor per sample and channel, one must know
which elements belong to which pair: :class:`Labels` says so, and
:mod:`captum_nif.tracing.provenance` carries labels from the arguments of a torch
function to its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from captum_nif.tracing.label_tensors import collapse, merge, on_axis
from captum_nif.tracing.layout import Arrangement, Positions, layout_of
from captum_nif.tracing.sources import NOTHING, Sources


@dataclass(frozen=True, eq=False)
class Labels:
    """The sample (``rows``) and the channel of each element of a tensor.

    Args:
        shape (torch.Size): shape of the labeled tensor.
        rows (Tensor or None): sample of each element, broadcastable to ``shape``. None:
            samples were mixed, see ``untraceable``.
        channels (Tensor or None): the same for channels. None: channels were mixed.
        sources (Sources): what each element depends on.
        untraceable (str): what mixed the samples.
    """

    shape: torch.Size
    rows: Tensor | None
    channels: Tensor | None = None
    sources: Sources = NOTHING
    untraceable: str = ""

    def in_order(self) -> bool:
        """Whether sample i is what stands at place i of the first axis."""
        if self.rows is None or not self.shape:
            return False
        counted = torch.arange(1, self.shape[0] + 1, device=self.rows.device)
        line = collapse(self.rows, range(1, self.rows.dim()))
        return line is not None and torch.equal(line.flatten().long(), counted)

    def pairs(self, n_channels: int) -> Tensor | None:
        """Flat index ``row * n_channels + channel`` per element, -1 for neither."""
        if self.rows is None or self.channels is None:
            return None
        rows, channels = self.rows.long(), self.channels.long()
        index = (rows - 1) * n_channels + channels - 1
        index = torch.where((rows > 0) & (channels > 0), index, -1)
        return index.expand(self.shape).flatten()

    @cached_property
    def is_plain(self) -> bool:
        """Whether the tensor is [N, C, ...] with samples and channels in order."""
        if self.channels is None or len(self.shape) < 2 or not self.in_order():
            return False
        line = collapse(self.channels, [0, *range(2, self.channels.dim())])
        counted = torch.arange(1, self.shape[1] + 1, device=self.channels.device)
        return line is not None and torch.equal(line.flatten().long(), counted)

    def arrangement(self, n_rows: int, n_channels: int) -> Arrangement | None:
        """How elements are reached by (sample, channel), or None.

        None when some pair does not appear as often as the others: such a tensor no
        longer holds every channel of every sample.
        """
        key = (n_rows, n_channels)
        if key not in self._arrangements:
            self._arrangements[key] = self._arrangement(n_rows, n_channels)
        return self._arrangements[key]

    @cached_property
    def _arrangements(self) -> dict[tuple[int, int], Arrangement | None]:
        return {}

    def _arrangement(self, n_rows: int, n_channels: int) -> Arrangement | None:
        if self.rows is None or self.channels is None:
            return None
        layout = layout_of(self.shape, self.rows, self.channels, n_rows, n_channels)
        if layout is not None:
            return layout
        index = self.pairs(n_channels)
        assert index is not None  # labels are known
        positions = torch.nonzero(index >= 0).flatten()
        index = index[positions]
        counts = torch.bincount(index, minlength=n_rows * n_channels)
        if counts.numel() != n_rows * n_channels or bool((counts != counts[0]).any()):
            return None
        if counts[0] == 0:
            return None
        order = positions[torch.argsort(index, stable=True)]
        return Positions(order, n_rows, n_channels)


def by_channel(
    x: Tensor, labels: Labels, n_rows: int, n_channels: int
) -> Tensor | None:
    """Elements of ``x`` by sample and channel, [n_rows, n_channels, places], or None.

    None when ``x`` does not hold every channel of every sample equally often. Within a
    channel they stand in the tensor's own order.
    """
    arrangement = labels.arrangement(n_rows, n_channels)
    return None if arrangement is None else arrangement.group(x)


def overwrite(x: Tensor, labels: Labels, grouped: Tensor) -> None:
    """Writes elements back where :func:`by_channel` found them, in place."""
    arrangement = labels.arrangement(*grouped.shape[:2])
    assert arrangement is not None  # they were found
    x.copy_(arrangement.ungroup(grouped, x))


def average(grouped: Tensor) -> Tensor:
    """Mean over places, [N, C], of elements by sample and channel, [N, C, places].

    It is taken in double precision and in the order of the places, so that a reshaped
    tensor has bitwise the mean of the original.
    """
    if grouped.shape[-1] == 1:
        mean = grouped[..., 0].clone()
    elif grouped.device.type == "mps":  # Apple's GPUs have no double precision
        mean = grouped.float().mean(-1)
    else:
        mean = grouped.mean(-1, dtype=torch.float64)
    return mean.to(float_dtype(grouped))


def float_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the values of nodes: that of the tensor, or single precision."""
    return x.dtype if x.is_floating_point() else torch.float32


def untraceable(shape: torch.Size, why: str, sources: Sources = NOTHING) -> Labels:
    """Labels of a tensor whose samples cannot be told apart."""
    return Labels(shape, None, None, sources, why)


def batch_labels(x: Tensor, sources: Sources = NOTHING) -> Labels:
    """Labels of a model input: axis 0 is the sample.

    Its channels are numbered along the last axis, to see whether what reads it takes
    them for features; numbers of categories have none.
    """
    rows = torch.arange(1, x.shape[0] + 1, device=x.device, dtype=torch.float32)
    count = x.shape[-1] if x.is_floating_point() and x.dim() > 1 else 1
    channels = torch.arange(1, count + 1, device=x.device, dtype=torch.float32)
    if not x.is_floating_point():
        channels = channels * 0
    return Labels(
        x.shape,
        on_axis(rows, 0, x.dim()),
        on_axis(channels, x.dim() - 1, x.dim()),
        sources,
    )


def sample_axes(labels: Labels) -> list[int]:
    """The axes along which the sample changes."""
    rows = labels.rows
    if rows is None:
        return []
    return [d for d in range(rows.dim()) if collapse(rows, [d]) is None]


def samples_along(known: Sequence[Labels], axis: int | None = None) -> Tensor | None:
    """The samples along the one axis where those of all of ``known`` change.

    Args:
        known (Sequence of Labels): none of them untraceable.
        axis (int, optional): the only axis where they may change. Default: any, if it
            is the same for all of them.

    Returns:
        Tensor or None: 1-d row labels, one element if no sample changes anywhere. None
        if the samples change along other axes, or differ between ``known``.
    """
    axes = {a for labels in known for a in sample_axes(labels)}
    if len(axes) > 1 or (axis is not None and axes - {axis}):
        return None
    lines = []
    for labels in known:
        assert labels.rows is not None
        line = collapse(labels.rows, set(range(labels.rows.dim())) - axes)
        if line is None:
            return None
        lines.append(line.flatten())
    lengths = {line.numel() for line in lines} - {1}
    return merge(lines) if len(lengths) <= 1 else None
