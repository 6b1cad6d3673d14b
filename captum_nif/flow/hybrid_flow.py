r"""Attributions and unit flows of a sample's own population, target by target.

The counterpart of :class:`captum_nif.flow.information.Flow` for hybrids: what it gives
is in the units of the target, and adds up to its deviation where the model is linear.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif.flow.backdrop import Backdrop
from captum_nif.flow.basis import Question
from captum_nif.flow.feature_groups import FeatureGroups
from captum_nif.flow.hybrids import Hybrids, draw_hybrids
from captum_nif.flow.information import Advance, Ends, ignore_progress
from captum_nif.flow.link_flow import LinkPass
from captum_nif.flow.options import Options
from captum_nif.flow.sample_population import HybridPass, passes
from captum_nif.graph.elements import Link
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import Normalization, is_chain

OWN_BATCH = 256
"""Hybrids that run through the model at a time, where the background is explained."""

GROUPS = (4, 2)
"""Groups of hybrids, whose results apart from each other tell how noisy they are: as
many as divide the hybrids."""

MOST_CLASSES = 10
"""Classes that a prediction is taken to choose among, the likeliest of each sample."""


@dataclass(frozen=True)
class HybridQuery:
    """Samples to explain.

    Args:
        samples (tuple of Tensor): by input, [S, ...].
        extra (tuple): further arguments of the model; tensors follow the samples.
        size (int): hybrids that run through the model at a time.
    """

    samples: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    size: int


class HybridFlow:
    """What flows through a model for a sample, over its hybrids with the background.

    Args:
        model (Module): the network.
        options (Options): the choices that make up the method.
        backdrop (Backdrop): the background.
        groups (Mapping): feature groups by input, empty for single elements.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        backdrop: Backdrop,
        groups: Mapping[str, FeatureGroups] | None = None,
    ) -> None:
        self.model, self.options, self.backdrop = model, options, backdrop
        self.groups = dict(groups or {})
        self.layers = list(backdrop.structure.layers)
        self.links = [Ends(*link) for link in backdrop.structure.links]

    @cached_property
    def hybrids(self) -> Hybrids:
        """How the hybrids of a sample that is explained are made."""
        return self._drawn(self.options.hybrids)

    @cached_property
    def population_hybrids(self) -> Hybrids:
        """How those are made of samples that are averaged over: a quarter as many."""
        count = self.options.hybrids
        return self._drawn(min(count, max(count // 4, 4)))

    def _drawn(self, count: int) -> Hybrids:
        """So many hybrids; all elements of a feature group are taken together."""
        features: list[Tensor | None] = []
        for layer, rows in zip(self.backdrop.inputs, self.backdrop.rows, strict=True):
            group = self.groups.get(layer.name)
            members = torch.arange(layer.size) if group is None else group.members
            is_variable = rows.is_floating_point()
            features.append(members.view(rows.shape[1:]) if is_variable else None)
        available = len(self.backdrop.rows[0])
        return draw_hybrids(count, available, features, self.options.seed)

    @property
    def is_chain(self) -> bool:
        """Whether layers read each other in turn."""
        return is_chain(self.links)

    @property
    def own_query(self) -> HybridQuery:
        """The rows of the background that are kept, as samples to explain."""
        backdrop = self.backdrop
        return HybridQuery(backdrop.rows, backdrop.extra, OWN_BATCH)

    def prepare(self, advance: Advance = ignore_progress) -> None:
        """Nothing is left to do once the background has been seen."""
        for _ in self.links:
            advance()

    def steps(self, query: HybridQuery | None) -> int:
        """How often ``advance`` is called for these queries, at most."""
        if query is None:
            return len(self.links)
        return math.ceil(
            len(query.samples[0]) / max(1, query.size // self.hybrids.count)
        )

    def attributions(
        self,
        query: HybridQuery,
        end: str,
        nodes: Tensor,
        normalize: Normalization | None = None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        r"""Attributions of each sample, :math:`(x_i - \bar x_i) \, w_i`.

        Args:
            query (HybridQuery): the samples.
            end (str): the layer that is explained.
            nodes (Tensor): its node for each sample, [S].
            normalize: not used.
            advance (Callable): called once per block of samples.

        Returns:
            dict of str to Tensor: float64, [S, elements of the input], by input.
        """
        names = [layer.name for layer in self.backdrop.inputs]
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for part, samples, run in self._runs(query, end):
            slopes = run.slopes(run.objective(nodes[part]))
            for name, x, mean, slope in zip(
                names, samples, self.backdrop.means, slopes.inputs, strict=True
            ):
                deviation = x.double() - mean
                flow = _flat(deviation * slope[0].double(), 1)
                parts[name].append(self._grouped(name, flow))
            advance()
        return {name: torch.cat(x) for name, x in parts.items()}

    def class_attributions(
        self,
        query: HybridQuery,
        classes: Tensor,
        end: str,
        normalize: Normalization | None = None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        """Attributions to each node, averaged for its samples.

        Args:
            query (HybridQuery): the kept rows of the background.
            classes (Tensor): the node of ``end`` that each sample of the whole
                background counts for, [N].
            end (str): the layer that is explained.
            normalize: not used.
            advance (Callable): called once per block of samples.

        Returns:
            dict of str to Tensor: float64, [nodes of ``end``, elements], by input.
        """
        nodes = classes[self.backdrop.kept]
        size = self.backdrop.structure.layer(end).size
        counts = torch.bincount(nodes, minlength=size).clamp(min=1).double()
        averages = {}
        for name, flow in self.attributions(query, end, nodes, None, advance).items():
            sums = flow.new_zeros(size, flow.shape[1])
            sums.index_add_(0, nodes.to(flow.device), flow)
            averages[name] = sums / counts.to(flow.device)[:, None]
        return averages

    def attribution_matrix(
        self,
        end: str,
        normalize: Normalization | None = None,
        advance: Advance = ignore_progress,
    ) -> Tensor:
        r"""The flow that one standard deviation of each feature sends to each node.

        .. math:: A_{ij} = \sigma_i \, \frac1S \sum_s w_{ij}(s)

        over the kept samples of the background.

        Returns:
            Tensor: float64, [features, nodes of ``end``].
        """
        return self._matrix(end, 1, advance)[0]

    def matrix_standard_error(
        self, end: str, advance: Advance = ignore_progress
    ) -> Tensor:
        """Standard error of the matrix, over samples and hybrids; of its shape."""
        groups = _noise_groups(self.population_hybrids)
        _, over_samples, over_groups = self._matrix(end, groups, advance)
        count = len(self.backdrop.kept)
        return (over_samples / count + over_groups / groups).sqrt()

    def _matrix(
        self, end: str, groups: int, advance: Advance
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes in standard deviations of features, [features, nodes of end].

        Their mean over samples, their variance between samples, and that of the mean
        between groups of hybrids.
        """
        size = self.backdrop.structure.layer(end).size
        deviations = [_variance(x).sqrt() for x in self.backdrop.rows]
        sums = squares = torch.zeros(())
        for _, samples, run in self._runs(
            self.own_query, end, hybrids=self.population_hybrids
        ):
            columns = []
            for node in range(size):
                nodes = torch.full((len(samples[0]),), node)
                slopes = run.slopes(run.objective(nodes), groups, keep=node < size - 1)
                parts = [
                    self._features(layer.name, _flat(deviation * slope.double(), 2))
                    for layer, deviation, slope in zip(
                        self.backdrop.inputs, deviations, slopes.inputs, strict=True
                    )
                ]
                columns.append(torch.cat(parts, -1))
            matrices = torch.stack(columns, -1)  # [groups, S, features, nodes]
            sums = sums.to(matrices.device) + matrices.sum(1)
            squares = squares.to(matrices.device) + matrices.mean(0).square().sum(0)
            advance()
        count = len(self.backdrop.kept)
        by_group = sums / count
        mean = by_group.mean(0)
        between = (squares / count - mean.square()).clamp(min=0)
        spread = by_group.var(0) if groups > 1 else torch.zeros_like(mean)
        return mean, between * count / max(count - 1, 1), spread

    def standard_errors(
        self, question: Question, advance: Advance = ignore_progress
    ) -> list[Tensor]:
        r"""Standard errors of attributions over hybrids and background.

        Groups of hybrids, averaged apart, scatter as :math:`\sqrt{G}` times what all of
        them do; the background's mean is uncertain by its deviation over
        :math:`\sqrt{N}`.

        Returns:
            list of Tensor: float64, [S, elements], by input.
        """
        query, end, nodes, _ = question
        groups = _noise_groups(self.hybrids)
        names = [layer.name for layer in self.backdrop.inputs]
        errors: dict[str, list[Tensor]] = {name: [] for name in names}
        for part, samples, run in self._runs(query, end):
            slopes = run.slopes(run.objective(nodes[part]), groups)
            for name, x, rows, mean, slope in zip(
                names,
                samples,
                self.backdrop.rows,
                self.backdrop.means,
                slopes.inputs,
                strict=True,
            ):
                flow = self._grouped(name, _flat((x.double() - mean) * slope, 2))
                of_mean = _variance(rows) / self.backdrop.size
                shift = self._grouped(
                    name, _flat(of_mean * slope.double().mean(0).square(), 1)
                )
                errors[name].append((flow.var(0) / groups + shift).sqrt())
            advance()
        return [torch.cat(x) for x in errors.values()]

    def with_pvalues(
        self,
        graph: FlowGraph,
        n_permutations: int | None = None,
        advance: Advance = ignore_progress,
    ) -> FlowGraph:
        """Refused: what is tested is information."""
        raise ValueError(
            "`significance` tests whether two nodes share information, and these links "
            "carry flow: see `standard_error`, or fit the default method besides."
        )

    def population_graph(
        self, end: str, node: int | None = None, advance: Advance = ignore_progress
    ) -> FlowGraph:
        """The magnitude of the flow through each link, averaged over kept samples.

        Args:
            end (str): the layer that is explained.
            node (int or None): its node; None for the largest one of each sample.
            advance (Callable): called once per block of samples.
        """
        sums: dict[tuple[str, str], Tensor] = {}
        for _, run in self._link_passes(self.own_query, self.population_hybrids):
            nodes = run.largest(end)
            if node is not None:
                nodes = torch.full_like(nodes, node)
            for ends, flow in run.flows(end, nodes, signed=False).items():
                flow = self._by_feature(ends[0], flow)
                sums[ends] = sums[ends] + flow if ends in sums else flow
            del run  # before the next one takes as much memory
            advance()
        count = len(self.backdrop.kept)
        return self._graph(end, {ends: x / count for ends, x in sums.items()})

    def instance_graphs(
        self,
        query: HybridQuery,
        end: str,
        nodes: Tensor | None,
        advance: Advance = ignore_progress,
    ) -> list[FlowGraph]:
        """The signed flow of each sample through each link.

        Args:
            query (HybridQuery): the samples.
            end (str): the layer that is explained.
            nodes (Tensor or None): its node for each sample, [S]; None for the largest.
            advance (Callable): called once per block of samples.
        """
        graphs = []
        for part, run in self._link_passes(query, self.hybrids):
            chosen = run.largest(end) if nodes is None else nodes[part]
            flows = run.flows(end, chosen, signed=True)
            for i in range(len(chosen)):
                own = {
                    ends: self._by_feature(ends[0], x[i]) for ends, x in flows.items()
                }
                graphs.append(self._graph(end, own))
            del run  # before the next one takes as much memory
            advance()
        return graphs

    def _link_passes(
        self, query: HybridQuery, hybrids: Hybrids
    ) -> Iterator[tuple[slice, LinkPass]]:
        for part, samples, extra in passes(
            query.samples, query.extra, hybrids, query.size
        ):
            layers, backdrop = self.options.layers, self.backdrop
            # not held by a name here, so that it is freed before the next is made
            yield (
                part,
                LinkPass(self.model, layers, backdrop, hybrids, samples, extra),
            )

    def _by_feature(self, source: str, flow: Tensor) -> Tensor:
        """Flow from elements of an input, [elements, nodes], added up by feature."""
        return self._features(source, flow.mT).mT

    def _graph(self, end: str, flows: Mapping[tuple[str, str], Tensor]) -> FlowGraph:
        """The graph of what leads to a layer, which then is the output."""
        needed = {end}
        for source, target in reversed(self.links):
            if target in needed:
                needed.add(source)
        layers = []
        for layer in self.layers:
            group = self.groups.get(layer.name)
            if group is not None:
                layer = replace(layer, size=group.count, shape=(group.count,))
            if layer.name == end:
                layer = replace(layer, kind="output")
            if layer.kind == "input" or layer.name in needed:
                layers.append(layer)
        sizes = {layer.name: layer.size for layer in layers}
        links = []
        for a, b in self.links:
            if b in needed:
                nothing = torch.zeros(sizes[a], sizes[b], dtype=torch.float64)
                links.append(Link(a, b, flows.get((a, b), nothing)))
        return FlowGraph(layers, links, "units of the target")

    def unit_flow(
        self,
        query: HybridQuery,
        end: str,
        nodes: Tensor,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        r"""Flow through each node of each hidden layer, summed over its places.

        Returns:
            dict of str to Tensor: float64, [S, channels], by layer.
        """
        parts: dict[str, list[Tensor]] = {}
        for part, _, run in self._runs(query, end, with_samples=True):
            for name, flow in self._through_units(
                run, run.objective(nodes[part])
            ).items():
                parts.setdefault(name, []).append(flow)
            advance()
        return {name: torch.cat(x) for name, x in parts.items()}

    def unit_importance(
        self, query: HybridQuery, advance: Advance = ignore_progress
    ) -> dict[str, Tensor]:
        r"""How much the prediction changes if a unit's flow is taken out, in nats.

        .. math:: \frac1S \sum_s \mathrm{KL}\bigl(\operatorname{softmax} o_s \,\|\,
            \operatorname{softmax}(o_s - d_{su})\bigr)

        with :math:`d_{su}` the flow through unit u to every output of sample s. A model
        with one output is taken to give the logit of two classes.

        Returns:
            dict of str to Tensor: float64, [channels], by layer.
        """
        totals: dict[str, Tensor] = {}
        end = self.backdrop.structure.output.name
        hybrids = self.population_hybrids
        for _, samples, run in self._runs(query, end, True, hybrids):
            count = len(samples[0])
            output = run.output[-count:].detach().double()
            most = min(output.shape[1], MOST_CLASSES)
            classes = output.topk(most, dim=1).indices
            flows: dict[str, list[Tensor]] = {}
            for k in range(most):
                objective = run.objective(classes[:, k])
                last = k == most - 1
                for name, flow in self._through_units(run, objective, not last).items():
                    flows.setdefault(name, []).append(flow)
            logits = output.gather(1, classes)
            for name, by_class in flows.items():
                without = logits[:, None] - torch.stack(by_class, dim=-1)
                change = _divergence(logits[:, None], without).sum(0)
                totals[name] = totals.get(name, torch.zeros_like(change)) + change
            advance()
        count = len(query.samples[0])
        return {name: total / count for name, total in totals.items()}

    def _through_units(
        self, run: HybridPass, objective: Tensor, keep: bool = False
    ) -> dict[str, Tensor]:
        slopes = run.slopes(objective, keep=keep, units=True).layers
        backdrop, flows = self.backdrop, {}
        for name, mean in backdrop.value_means.items():
            parts: dict[str | int, Tensor] = {name: mean}
            states = backdrop.states.get(name, {})
            parts |= {at: backdrop.state_means[at] for at in states}
            flow = torch.zeros_like(run.values[name][..., 0], dtype=torch.float64)
            for part, its_mean in parts.items():
                if part in slopes:  # or else the target does not depend on it
                    deviation = run.values[part].double() - its_mean
                    flow += (deviation * slopes[part][0].double()).sum(-1)
            flows[name] = flow
        return flows

    def _runs(
        self,
        query: HybridQuery,
        end: str,
        with_samples: bool = False,
        hybrids: Hybrids | None = None,
    ) -> Iterator[tuple[slice, tuple[Tensor, ...], HybridPass]]:
        hybrids = hybrids or self.hybrids
        of_model = self.model, self.options.layers, self.backdrop, hybrids
        for part, samples, extra in passes(
            query.samples, query.extra, hybrids, query.size
        ):
            run = partial(HybridPass, *of_model, samples, extra, end, with_samples)
            yield part, samples, run()

    def _features(self, name: str, flow: Tensor) -> Tensor:
        """Flow of elements, [..., elements], added up by feature."""
        group = self.groups.get(name)
        if group is None:
            return flow
        sums = flow.new_zeros(*flow.shape[:-1], group.count)
        return sums.index_add_(-1, group.members.to(flow.device), flow)

    def _grouped(self, name: str, flow: Tensor) -> Tensor:
        """Each element gets the flow of its feature, [..., elements]."""
        group = self.groups.get(name)
        return flow if group is None else group.spread(self._features(name, flow))


def _noise_groups(hybrids: Hybrids) -> int:
    """How many groups of hybrids tell of their noise."""
    groups = next((g for g in GROUPS if hybrids.count % g == 0), 0)
    if not groups:
        raise ValueError(
            f"{hybrids.count} hybrids cannot be split into groups of equal size, whose "
            "scatter gives a standard error: let `hybrids` be a multiple of 4."
        )
    return groups


def _variance(rows: Tensor) -> Tensor:
    """Of each element over rows of the background; 0 of a single row."""
    return rows.double().var(0, correction=min(len(rows) - 1, 1))


def _flat(x: Tensor, axes: int) -> Tensor:
    """With so many axes and one for all elements."""
    return x.reshape(*x.shape[:axes], -1)


def _divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL divergence of softmax(others) from softmax(logits), over the last axis."""
    if logits.shape[-1] == 1:
        logits, others = (
            torch.cat([x, torch.zeros_like(x)], -1) for x in (logits, others)
        )
    p, q = logits.log_softmax(-1), others.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
