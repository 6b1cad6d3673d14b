r"""The flow through each link: from node to node, over a sample's own population.

A linear or convolutional map B with weight W reads :math:`\xi_a`, the deviation of node
a from its mean as far as it arrives in what B reads, and passes on slopes :math:`w_b`
at its output. Through the link from a to b flows, summed over places,

.. math:: L_{ab} = \sum \xi_a \, W_{ba} \, w_b ,

and the sum over b is what flows through a to the target by way of B. For the graph of a
population it is :math:`\sum |\xi_a| \, |W_{ba}| \, |w_b|`, averaged over samples, so
that flows of different signs do not cancel. Other layers (attention, recurrence) have
no weight for each pair of nodes: what flows through a is shared out among the nodes b
in proportion to what flows through them.

The model runs once, cut after every layer: each result is replaced by a copy that
starts anew. So a backward pass from what one layer makes stops at the layers that it
reads, and flows by way of each are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from captum_nif.flow.backdrop import Backdrop
from captum_nif.flow.checks import check_same
from captum_nif.flow.hybrids import Hybrids
from captum_nif.flow.linear_maps import LINEAR_MAPS, pair_products
from captum_nif.flow.population import Modules
from captum_nif.flow.sample_population import repeated
from captum_nif.tracing.origins import Labels, by_channel
from captum_nif.tracing.record import Node
from captum_nif.tracing.tracer import run_watched

Ends = tuple[str, str]


@dataclass
class _Made:
    """What one layer made: attached to what it read, and the copies that go on."""

    module: nn.Module | None
    read: Sequence[tuple[Tensor, Labels | None]]
    results: list[Tensor]
    copies: list[Tensor]


@dataclass
class _Value:
    """The value of a layer's nodes, attached to the copies of what the layer made."""

    tensor: Tensor
    labels: Labels
    channels: int

    def by_channel(self, x: Tensor, rows: int) -> Tensor:
        """A tensor of the value's shape, [rows, channels, places]."""
        grouped = by_channel(x, self.labels, rows, self.channels)
        assert grouped is not None
        return grouped

    def laid_out(self, grouped: Tensor) -> Tensor:
        """The inverse of :meth:`by_channel`; 0 for what is of no channel."""
        arrangement = self.labels.arrangement(len(grouped), self.channels)
        assert arrangement is not None
        return arrangement.ungroup(grouped, grouped.new_zeros(self.tensor.shape))


class LinkPass:
    """One forward pass over hybrids and samples, cut after every layer.

    Args:
        model (Module): the network.
        layers (sequence, optional): see :func:`captum_nif.tracing.find_layers`.
        backdrop (Backdrop): the background.
        hybrids (Hybrids): how hybrids are made.
        samples (tuple of Tensor): by input, [S, ...].
        extra (tuple): further arguments of the model; tensors follow the samples.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Modules,
        backdrop: Backdrop,
        hybrids: Hybrids,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...] = (),
    ) -> None:
        self._backdrop, self._samples = backdrop, samples
        self._m, self._s = hybrids.count, len(samples[0])
        self._rows = (self._m + 1) * self._s
        self._made: dict[str, _Made] = {}
        self._values: dict[str, _Value] = {}
        self._value_slopes: dict[str, Tensor] = {}
        mixed = hybrids.of(samples, backdrop.rows)
        self._leaves = tuple(
            torch.cat([u, x]).detach().requires_grad_(x.is_floating_point())
            for u, x in zip(mixed, samples, strict=True)
        )
        output, result = run_watched(
            model,
            self._leaves,
            repeated(extra, self._s, self._m + 1),
            layers,
            {place: self._keep(name) for name, place in backdrop.made.items()},
            self._cut,
        )
        check_same(backdrop.structure, result.structure, "the samples")
        self._output = output.reshape(self._rows, -1)

    def _keep(self, name: str) -> Callable[[Tensor, Node], None]:
        channels = self._backdrop.structure.layer(name).size

        def visit(x: Tensor, node: Node) -> None:
            assert node.labels is not None
            self._values[name] = _Value(x, node.labels, channels)

        return visit

    def _cut(
        self,
        name: str,
        module: nn.Module | None,
        read: Sequence[tuple[Tensor, Labels | None]],
        results: list[Tensor],
    ) -> list[Tensor]:
        copies = [x.detach().requires_grad_(x.is_floating_point()) for x in results]
        self._made[name] = _Made(module, read, results, copies)
        # Copies of the copies, so that a model may overwrite what it got.
        return [x.clone() for x in copies]

    def largest(self, end: str) -> Tensor:
        """The node of a layer that is largest, of each sample, int64, [S]."""
        return self._targets(end)[-self._s :].detach().argmax(1)

    def flows(self, end: str, nodes: Tensor, signed: bool) -> dict[Ends, Tensor]:
        """The flow of each sample, or of all together, through each link.

        Args:
            end (str): the layer that is explained.
            nodes (Tensor): its node for each sample, [S].
            signed (bool): give signed flows of each sample, not sums of magnitudes.

        Returns:
            dict of Tensor: by the ends of a link float64, [S, nodes of the source,
            nodes of the target], or without the first axis.
        """
        structure = self._backdrop.structure
        self._value_slopes = {}
        waiting: dict[str, list[Tensor]] = {}  # slopes on what a layer made
        flows: dict[Ends, Tensor] = {}
        objective = self._objective(end, nodes)
        chosen = one_hot(nodes.to(objective.device), structure.layer(end).size)
        if end in self._made:
            copies = [x for x in self._made[end].copies if x.requires_grad]
            waiting[end] = _gradients([objective.sum()], copies, [None])
        else:  # the output, which no layer makes
            for source, slopes in self._back([objective.sum()], [None], end).items():
                self._pass_on(waiting, source, slopes)
                through = self._through(source, slopes, signed)
                flows[source, end] = _shared_out(through, chosen, signed)
        for layer in reversed(structure.layers):
            if layer.name not in waiting:
                continue
            made = self._made[layer.name]
            results = [
                x
                for x, copy in zip(made.results, made.copies, strict=True)
                if copy.requires_grad
            ]
            slopes_made = [self._average(g) for g in waiting[layer.name]]
            reached = self._back(results, slopes_made, layer.name)
            for source, slopes in reached.items():
                self._pass_on(waiting, source, slopes)
                flow = self._linear(source, made, slopes_made[0], signed)
                if flow is None:
                    through = self._through(source, slopes, signed)
                    shares = chosen if layer.name == end else self._shares(layer.name)
                    flow = _shared_out(through, shares, signed)
                flows[source, layer.name] = flow
        return flows

    # --- backward passes, from layer to layer -----------------------------------------

    def _targets(self, end: str) -> Tensor:
        """The nodes of a layer, [rows, nodes]; channels are averaged over places."""
        if end == self._backdrop.structure.output.name:
            return self._output
        value = self._values[end]
        return value.by_channel(value.tensor, self._rows).mean(-1)

    def _objective(self, end: str, nodes: Tensor) -> Tensor:
        targets = self._targets(end)
        index = nodes.to(targets.device).repeat(self._m + 1)
        return targets.gather(1, index[:, None])[:, 0]

    def _start(self, source: str) -> Tensor:
        """Where what a layer reads of a source begins: its value, or the input."""
        if source in self._values:
            return self._values[source].tensor
        names = [layer.name for layer in self._backdrop.inputs]
        return self._leaves[names.index(source)]

    def _back(
        self, results: Sequence[Tensor], slopes: Sequence[Any], name: str
    ) -> dict[str, Tensor]:
        """Slopes on the values, or the inputs, that a layer reads."""
        links = self._backdrop.structure.links
        starts = {a: self._start(a) for a, b in links if b == name}
        starts = {a: x for a, x in starts.items() if x.requires_grad}
        pairs = [
            (x, g) for x, g in zip(results, slopes, strict=True) if x.requires_grad
        ]
        if not starts or not pairs:  # such as an embedding, which reads no variable
            return {}
        attached, at = zip(*pairs, strict=True)
        return dict(
            zip(starts, _gradients(attached, list(starts.values()), at), strict=True)
        )

    def _pass_on(
        self, waiting: dict[str, list[Tensor]], source: str, slopes: Tensor
    ) -> None:
        """Adds slopes on a layer's value to what waits for the layer."""
        if source not in self._values:
            return
        averaged = self._average(slopes)
        known = self._value_slopes.get(source)
        self._value_slopes[source] = averaged if known is None else known + averaged
        copies = [x for x in self._made[source].copies if x.requires_grad]
        parts = _gradients([self._values[source].tensor], copies, [averaged])
        if source in waiting:
            parts = [a + b for a, b in zip(waiting[source], parts, strict=True)]
        waiting[source] = parts

    def _average(self, slopes: Tensor) -> Tensor:
        """Slopes averaged over hybrids, which then are those of the samples, too."""
        if len(slopes) % (self._m + 1):  # samples are not along the first axis
            return slopes
        parts = slopes.view(self._m + 1, -1, *slopes.shape[1:])
        dtype = torch.promote_types(slopes.dtype, torch.float32)
        mean = parts[:-1].mean(0, dtype=dtype).to(slopes.dtype)
        return mean.expand_as(parts).reshape(slopes.shape)

    # --- links ------------------------------------------------------------------------

    def _deviation(self, source: str) -> Tensor:
        """How far a value, or an input, is from the background's mean; rows all."""
        names = [layer.name for layer in self._backdrop.inputs]
        if source in names:
            i = names.index(source)
            x = self._leaves[i].detach()
            return x.double() - self._backdrop.means[i]
        value = self._values[source]
        grouped = value.by_channel(value.tensor.detach(), self._rows).double()
        return value.laid_out(grouped - self._backdrop.value_means[source])

    def _of_samples(self, source: str, x: Tensor) -> Tensor:
        """A tensor like a value, or like an input, by node: [S, nodes, places]."""
        if source in self._values:
            return self._values[source].by_channel(x, self._rows)[-self._s :]
        return x[-self._s :].flatten(1).unsqueeze(-1)

    def _through(self, source: str, slopes: Tensor, signed: bool) -> Tensor:
        """What flows through each node of a source, [S, nodes]."""
        flow = self._deviation(source) * self._average(slopes)
        flow = self._of_samples(source, flow)
        return (flow if signed else flow.abs()).sum(-1)

    def _shares(self, name: str) -> Tensor:
        """The part of each node in what flows through a layer, [S, nodes]."""
        through = self._through(name, self._value_slopes[name], False)
        total = through.sum(1, keepdim=True)
        return through / torch.where(total == 0, 1.0, total)

    def _linear(
        self, source: str, made: _Made, slope: Tensor, signed: bool
    ) -> Tensor | None:
        """Flow through the weights of a linear or convolutional map."""
        module = made.module
        if not isinstance(module, LINEAR_MAPS) or len(made.read) != 1:
            return None
        ((read, labels),) = made.read
        arriving = self._arriving(source, read)
        if arriving is None or labels is None:
            return None
        owners = self._owners(source, read, labels)
        if owners is None:
            return None
        x, w = arriving, _by_block(slope, self._m + 1)[-1]
        if signed:
            parts = [
                pair_products(module, x[i : i + 1], w[i : i + 1], owners[i : i + 1])
                for i in range(self._s)
            ]
            return torch.stack(parts)
        return pair_products(module, x, w, owners, magnitudes=True)

    def _arriving(self, source: str, read: Tensor) -> Tensor | None:
        """A sample's deviation as it arrives in what a layer reads, [S, ...].

        On average over the hybrids, of which each passes on a derivative's share.
        """
        start, deviation = self._start(source), self._deviation(source)
        blocks = self._m + 1
        own = _by_block(deviation, blocks)[-1]
        if read is start:
            return own
        if not read.requires_grad:
            return None
        # The derivative of what is read, times the deviation: the derivative, by the
        # probe, of the derivative of (probe times what is read), times the deviation.
        probe = torch.zeros_like(read, requires_grad=True)
        with torch.enable_grad():
            (back,) = torch.autograd.grad(
                read, start, probe, create_graph=True, allow_unused=True
            )
            if back is None:
                return None
            along = own.repeat(blocks, *[1] * (own.dim() - 1)).to(back.dtype)
            (ahead,) = torch.autograd.grad(back, probe, along, allow_unused=True)
        return None if ahead is None else _by_block(ahead, blocks)[:-1].double().mean(0)

    def _owners(self, source: str, read: Tensor, labels: Labels) -> Tensor | None:
        """The node of a source that each element of what is read belongs to, [S, ...].

        Of an input the element itself, of other layers the channel.
        """
        if source in self._values:
            if labels.channels is None:
                return None
            owners = labels.channels.expand(read.shape).long() - 1
        else:
            names = [layer.name for layer in self._backdrop.inputs]
            leaf = self._leaves[names.index(source)]
            if read[0].numel() != leaf[0].numel() or len(read) != len(leaf):
                return None
            owners = torch.arange(leaf[0].numel(), device=read.device)
            owners = owners.view(read.shape[1:]).expand(read.shape)
        return _by_block(owners, self._m + 1)[-1]


def _by_block(x: Tensor, blocks: int) -> Tensor:
    """Rows by hybrid, and last those of the samples themselves, [blocks, S, ...]."""
    return x.reshape(blocks, -1, *x.shape[1:])


def _shared_out(through: Tensor, shares: Tensor, signed: bool) -> Tensor:
    """What flows through nodes, [S, a], in shares of those behind, [S, b]."""
    shares = shares.to(through.dtype)
    if signed:
        return through[:, :, None] * shares[:, None, :]
    return through.mT @ shares


def _gradients(
    results: Sequence[Tensor], starts: Sequence[Tensor], slopes: Sequence[Any]
) -> list[Tensor]:
    """Slopes on where results start; zeros where they do not depend on it."""
    found = torch.autograd.grad(
        list(results), list(starts), list(slopes), retain_graph=True, allow_unused=True
    )
    return [
        torch.zeros_like(x) if g is None else g
        for g, x in zip(found, starts, strict=True)
    ]
