r"""What happens inside a block that the user takes for one layer.

Where the samples and the channels are in what a block returns is told by following them
through it: layers inside start channels anew, and moves carry them along. Its inner
values are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from captum_nif.tracing.functions import Call
from captum_nif.tracing.layers import channel_axis, numbered
from captum_nif.tracing.origins import Labels
from captum_nif.tracing.record import Node, Record


class BlockRecord(Record):
    """A record of what happens inside a block: labels alone.

    Args:
        outer (Record): of what happens around it.
    """

    def __init__(self, outer: Record) -> None:
        self.held, self.batch = outer.held, outer.batch
        self.integers, self.looked_up = outer.integers, outer.looked_up
        self.sources, self.order = list(outer.sources), []
        self._outer = outer
        self.calls, self.made_by, self.moves_by_values = [], [], False
        self._overrides, self._visits, self._making = {}, {}, ()
        self._current = WeakTensorKeyDictionary()
        self._used_attributes = set()

    def known(self, x: Tensor) -> Node | None:
        """The current version of a tensor, also if it was made outside."""
        node = super().known(x)
        if node is None and (outside := self._outer.known(x)) is not None:
            node = self._seen_from_inside(outside)
            self._current[x] = node
        return node

    def watch(
        self,
        name: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        is_inside: bool,
    ) -> None:
        """Nothing: the outer record watches all calls."""

    def settle(self, x: Tensor) -> None:
        """Nothing: inner values are not kept."""

    def settle_read(self, keeps: bool, tensors: Sequence[Tensor]) -> None:
        """Nothing: inner values are not kept."""

    def refine(self, call: Call, labels: list[Labels]) -> list[Labels]:
        """Where channels were mixed along their axis, it is still the channels' axis.

        So it is after gated linear units, running sums, and attention.
        """
        known = [(k, axis) for k in call.known if (axis := channel_axis(k)) is not None]
        axes = sorted({axis for _, axis in known})
        ranks = {len(k.shape) for k, _ in known}
        if len(axes) != 1:
            return labels
        return [
            replace(made, channels=numbered(out, axes))
            if made.rows is not None and made.channels is None and ranks == {out.dim()}
            else made
            for out, made in zip(call.outputs, labels, strict=True)
        ]

    def _seen_from_inside(self, node: Node) -> Node:
        """Unknown channels agree with any, and those of inputs are not known yet."""
        labels = node.labels
        if labels is None or labels.rows is None:
            return node
        channels = labels.channels
        if channels is None or all(self.sources[i].call is None for i in node.sources):
            channels = torch.zeros((1,) * len(labels.shape), device=labels.rows.device)
        return Node(replace(labels, channels=channels), refused=node.refused)
