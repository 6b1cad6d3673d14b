"""Where samples and channels are in a tensor: by axes, or else element by element.

Models lay out what they compute along axes: [N, C, H, W], [N, T, C], [N * T, C], heads
[N, h, T, d] or [N * h, T, d]. A :class:`Layout` says which axis (or which part of one)
counts samples and which count channels, for any number of samples, so elements are
sorted by views. :class:`Positions` sorts them one by one, where axes do not tell, as in
a padded tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_nif.tracing.label_tensors import collapse


@dataclass(frozen=True, eq=False)
class Layout:
    """How to reach the elements of each sample and channel.

    Args:
        axis (int): the axis that counts samples, perhaps with other things around them.
        after (int): elements along it that follow each other within a sample.
        before (int): how often all samples come one after another along it.
        channels (tuple of int): the axes that count channels, where ``axis`` is split
            in three: what is before, samples, and after.
        count (int): number of channels.
        order (Tensor or None): which of the positions along these axes, in the order of
            channels; None where they stand in order.
        kept (tuple or None): an axis of the whole tensor, and the positions along it
            where samples are; the others are padding, or a token of no sample.
    """

    axis: int
    after: int
    before: int
    channels: tuple[int, ...]
    count: int
    order: Tensor | None
    kept: tuple[int, Tensor] | None = None

    def group(self, x: Tensor) -> Tensor:
        """The elements by sample and channel, [samples, channels, places].

        Within a channel they stand in the tensor's own order.
        """
        if self.kept is not None:
            axis, positions = self.kept
            x = x.index_select(axis, positions.to(x.device))
        moved = self._moved(x)
        flat = moved.reshape(moved.shape[0], self._positions(moved), -1)
        if self.order is not None:
            flat = flat[:, self.order.to(x.device)]
        return flat.reshape(len(flat), self.count, -1)

    def ungroup(self, grouped: Tensor, x: Tensor) -> Tensor:
        """A tensor of the shape of ``x`` that :meth:`group` would turn into these.

        What is of no sample is that of ``x``.
        """
        if self.kept is not None:
            axis, positions = self.kept
            positions = positions.to(x.device)
            whole = replace(self, kept=None)
            part = whole.ungroup(grouped, x.index_select(axis, positions))
            return x.index_copy(axis, positions, part.to(x.dtype))
        moved = self._moved(x)
        flat = grouped.reshape(moved.shape[0], self._positions(moved), -1)
        if self.order is not None:
            flat = flat[:, self.order.to(x.device).argsort()]
        flat = flat.reshape(moved.shape)
        axes = self._axes(x.dim())
        back = [axes.index(d) for d in range(len(axes))]
        return flat.permute(back).reshape(x.shape)

    def blocks(self, x: Tensor, count: int) -> Tensor:
        """Cut a tensor, whose samples come in as many blocks, [count, ...]."""
        sizes = self.before, count, -1, self.after
        split: Tensor = x.unflatten(self.axis, sizes)
        return split.movedim(self.axis + 1, 0)

    def joined(self, blocks: Tensor, x: Tensor) -> Tensor:
        """A tensor of the shape of ``x`` that :meth:`blocks` would turn into these."""
        return blocks.movedim(0, self.axis + 1).reshape(x.shape)

    def group_block(self, block: Tensor) -> Tensor:
        """What :meth:`group` gives, of one of :meth:`blocks`."""
        return self.group(block.flatten(self.axis, self.axis + 2))

    def _moved(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(self.axis, (self.before, -1, self.after))
        return split.permute(self._axes(x.dim()))

    def _axes(self, rank: int) -> list[int]:
        """Samples, channels, and the others in their order, of the split tensor."""
        first = [self.axis + 1, *self.channels]
        return first + [d for d in range(rank + 2) if d not in first]

    def _positions(self, moved: Tensor) -> int:
        return math.prod(moved.shape[1 : 1 + len(self.channels)])


@dataclass(frozen=True, eq=False)
class Positions:
    """The flat positions of elements, by sample and channel.

    Args:
        order (Tensor): int64, [samples * channels * places].
        samples (int): number of samples.
        count (int): number of channels.
    """

    order: Tensor
    samples: int
    count: int

    def group(self, x: Tensor) -> Tensor:
        """See :meth:`Layout.group`."""
        return x.flatten()[self.order].view(self.samples, self.count, -1)

    def ungroup(self, grouped: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Layout.ungroup`; what is of no sample or channel stays."""
        flat = x.flatten().index_put((self.order,), grouped.flatten().to(x.dtype))
        return flat.view(x.shape)

    def blocks(self, x: Tensor, count: int) -> Tensor:
        """See :meth:`Layout.blocks`."""
        blocks: Tensor = self.group(x).unflatten(0, (count, -1))
        return blocks

    def joined(self, blocks: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Layout.joined`."""
        return self.ungroup(blocks.flatten(0, 1), x)

    def group_block(self, block: Tensor) -> Tensor:
        """See :meth:`Layout.group_block`."""
        return block


Arrangement = Layout | Positions


def layout_of(
    shape: torch.Size, rows: Tensor, channels: Tensor, n_rows: int, n_channels: int
) -> Layout | None:
    """The layout of a tensor by its labels, if axes tell all.

    Args:
        shape (torch.Size): of the tensor.
        rows (Tensor): its row labels.
        channels (Tensor): its channel labels.
        n_rows (int): number of samples. Of one the axis cannot be told; its layout is
            good for one only.
        n_channels (int): number of channels.

    Returns:
        Layout or None: each channel of each sample stands there exactly once a place.
    """
    if not shape:
        return None
    if not bool((rows > 0).all() and (channels > 0).all()):
        return _layout_of_rest(shape, rows, channels, n_rows, n_channels)
    where = sample_axis(shape, rows, n_rows)
    if where is None:
        return None
    axis, before, after = where
    apart = (before, n_rows, after) if channels.size(axis) > 1 else (1, 1, 1)
    labels = channels.unflatten(axis, apart)
    counting = [
        d
        for d in range(labels.dim())
        if labels.size(d) > 1 and collapse(labels, [d]) is None
    ]
    places = [d for d in range(labels.dim()) if d not in counting]
    compact = None if axis + 1 in counting else collapse(labels, places)
    if compact is None or compact.numel() != n_channels:
        return None
    numbers = compact.flatten().long()
    in_order = torch.arange(1, n_channels + 1, device=numbers.device)
    order = numbers.argsort(stable=True)
    if not torch.equal(numbers[order], in_order):
        return None
    return Layout(
        axis,
        after,
        before,
        tuple(counting),
        n_channels,
        None if torch.equal(numbers, in_order) else order,
    )


def sample_axis(
    shape: torch.Size, rows: Tensor, n_rows: int
) -> tuple[int, int, int] | None:
    """The axis that counts samples, and what is before and after them along it.

    Args:
        shape (torch.Size): of the tensor.
        rows (Tensor): its row labels.
        n_rows (int): number of samples. Of one the axis cannot be told.

    Returns:
        tuple of int or None: as ``axis``, ``before`` and ``after`` of :class:`Layout`.
    """
    if n_rows == 1:
        return 0, 1, shape[0]
    axes = [d for d in range(rows.dim()) if collapse(rows, [d]) is None]
    if len(axes) != 1 or shape[axes[0]] % n_rows:
        return None
    (axis,) = axes
    line = collapse(rows, [d for d in range(rows.dim()) if d != axis])
    split = None if line is None else _split(line.flatten(), n_rows)
    return None if split is None else (axis, *split)


def _layout_of_rest(
    shape: torch.Size, rows: Tensor, channels: Tensor, n_rows: int, n_channels: int
) -> Layout | None:
    """The layout without the positions along one axis that are of no sample."""
    none = (rows == 0) | (channels == 0)
    varied = [
        d for d in range(none.dim()) if bool((none != none.narrow(d, 0, 1)).any())
    ]
    if len(varied) != 1:
        return None
    (axis,) = varied
    kept = (~none.movedim(axis, 0).flatten(1)[:, 0]).nonzero().flatten()

    def rest(labels: Tensor) -> Tensor:
        return labels if labels.size(axis) == 1 else labels.index_select(axis, kept)

    short = torch.Size(len(kept) if d == axis else n for d, n in enumerate(shape))
    layout = layout_of(short, rest(rows), rest(channels), n_rows, n_channels)
    if layout is None or layout.axis == axis:
        return None
    return replace(layout, kept=(axis, kept))


def _split(line: Tensor, n_rows: int) -> tuple[int, int] | None:
    """What comes before and after samples along an axis, by its row labels."""
    after = int((line == line[0]).long().cumprod(0).sum())
    if line.numel() % (n_rows * after):
        return None
    before = line.numel() // (n_rows * after)
    samples = torch.arange(1, n_rows + 1, device=line.device)
    expected = samples.repeat_interleave(after).repeat(before)
    return (before, after) if torch.equal(line.long(), expected) else None
