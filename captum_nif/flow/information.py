r"""From node values to flow: population graphs, instance graphs, attributions.

A :class:`Flow` joins a population (what probabilities are estimated from) to a rule
(how a link's weight is computed from the values of its two layers). The population
graph carries mutual information, the instance graph of a sample its pointwise mutual
information, and an attribution is the sum over paths of the products of their links.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from captum_nif.estimators import Prepared
from captum_nif.flow.checks import check_scale
from captum_nif.flow.feature_groups import FeatureGroups
from captum_nif.flow.link_weights import LinkRule
from captum_nif.flow.permutation_test import link_pvalues
from captum_nif.graph.elements import Layer, Link, sorted_sparse
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import Normalization, backward_sums, is_chain
from captum_nif.tracing.tracer import Structure

_BUDGET = 1 << 25
"""Pointwise weights of links held at a time (256 MiB of float64)."""

_UNFITTED_BUDGET = 1 << 28
"""The same where the batch is its own population, and cannot be cut (2 GiB)."""

Advance = Callable[[], object]


def ignore_progress() -> None:
    """Where nobody watches."""


class Ends(NamedTuple):
    """The two layers of a link, by name."""

    source: str
    target: str


WeightOf = Callable[[Ends], Tensor]


class Flow:
    """Links' weights from the node values of a population.

    Args:
        structure (Structure): layers and links.
        values (Mapping): values that each layer computed, [N, size], by name.
        rule (LinkRule): how a link's weight is computed.
        groups (Mapping): feature groups by input, empty for single elements.
        passed_on (Mapping, optional): values that each layer passed on to its readers,
            if these are others than it computed.
        fields (Mapping, optional): bool, [places of the source, places of the target],
            by link: where nodes can be linked at all.
    """

    unit = "nats"
    """Of the weights of its graphs."""

    def __init__(
        self,
        structure: Structure,
        values: Mapping[str, Tensor],
        rule: LinkRule,
        groups: Mapping[str, FeatureGroups] | None = None,
        passed_on: Mapping[str, Tensor] | None = None,
        fields: Mapping[tuple[str, str], Tensor] | None = None,
    ) -> None:
        self.groups = dict(groups or {})
        self.fields = dict(fields or {})
        self.rule = rule
        self.layers = [
            replace(layer, size=group.count, shape=(group.count,))
            if (group := self.groups.get(layer.name))
            else layer
            for layer in structure.layers
        ]
        self.links = [Ends(*link) for link in structure.links]
        self.values = self._grouped(values)
        self.passed_on = self.values if passed_on is None else self._grouped(passed_on)
        self._prepared: dict[tuple[str, bool], Prepared] = {}
        self._sizes = {layer.name: layer.size for layer in self.layers}
        into: dict[str, int] = {}
        for source, target in self.links:
            pairs = self._sizes[source] * self._sizes[target]
            into[target] = into.get(target, 0) + pairs
        self._largest = max(into.values(), default=1)

    @property
    def samples(self) -> int:
        """Size of the population."""
        return len(next(iter(self.values.values())))

    @property
    def is_chain(self) -> bool:
        """Whether layers read each other in turn."""
        return is_chain(self.links)

    def prepare(self, advance: Advance = ignore_progress) -> None:
        """Does once what all links share: ranking and sorting every layer's values.

        Args:
            advance (Callable): called once per link.
        """
        for source, target in self.links:
            self._ready_source(source)
            self._ready_target(target)
            advance()

    def population_graph(
        self, end: str, node: int | None = None, advance: Advance = ignore_progress
    ) -> FlowGraph:
        """The graph whose links carry mutual information, in nats.

        Args:
            end (str): the layer where the graph ends.
            node (int or None): keep only what flows into this node of ``end``; None
                keeps all.
            advance (Callable): called once per link.
        """
        layers, ends = self._up_to(end)
        weight_of = self._population_weights()
        links = []
        for link in ends:
            weight = weight_of(link)
            if node is not None and link.target == end:
                weight = into_nodes(weight, torch.tensor(node))
            links.append(Link(*link, weight))
            advance()
        return FlowGraph(layers, links, self.unit)

    def with_pvalues(
        self,
        graph: FlowGraph,
        n_permutations: int | None = None,
        advance: Advance = ignore_progress,
    ) -> FlowGraph:
        """A population graph of this flow, with the p-values of its links.

        They test the pair of nodes of each link, whatever the scale of its weight, its
        relevance or redundancy. What is no connection has a p-value of 1.

        Args:
            graph (FlowGraph): as :meth:`population_graph` gave it.
            n_permutations (int, optional): null values in a table; by default, by the
                links.
            advance (Callable): called once per link.
        """
        links = []
        for link in graph.links:
            pvalue = link_pvalues(
                self.rule.estimator,
                self.passed_on[link.source],
                self.values[link.target],
                n_permutations=n_permutations,
            )
            connected = link.weight.to_dense() != 0
            links.append(replace(link, pvalue=torch.where(connected, pvalue, 1.0)))
            advance()
        return FlowGraph(graph.layers, links, graph.unit)

    def _population_weights(self) -> WeightOf:
        """The function that gives a link's weight in the population graph, [a, b]."""
        self._check_redundancy()
        redundancy: dict[str, Tensor | float] = {}

        def weight_of(link: Ends) -> Tensor:
            source, target = link
            if source not in redundancy:
                redundancy[source] = self.rule.redundancy(self.passed_on[source])
            weight = self.rule.population(
                self._ready_source(source),
                self._ready_target(target),
                redundancy[source],
            )
            return self._within_field(link, weight)

        return weight_of

    def instance_graphs(
        self,
        query: Mapping[str, Tensor] | None,
        end: str,
        nodes: Tensor | None,
        advance: Advance = ignore_progress,
    ) -> list[FlowGraph]:
        """One graph per sample, whose links carry its pointwise mutual information.

        Args:
            query (Mapping or None): node values of the samples explained, [S, size] by
                layer; None explains the population's samples against each other.
            end (str): the layer where the graph ends.
            nodes (Tensor or None): keep only what flows into these nodes of ``end``,
                [S]; None keeps all.
            advance (Callable): called once per link and block of samples.
        """
        graphs = []
        layers, ends = self._up_to(end)
        for part, weight_of in self._blocks(query):
            links: list[list[Link]] = []
            for link in ends:
                weight = weight_of(link)
                if nodes is not None and link.target == end:
                    weight = into_nodes(weight, nodes[part])
                links.append([Link(*link, single) for single in weight.unbind()])
                advance()
            graphs += [
                FlowGraph(layers, own, self.unit) for own in zip(*links, strict=True)
            ]
        return graphs

    def attributions(
        self,
        query: Mapping[str, Tensor] | None,
        end: str,
        nodes: Tensor,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        """Path sums (Eq. 4) of each sample's graph from each input to its node.

        Args:
            query (Mapping or None): as in :meth:`instance_graphs`.
            end (str): the layer where paths end.
            nodes (Tensor): the node of ``end`` that each sample explains, [S].
            normalize (str or None): as in
                :func:`captum_nif.graph.path_sums.backward_sums`.
            advance (Callable): called once per link and block of samples.

        Returns:
            dict of str to Tensor: float64, [S, elements of the input], by input.
        """
        inputs = [layer.name for layer in self._inputs]
        sums: dict[str, list[Tensor]] = {name: [] for name in inputs}
        device = next(iter(self.values.values())).device
        for part, weight_of in self._blocks(query):
            seed = one_hot(nodes[part].to(device), self._sizes[end]).double()

            def weight_and_advance(link: Ends, of: WeightOf = weight_of) -> Tensor:
                advance()
                return of(link)

            found = backward_sums(
                self.layers, self.links, end, seed, weight_and_advance, normalize
            )
            for name in inputs:
                sums[name].append(found[name])
        self._check_scale([x for parts in sums.values() for x in parts], normalize)
        return {
            name: self._spread(name, torch.cat(parts)) for name, parts in sums.items()
        }

    def class_attributions(
        self,
        query: Mapping[str, Tensor] | None,
        classes: Tensor,
        end: str,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        """Path sums to each node of a layer over links averaged for its samples.

        Args:
            query (Mapping or None): as in :meth:`instance_graphs`.
            classes (Tensor): the node of ``end`` that each sample counts for, [S];
                every node has one.
            end (str): the layer where paths end.
            normalize (str or None): as in
                :func:`captum_nif.graph.path_sums.backward_sums`.
            advance (Callable): called once per link.

        Returns:
            dict of str to Tensor: float64, [nodes of ``end``, nodes of the input].
        """
        blocks = list(self._blocks(query))
        classes = classes.to(next(iter(self.values.values())).device)

        def averaged(link: Ends) -> Tensor:
            sums = torch.zeros(
                self._sizes[end],
                self._sizes[link.source],
                self._sizes[link.target],
                dtype=torch.float64,
                device=classes.device,
            )
            for part, weight_of in blocks:
                sums.index_add_(0, classes[part], weight_of(link))
            advance()
            return sums / torch.bincount(classes)[:, None, None]

        seed = torch.eye(self._sizes[end], dtype=torch.float64).to(classes.device)
        sums = backward_sums(self.layers, self.links, end, seed, averaged, normalize)
        self._check_scale([sums[layer.name] for layer in self._inputs], normalize)
        return {layer.name: sums[layer.name] for layer in self._inputs}

    def attribution_matrix(
        self,
        end: str,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> Tensor:
        """Path sums (Eq. 4) of the population graph, [features, nodes of ``end``].

        Args:
            end (str): the layer where paths end.
            normalize (str or None): as in
                :func:`captum_nif.graph.path_sums.backward_sums`.
            advance (Callable): called once per link.
        """
        graph = self.population_graph(end, None, advance)
        graph = graph if normalize is None else graph.normalized(normalize)
        matrix = graph.path_sums(layer=end)
        self._check_scale([matrix], normalize)
        return matrix

    def _check_scale(
        self, sums: Sequence[Tensor], normalize: Normalization | None
    ) -> None:
        if normalize is None:
            check_scale(sums, links=len(self.layers) - 1)

    @property
    def _inputs(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.kind == "input"]

    def _up_to(self, end: str) -> tuple[list[Layer], list[Ends]]:
        """The inputs and all that leads to a layer, which then is the output."""
        needed = {end}
        for link in reversed(self.links):  # by their targets, in topological order
            if link.target in needed:
                needed.add(link.source)
        layers = [
            replace(layer, kind="output") if layer.name == end else layer
            for layer in self.layers
            if layer.kind == "input" or layer.name in needed
        ]
        return layers, [link for link in self.links if link.target in needed]

    def steps(self, query: Mapping[str, Tensor] | None) -> int:
        """How often `advance` is called for these queries, at most."""
        if query is None:
            return len(self.links)
        samples = len(next(iter(query.values())))
        return len(self.links) * math.ceil(samples / self._step)

    @property
    def _step(self) -> int:
        return max(1, _BUDGET // self._largest)

    def _blocks(
        self, query: Mapping[str, Tensor] | None
    ) -> Iterator[tuple[slice, WeightOf]]:
        """Blocks of samples, each with the function that gives its links' weights."""
        self._check_redundancy()
        if query is None:
            if self.samples * self._largest > _UNFITTED_BUDGET:
                raise ValueError(
                    f"Explaining {self.samples} samples against each other would hold "
                    f"{self.samples * self._largest:,} link weights at a time: call "
                    "`fit(background)` first, so that samples are explained one by "
                    "one, or group features with `feature_mask`."
                )
            yield slice(None), self._weights(None)
            return
        query = self._grouped(query)
        samples = len(next(iter(query.values())))
        for start in range(0, samples, self._step):
            part = slice(start, min(start + self._step, samples))
            yield part, self._weights({name: x[part] for name, x in query.items()})

    def _weights(self, query: Mapping[str, Tensor] | None) -> WeightOf:
        redundancy: dict[str, Tensor | float] = {}

        def weight_of(link: Ends) -> Tensor:
            source, target = link
            if source not in redundancy:
                redundancy[source] = self.rule.redundancy(
                    self.passed_on[source],
                    None if query is None else query[source],
                    pointwise=True,
                )
            weight = self.rule.instances(
                self._ready_source(source),
                self._ready_target(target),
                None if query is None else (query[source], query[target]),
                redundancy[source],
            )
            return self._within_field(link, weight)

        return weight_of

    def _within_field(self, link: Ends, weight: Tensor) -> Tensor:
        """Weights, [..., a, b], with 0 where the target does not see the source."""
        if link not in self.fields:
            return weight
        field = self.fields[link].to(weight.device)
        seen = field.repeat(
            *(n // m for n, m in zip(weight.shape[-2:], field.shape, strict=True))
        )
        return torch.where(seen, weight, 0.0)

    def _check_redundancy(self) -> None:
        # not before a graph is asked for: groups of features may come until then
        for source, _ in self.links:
            self.rule.check_size(source, self._sizes[source])

    def _ready_source(self, name: str) -> Prepared:
        return self._ready(name, self.passed_on, self.passed_on is not self.values)

    def _ready_target(self, name: str) -> Prepared:
        return self._ready(name, self.values, False)

    def _ready(
        self, name: str, values: Mapping[str, Tensor], overridden: bool
    ) -> Prepared:
        if (name, overridden) not in self._prepared:
            self._prepared[name, overridden] = self.rule.estimator.prepare(values[name])
        return self._prepared[name, overridden]

    def _grouped(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # an input that no layer reads as numbers (token ids) is no variable
        used = {name for link in self.links for name in link}
        found = {}
        for name, x in values.items():
            if name not in used:
                continue
            x = x if x.is_floating_point() else x.double()
            found[name] = self.groups[name].means(x) if name in self.groups else x
        return found

    def _spread(self, name: str, sums: Tensor) -> Tensor:
        return self.groups[name].spread(sums) if name in self.groups else sums


def into_nodes(weight: Tensor, nodes: Tensor) -> Tensor:
    """Weights, [..., a, b], with 0 for all target nodes but one per sample, [...].

    Sparse weights, [a, b], are those of one sample.
    """
    if weight.is_sparse:
        kept = weight.indices()[1] == nodes.to(weight.device)
        indices, values = weight.indices()[:, kept], weight.values()[kept]
        return sorted_sparse(indices, values, weight.shape)
    kept = one_hot(nodes.to(weight.device), weight.shape[-1]).bool().unsqueeze(-2)
    return torch.where(kept, weight, 0.0)
