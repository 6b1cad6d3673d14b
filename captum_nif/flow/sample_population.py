r"""Flow over a sample's own population: slopes averaged node by node.

The population of a sample's graph are its hybrids with the background
(:mod:`captum_nif.flow.hybrids`). The slope of node b on a node a that it reads is the
mean, over the hybrids, of the local derivative. With independent Gaussian inputs that
is the regression coefficient of b on a (Stein's lemma), and in units of standard
deviations their correlation: the link of :mod:`captum_nif.flow.path_analysis`, without
the noise of draws, and for one sample.

No link is ever formed. One forward and one backward pass over the m hybrids give, for
every node b, the slope of the target summed over all paths from b (Eq. 4), if the
gradient is replaced by its mean over the hybrids wherever it passes what a layer
computed, and the value that is read of it:

.. math:: w_b = \frac1m \sum_t \frac{\partial}{\partial v_b} \dots

The attribution of input element i is :math:`(x_i - \bar x_i) \, w_i`, with the
background's mean; in a linear network that is weight times deviation, exactly. The flow
through a unit b is :math:`\phi_b = (v_b(x) - \bar v_b) \, w_b`, summed over the places
of a channel. With averages at no layer this would be expected gradients (Erion et al.,
2021) over coalitions; with averages at all layers it is their mean field on the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif.flow.batches import Batches, rows_of
from captum_nif.flow.checks import check_inputs, check_same
from captum_nif.flow.disturbances import warn_if_disturbed
from captum_nif.flow.hybrids import Hybrids
from captum_nif.flow.population import Modules
from captum_nif.graph.elements import Layer
from captum_nif.tracing.dataflow import Structure, Trace
from captum_nif.tracing.origins import Labels, by_channel
from captum_nif.tracing.record import Node
from captum_nif.tracing.tracer import run_watched, trace

MAX_ROWS = 1024
"""Rows of the background that are kept to make hybrids of."""


@dataclass(frozen=True)
class Backdrop:
    """What is kept of a background of N samples: means, and some of its rows.

    Args:
        structure (Structure): layers and links.
        made (dict of int): see :class:`~captum_nif.tracing.dataflow.Trace`.
        results (dict of int): see :class:`~captum_nif.tracing.dataflow.Trace`.
        size (int): number of samples N.
        rows (tuple of Tensor): by input, some samples, [rows, ...].
        extra (tuple): the further arguments of the model for these samples.
        kept (Tensor): their numbers among all samples, ascending, int64, [rows].
        means (tuple of Tensor): by input the mean of all samples, float64, [1, ...].
        value_means (dict of Tensor): by hidden layer the mean of its value, float64,
            [channels, places].
    """

    structure: Structure
    made: Mapping[str, int]
    results: Mapping[str, int]
    size: int
    rows: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    kept: Tensor
    means: tuple[Tensor, ...]
    value_means: Mapping[str, Tensor]

    @property
    def inputs(self) -> list[Layer]:
        """The model's inputs."""
        return [layer for layer in self.structure.layers if layer.kind == "input"]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the model's inputs."""
        return tuple(x.dtype for x in self.rows)


def summarize_background(
    model: nn.Module,
    batches: Batches,
    layers: Modules = None,
    what: str = "the background",
    seed: int = 0,
) -> Backdrop:
    """Streams a background through a model: one pass, of which means are kept.

    Args:
        model (Module): the network.
        batches (iterable): pairs of the inputs and the further arguments of one call.
        layers (sequence, optional): see :func:`captum_nif.tracing.find_layers`.
        what (str): what the samples are called in messages.
        seed (int): of the choice of rows that are kept.

    Raises:
        TypeError, ValueError, NotImplementedError: see
            :func:`captum_nif.flow.population.run_population`.
    """
    chosen = _Reservoir(MAX_ROWS, seed)
    value_sums: dict[str, Tensor] = {}
    sums: list[list[Tensor]] = []  # by batch and input
    first: Trace | None = None
    for inputs, extra in batches:
        check_inputs(model, inputs, what)
        if first is None:  # to know where values are made
            few = tuple(x[:2] for x in inputs)
            first = trace(model, few, rows_of(extra, slice(2), len(inputs[0])), layers)
        visits = {
            place: _Adder(name, value_sums, first.structure.layer(name).size)
            for name, place in first.made.items()
        }
        result = trace(model, inputs, extra, layers, visits=visits)
        check_same(first.structure, result.structure, what)
        if not sums:
            warn_if_disturbed(model, result, first)
        sums.append([x.double().sum(0, keepdim=True) for x in inputs])
        chosen.add(inputs, extra)
    if first is None:
        raise ValueError(
            f"{what.capitalize()} is empty: a sample is compared with its samples."
        )
    return Backdrop(
        first.structure,
        first.made,
        first.results,
        chosen.seen,
        chosen.rows,
        chosen.extra,
        chosen.numbers,
        tuple(torch.stack(x).sum(0) / chosen.seen for x in zip(*sums, strict=True)),
        {name: x / chosen.seen for name, x in value_sums.items()},
    )


class _Adder:
    """Adds up the values of a layer over samples, as they are made."""

    def __init__(self, name: str, sums: dict[str, Tensor], channels: int) -> None:
        self._name, self._sums, self._channels = name, sums, channels

    def __call__(self, x: Tensor, node: Node) -> None:
        values = _by_channel(x, node, self._channels).double().sum(0)
        earlier = self._sums.get(self._name)
        self._sums[self._name] = values if earlier is None else earlier + values


class _Reservoir:
    """A random choice of the rows of a stream, each equally likely."""

    def __init__(self, most: int, seed: int) -> None:
        self._most = most
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0, dtype=torch.float64)
        self.numbers = torch.empty(0, dtype=torch.int64)
        self.rows: tuple[Tensor, ...] = ()
        self.extra: tuple[Any, ...] = ()
        self.seen = 0

    def add(self, inputs: tuple[Tensor, ...], extra: tuple[Any, ...]) -> None:
        """Look at more rows, and at the arguments that follow them."""
        count = len(inputs[0])
        drawn = torch.rand(count, generator=self._generator, dtype=torch.float64)
        keys = torch.cat([self._keys, drawn])
        numbers = torch.cat([self.numbers, torch.arange(self.seen, self.seen + count)])
        chosen = keys.topk(min(len(keys), self._most)).indices.sort().values
        before = len(self._keys)

        def joined(earlier: Any, later: Any) -> Any:
            if not isinstance(later, Tensor) or not later.dim() or len(later) != count:
                return later
            if before:
                later = torch.cat([earlier, later])
            return later.detach()[chosen.to(later.device)]

        none = [None] * len(extra)
        self.rows = tuple(map(joined, self.rows or inputs, inputs))
        self.extra = tuple(map(joined, self.extra or none, extra))
        self._keys, self.numbers = keys[chosen], numbers[chosen]
        self.seen += count


@dataclass
class Slopes:
    """What one backward pass over the hybrids of S samples gives.

    Args:
        inputs (tuple of Tensor): slope on each input element, float32 or better,
            [groups, S, ...]; zeros for an input that is no variable.
        layers (dict of Tensor): slope on each node and place of hidden layers,
            [groups, S, channels, places].
    """

    inputs: tuple[Tensor, ...]
    layers: dict[str, Tensor] = field(default_factory=dict)


class HybridPass:
    """One forward pass over the hybrids of some samples, and backward passes from it.

    Args:
        model (Module): the network.
        layers (sequence, optional): see :func:`captum_nif.tracing.find_layers`.
        backdrop (Backdrop): the background.
        hybrids (Hybrids): how hybrids are made.
        samples (tuple of Tensor): by input, [S, ...].
        extra (tuple): further arguments of the model; tensors follow the samples.
        end (str, optional): the layer whose nodes are targets. Default: the output
        with_samples (bool): run the samples themselves besides, after the hybrids.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Modules,
        backdrop: Backdrop,
        hybrids: Hybrids,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...] = (),
        end: str | None = None,
        with_samples: bool = False,
    ) -> None:
        self._m, self._s = hybrids.count, len(samples[0])
        self._blocks = self._m + with_samples
        self._groups = 1
        self._slopes: dict[str, Tensor] | None = None
        self._end = end or backdrop.structure.output.name
        self._targets: Tensor | None = None
        self.values: dict[str, Tensor] = {}
        mixed = hybrids.of(samples, backdrop.rows)
        if with_samples:
            mixed = tuple(
                torch.cat([u, x]) for u, x in zip(mixed, samples, strict=True)
            )
        self._leaves = tuple(
            u.detach().requires_grad_(u.is_floating_point()) for u in mixed
        )
        sizes = {layer.name: layer.size for layer in backdrop.structure.layers}
        visits = {
            place: self._average_at(sizes[name])
            for name, place in backdrop.results.items()
        }
        visits |= {
            place: self._watch(name, sizes[name])
            for name, place in backdrop.made.items()
        }
        further = repeated(extra, self._s, self._blocks)
        output, result = run_watched(model, self._leaves, further, layers, visits)
        check_same(backdrop.structure, result.structure, "the samples")
        self.output = output.reshape(self._blocks * self._s, -1)
        if self._end == backdrop.structure.output.name:
            self._targets = self.output

    def _average_at(self, channels: int) -> Callable[[Tensor, Node], None]:
        """Averages what flows back to what a layer computed."""

        def visit(x: Tensor, node: Node) -> None:
            if x.requires_grad:
                labels = node.labels
                assert labels is not None
                x.register_hook(lambda g: self._average(None, g, labels, channels))

        return visit

    def _watch(self, name: str, channels: int) -> Callable[[Tensor, Node], None]:
        """Keeps a layer's value, and averages what flows back to it."""

        def visit(x: Tensor, node: Node) -> None:
            values = _by_channel(x, node, channels)
            self.values[name] = values.detach()
            if name == self._end:
                self._targets = values.mean(-1)
            if x.requires_grad:
                labels = node.labels
                assert labels is not None
                x.register_hook(lambda g: self._average(name, g, labels, channels))

        return visit

    def _average(
        self, name: str | None, gradient: Tensor, labels: Labels, channels: int
    ) -> Tensor:
        """The gradient with its mean over hybrids in the place of each."""
        rows = self._blocks * self._s
        if labels.in_order():
            averaged = self._mean(gradient)
        else:
            arrangement = labels.arrangement(rows, channels)
            if arrangement is None:  # its samples are not told apart by channel
                return gradient
            grouped = self._mean(arrangement.group(gradient))
            averaged = arrangement.ungroup(grouped, gradient)
        if self._slopes is not None and name is not None:
            grouped = _grouped(averaged, labels, rows, channels)
            one = grouped[: self._m * self._s]
            one = one.view(self._groups, -1, self._s, *one.shape[1:])[:, 0]
            self._slopes[name] = one.clone()
        return averaged

    def _mean(self, x: Tensor) -> Tensor:
        """Rows, [blocks * S, ...], averaged over the hybrids of each group."""
        hybrids = x[: self._m * self._s]
        shape = self._groups, self._m // self._groups, self._s, *x.shape[1:]
        parts = hybrids.reshape(shape)
        mean = parts.mean(1, keepdim=True, dtype=_at_least_single(x)).to(x.dtype)
        averaged = mean.expand_as(parts).reshape(hybrids.shape)
        rest = x[len(hybrids) :]
        return torch.cat([averaged, rest]) if len(rest) else averaged

    def objective(self, nodes: Tensor) -> Tensor:
        """The value of one node of the end layer, of each hybrid of each sample.

        Args:
            nodes (Tensor): the node of each sample, int64, [S].
        """
        assert self._targets is not None
        index = nodes.to(self._targets.device).repeat(self._blocks)
        return self._targets.gather(1, index[:, None])[:, 0]

    def slopes(
        self,
        objective: Tensor,
        groups: int = 1,
        keep: bool = False,
        units: bool = False,
    ) -> Slopes:
        """Slopes of an objective, averaged over hybrids at every layer.

        Args:
            objective (Tensor): a number for each hybrid, [m * S].
            groups (int): into how many groups the hybrids are split, each averaged by
                itself.
            keep (bool): keep what further passes need.
            units (bool): give the slopes on hidden nodes, too.
        """
        self._groups, self._slopes = groups, {} if units else None
        variables = [x for x in self._leaves if x.requires_grad]
        with torch.inference_mode(False):
            found = torch.autograd.grad(
                objective[: self._m * self._s].sum(),
                variables,
                retain_graph=keep,
                allow_unused=True,
            )
        gradients = iter(found)
        inputs = []
        for x in self._leaves:
            gradient = next(gradients) if x.requires_grad else None
            shape = groups, self._m // groups, self._s, *x.shape[1:]
            if gradient is None:
                inputs.append(x.new_zeros(groups, self._s, *x.shape[1:]).float())
                continue
            hybrids = gradient[: self._m * self._s].reshape(shape)
            inputs.append(hybrids.mean(1, dtype=_at_least_single(gradient)))
        slopes, self._slopes = self._slopes or {}, None
        return Slopes(tuple(inputs), slopes)


def passes(
    samples: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    hybrids: Hybrids,
    most: int,
) -> Iterator[tuple[slice, tuple[Tensor, ...], tuple[Any, ...]]]:
    """Cuts samples so that about ``most`` hybrids run through the model at a time.

    The hybrids of a sample are averaged at every layer, so they run together, also
    where they are more than that.
    """
    step = max(1, most // hybrids.count)
    total = len(samples[0])
    for start in range(0, total, step):
        part = slice(start, min(start + step, total))
        yield part, tuple(x[part] for x in samples), rows_of(extra, part, total)


def _by_channel(x: Tensor, node: Node, channels: int) -> Tensor:
    """The value of a layer, [rows, channels, places]."""
    assert node.labels is not None
    assert node.labels.rows is not None
    rows = int(node.labels.rows.max())
    return _grouped(x, node.labels, rows, channels)


def _grouped(x: Tensor, labels: Labels, rows: int, channels: int) -> Tensor:
    grouped = by_channel(x, labels, rows, channels)
    assert grouped is not None  # else the tracer would have taken another tensor
    return grouped


def repeated(extra: tuple[Any, ...], samples: int, times: int) -> tuple[Any, ...]:
    """Further arguments for several blocks of the same samples."""
    return tuple(
        arg.repeat(times, *[1] * (arg.dim() - 1))
        if isinstance(arg, Tensor) and arg.dim() and len(arg) == samples
        else arg
        for arg in extra
    )


def _at_least_single(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
