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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from captum_nif.flow.backdrop import Backdrop
from captum_nif.flow.checks import NO_GRADIENT, check_differentiable, check_same
from captum_nif.flow.hybrid_rows import HybridRows, averaged, hybrid_rows
from captum_nif.flow.hybrids import Hybrids
from captum_nif.flow.linear_maps import LINEAR_MAPS, pair_products
from captum_nif.flow.population import Modules
from captum_nif.flow.sample_population import repeated
from captum_nif.tracing.layout import Arrangement, Layout
from captum_nif.tracing.origins import Labels
from captum_nif.tracing.record import Node, Visit
from captum_nif.tracing.tracer import run_watched

Ends = tuple[str, str]

_CLEAR = 0.1
"""How far from a whole number, by rounding, what stands for one may be."""


@dataclass
class _Made:
    """What one layer made: attached to what it read, and the copies that go on."""

    module: nn.Module | None
    read: Sequence[tuple[Tensor, Labels | None]]
    results: list[Tensor]
    copies: list[Tensor]
    given: list[Tensor]
    rows: list[HybridRows | None]

    @property
    def variable(self) -> list[int]:
        """Which of the results slopes are taken on."""
        return [i for i, copy in enumerate(self.copies) if copy.requires_grad]


@dataclass(frozen=True)
class _Value:
    """The value of a layer's nodes, attached to the copies of what the layer made."""

    tensor: Tensor
    arrangement: Arrangement
    rows: HybridRows | None


class LinkPass:
    """One forward pass over hybrids and samples, cut after every layer.

    Args:
        model (Module): the network.
        layers (sequence, optional): see :func:`captum_nif.tracing.find_layers`.
        backdrop (Backdrop): the background.
        hybrids (Hybrids): how hybrids are made.
        samples (tuple of Tensor): by input, [S, ...].
        extra (tuple): further arguments of the model; tensors follow the samples.

    Raises:
        RuntimeError: if the model has no gradients.
        ValueError: if it takes another path than for the background.
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
        check_differentiable(model)
        self._backdrop = backdrop
        self._s, self._blocks = len(samples[0]), hybrids.count + 1
        self._made: dict[str, _Made] = {}
        self._values: dict[str, _Value] = {}
        self._value_slopes: dict[str, Tensor] = {}
        with torch.inference_mode(False), torch.enable_grad():
            own = [x.detach() for x in samples]
            mixed = hybrids.of(own, backdrop.rows)
            leaves = [torch.cat(pair) for pair in zip(mixed, own, strict=True)]
            for x in leaves:
                x.requires_grad_(x.is_floating_point())
            output, result = run_watched(
                model,
                tuple(leaves),
                repeated(extra, self._s, self._blocks),
                layers,
                self._visits(),
                self._cut,
            )
            self._output = output.reshape(self._n_rows, -1)
        self._inputs = {
            layer.name: x for layer, x in zip(backdrop.inputs, leaves, strict=True)
        }
        check_same(backdrop.structure, result.structure, "the samples")

    @property
    def _n_rows(self) -> int:
        return self._s * self._blocks

    # --- one forward pass -------------------------------------------------------------

    def _cut(
        self,
        name: str,
        module: nn.Module | None,
        read: Sequence[tuple[Tensor, Labels | None]],
        results: list[Tensor],
    ) -> list[Tensor]:
        copies = [x.detach().requires_grad_(x.is_floating_point()) for x in results]
        # Copies of the copies, so that a model may overwrite what it got.
        given = [x.clone() for x in copies]
        nowhere: list[HybridRows | None] = [None] * len(results)
        self._made[name] = _Made(module, read, results, copies, given, nowhere)
        return given

    def _visits(self) -> dict[int, Visit]:
        """What is looked at as it is made: results, states, and values."""
        visits: dict[int, Visit] = {}
        for name, position in self._backdrop.results.items():
            visits[position] = partial(self._meet_result, name, None)
        for name, layouts in self._backdrop.states.items():
            for position, layout in layouts.items():
                visits[position] = partial(self._meet_result, name, layout)
        for name, position in self._backdrop.made.items():
            visits[position] = partial(self._meet_value, name, visits.get(position))
        return visits

    def _meet_result(
        self, name: str, layout: Layout | None, x: Tensor, node: Node
    ) -> None:
        rows = hybrid_rows(node.labels, x, self._n_rows, self._blocks)
        if layout is not None:
            rows = HybridRows(layout.axis, layout.before, layout.after, self._blocks)
        made = self._made[name]
        made.rows = [
            rows if given is x else earlier
            for given, earlier in zip(made.given, made.rows, strict=True)
        ]

    def _meet_value(
        self, name: str, as_result: Visit | None, x: Tensor, node: Node
    ) -> None:
        if as_result is not None:
            as_result(x, node)
        assert node.labels is not None
        channels = self._backdrop.structure.layer(name).size
        arrangement = node.labels.arrangement(self._n_rows, channels)
        assert arrangement is not None  # else the tracer had taken another tensor
        rows = hybrid_rows(node.labels, x, self._n_rows, self._blocks)
        self._values[name] = _Value(x, arrangement, rows)

    # --- what is asked ----------------------------------------------------------------

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
        with torch.inference_mode(False), torch.enable_grad():
            targets = self._targets(end)
            if not targets.requires_grad:
                raise RuntimeError(NO_GRADIENT)
            index = nodes.to(targets.device).repeat(self._blocks)
            objective = targets.gather(1, index[:, None]).sum()
            return self._flows(objective, end, nodes.to(targets.device), signed)

    def _flows(
        self, objective: Tensor, end: str, nodes: Tensor, signed: bool
    ) -> dict[Ends, Tensor]:
        structure = self._backdrop.structure
        self._value_slopes = {}
        waiting: dict[str, list[Tensor]] = {}  # slopes on what a layer made
        flows: dict[Ends, Tensor] = {}
        chosen = one_hot(nodes, structure.layer(end).size)
        if end in self._made:
            made = self._made[end]
            copies = [made.copies[i] for i in made.variable]
            waiting[end] = _gradients([objective], copies, [None])
        else:  # the output, which no layer makes
            for source, slopes in self._back([objective], [None], end).items():
                self._pass_on(waiting, source, slopes)
                through = self._through(source, slopes, signed)
                flows[source, end] = _shared_out(through, chosen, signed)
        for layer in reversed(structure.layers):
            if layer.name not in waiting:
                continue
            made = self._made[layer.name]
            pairs = zip(made.variable, waiting[layer.name], strict=True)
            slopes_made = [averaged(g, made.rows[i]) for i, g in pairs]
            results = [made.results[i] for i in made.variable]
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

    def _targets(self, end: str) -> Tensor:
        """The nodes of a layer, [rows, nodes]; channels are averaged over places."""
        if end == self._backdrop.structure.output.name:
            return self._output
        value = self._values[end]
        return value.arrangement.group(value.tensor).mean(-1)

    # --- backward passes, from layer to layer -----------------------------------------

    def _start(self, source: str) -> tuple[Tensor, HybridRows | None]:
        """Where what a layer reads of a source begins: its value, or the input."""
        if source in self._inputs:
            return self._inputs[source], HybridRows(0, 1, 1, self._blocks)
        value = self._values[source]
        return value.tensor, value.rows

    def _back(
        self, results: Sequence[Tensor], slopes: Sequence[Any], name: str
    ) -> dict[str, Tensor]:
        """Slopes on the values, or the inputs, that a layer reads."""
        links = self._backdrop.structure.links
        starts = {a: self._start(a)[0] for a, b in links if b == name}
        starts = {a: x for a, x in starts.items() if x.requires_grad}
        pairs = [
            (x, g) for x, g in zip(results, slopes, strict=True) if x.requires_grad
        ]
        if not starts or not pairs:  # such as an embedding, which reads no variable
            return {}
        attached, at = zip(*pairs, strict=True)
        found = _gradients(attached, list(starts.values()), at)
        return dict(zip(starts, found, strict=True))

    def _pass_on(
        self, waiting: dict[str, list[Tensor]], source: str, slopes: Tensor
    ) -> None:
        """Adds slopes on a layer's value to what waits for the layer."""
        if source not in self._values:
            return
        value, made = self._values[source], self._made[source]
        slopes = averaged(slopes, value.rows)
        known = self._value_slopes.get(source)
        self._value_slopes[source] = slopes if known is None else known + slopes
        copies = [made.copies[i] for i in made.variable]
        parts = _gradients([value.tensor], copies, [slopes])
        if source in waiting:
            parts = [a + b for a, b in zip(waiting[source], parts, strict=True)]
        waiting[source] = parts

    # --- links ------------------------------------------------------------------------

    def _deviation(self, source: str) -> Tensor:
        """How far a value, or an input, is from the background's mean; of its shape."""
        if source in self._inputs:
            mean = self._backdrop.means[list(self._inputs).index(source)]
            return self._inputs[source].detach().double() - mean
        value, mean = self._values[source], self._backdrop.value_means[source]
        grouped = value.arrangement.group(value.tensor.detach()).double()
        nothing = grouped.new_zeros(value.tensor.shape)
        return value.arrangement.ungroup(grouped - mean, nothing)

    def _through(self, source: str, slopes: Tensor, signed: bool) -> Tensor:
        """What flows through each node of a source, [S, nodes]."""
        flow = self._deviation(source) * averaged(slopes, self._start(source)[1])
        if source in self._values:
            flow = self._values[source].arrangement.group(flow)[-self._s :]
        else:
            flow = flow[-self._s :].reshape(self._s, -1, 1)
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
        rows = hybrid_rows(labels, read, self._n_rows, self._blocks)
        rows_made = made.rows[0]
        if labels is None or rows is None or rows_made is None:
            return None
        arriving = self._arriving(source, read, rows)
        owners = self._owners(source, read, labels, rows)
        if arriving is None or owners is None:
            return None
        x, w = rows.of_samples(arriving), rows_made.of_samples(slope)
        owners = rows.of_samples(owners)
        size = self._backdrop.structure.layer(source).size
        if signed:
            each = zip(x, w, owners, strict=True)
            return torch.stack([pair_products(module, *one, size) for one in each])
        x, w, owners = (t.flatten(0, 1) for t in (x, w, owners))
        return pair_products(module, x, w, owners, size, magnitudes=True)

    def _arriving(self, source: str, read: Tensor, rows: HybridRows) -> Tensor | None:
        """A sample's deviation as it arrives in what a layer reads, of its shape.

        On average over the hybrids, of which each passes on a derivative's share.
        """
        ahead = self._ahead(source, read, self._deviation(source))
        return None if ahead is None else rows.averaged(ahead.double())

    def _ahead(self, source: str, read: Tensor, change: Tensor) -> Tensor | None:
        """What a change of samples comes to in what a layer reads: a derivative.

        The change is that of the samples, in every hybrid.
        """
        start, rows = self._start(source)
        if not read.requires_grad or rows is None:
            return None
        change = rows.repeated(change).to(start.dtype)
        if read is start:
            return change
        # Of (probe times what is read) the derivative by the start, times the change,
        # is a number; its derivative by the probe is what the change comes to.
        probe = torch.zeros_like(read, requires_grad=True)
        (back,) = torch.autograd.grad(
            read, start, probe, create_graph=True, allow_unused=True
        )
        if back is None:
            return None
        (ahead,) = torch.autograd.grad(back, probe, change, allow_unused=True)
        return ahead

    def _owners(
        self, source: str, read: Tensor, labels: Labels, rows: HybridRows
    ) -> Tensor | None:
        """The node of a source that each element of what is read belongs to; -1: none.

        Of other layers the channel. Of an input the element itself, whose number runs
        through what is between: where that only moves and scales elements, it arrives
        in the same proportion as 1 does, and so does a sign.
        """
        if source in self._values:
            channels = labels.channels
            return None if channels is None else channels.expand(read.shape).long() - 1
        leaf = self._inputs[source]
        numbers = torch.arange(leaf[0].numel(), device=leaf.device).view(leaf.shape[1:])
        signs = torch.where(numbers.double().mul(12.9898).sin() > 0, 1.0, -1.0)
        arrived = []
        for change in (torch.ones_like(signs), numbers.double(), signs):
            ahead = self._ahead(source, read, change.expand(leaf.shape))
            if ahead is None:
                return None
            arrived.append(rows.averaged(ahead.double()))
        share, number, sign = arrived
        share = torch.where(share == 0, torch.inf, share)
        owners = (number / share).round()
        known = owners.clamp(0, leaf[0].numel() - 1).long()
        moved = (number / share - owners).abs() < _CLEAR
        moved &= (sign / share - signs.flatten()[known]).abs() < _CLEAR
        if not bool((moved | share.isinf()).all()):
            return None
        return torch.where(share.isinf(), -1, known)


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
