r"""Path analysis: flow on the scale of correlation, for populations and samples.

The links of the population graph are signed Linfoot correlations
(:mod:`captum_nif.flow.linfoot`). A sample enters by how far its values deviate from the
population's, in standard deviations: :math:`\xi_a` for node a as a layer passes it on,
:math:`\eta_b` for node b as its layer computes it. The links into b predict

.. math:: \hat\eta_b = \sum_{a \to b} r_{ab} \, \xi_a

and what b passes on is weighed by how much of that came about, its *gain*

.. math:: g_b = \frac{\eta_b \hat\eta_b + 1}{\hat\eta_b^2 + 1} .

This is the slope of :math:`\eta_b` on :math:`\hat\eta_b` through this one sample, with
the population's slope of 1 counted as one more observation at unit deviation: a unit
that stays silent where it should have fired passes on less, down to nothing, one that
fires as predicted passes on all. The attribution of input element i to node j is

.. math:: A_{ij} = \xi_i \sum_{\text{paths } i \to j} \; \prod_{\text{links}} r
    \prod_{\text{nodes between}} g ,

in standard deviations of j: in a linear network of uncorrelated units, where all gains
are 1, the sum over i is exactly the deviation of j (Wright, 1934). Where units are
correlated, a layer's deviations are others when its inputs are independent, and the sum
keeps its sign and order rather than its scale. To first order
:math:`r \xi \eta` is the pointwise mutual information of a Gaussian pair, and dividing
by :math:`\eta` of the target, as each link here does, makes the factors of a path
telescope. In ReLU networks the gains play the part of the local slopes of gradient
methods (most of all of DeepLIFT's rescale rule), the links that of average slopes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from captum_nif.flow.information import (
    Advance,
    Ends,
    Flow,
    WeightOf,
    ignore_progress,
    into_nodes,
)
from captum_nif.flow.linfoot import signed_linfoot
from captum_nif.graph.elements import Link, sorted_sparse
from captum_nif.graph.field_matrix import FieldMatrix
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import Normalization, Weight, backward_sums


@dataclass(frozen=True)
class _Moments:
    """Mean and standard deviation of each node, float64, [size]."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(values: Tensor) -> _Moments:
        deviation, mean = torch.std_mean(values.double(), dim=0, correction=0)
        return _Moments(mean, deviation)

    def standardize(self, values: Tensor) -> Tensor:
        """Values in standard deviations from the mean; 0 for a constant."""
        # What varies no more than by rounding is a constant.
        rounding = 100 * torch.finfo(values.dtype).eps
        varies = self.deviation > rounding * self.mean.abs()
        scale = torch.where(varies, self.deviation, torch.inf)
        return (values.double() - self.mean) / scale


class CorrelationFlow(Flow):
    """A flow whose links are signed Linfoot correlations; see this module."""

    unit = "correlation"

    @cached_property
    def _correlations(self) -> dict[Ends, Weight]:
        return {}

    @cached_property
    def _known_moments(self) -> dict[tuple[str, bool], _Moments]:
        return {}

    def prepare(self, advance: Advance = ignore_progress) -> None:
        """Estimates all links, and what every explanation needs besides."""
        for link in self.links:
            self._correlation(link)
            self._moments(link.source, passed_on=True)
            self._moments(link.target, passed_on=False)
            advance()

    def _population_weights(self) -> WeightOf:
        return self._weight

    def instance_graphs(
        self,
        query: Mapping[str, Tensor] | None,
        end: str,
        nodes: Tensor | None,
        advance: Advance = ignore_progress,
    ) -> list[FlowGraph]:
        """One graph per sample, whose path sums are its attributions.

        A link's weight is the correlation, times the gain of its target, times the
        deviation of its source if that is an input.
        """
        layers, ends = self._up_to(end)
        inputs = {layer.name for layer in layers if layer.kind == "input"}
        deviations, gains = self._sample(query)
        links: list[list[Link]] = []
        for link in ends:
            weight = self._weight(link)
            own = []
            for i in range(len(deviations[link.source])):
                source = deviations[link.source][i] if link.source in inputs else None
                target = gains[link.target][i] if link.target != end else None
                scaled = _scaled(weight, source, target)
                if nodes is not None and link.target == end:
                    scaled = into_nodes(scaled, nodes[i])
                own.append(Link(*link, scaled))
            links.append(own)
            advance()
        return [
            FlowGraph(layers, own, "standard deviations")
            for own in zip(*links, strict=True)
        ]

    def attributions(
        self,
        query: Mapping[str, Tensor] | None,
        end: str,
        nodes: Tensor,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        """Path sums of each sample, times the deviation of each input element."""
        deviations, gains = self._sample(query)
        seed = one_hot(nodes, self._sizes[end]).double()
        sums = self._sums(deviations, gains, end, seed, normalize, advance)
        return {name: self._spread(name, found) for name, found in sums.items()}

    def class_attributions(
        self,
        query: Mapping[str, Tensor] | None,
        classes: Tensor,
        end: str,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        """Path sums to each node over gains and deviations averaged for its samples."""
        by_class = one_hot(classes).double()
        by_class = by_class / by_class.sum(0)
        deviations, gains = (
            {name: by_class.mT.to(x.device) @ x for name, x in values.items()}
            for values in self._sample(query)
        )
        seed = torch.eye(self._sizes[end], dtype=torch.float64)
        return self._sums(deviations, gains, end, seed, normalize, advance)

    def _sums(
        self,
        deviations: Mapping[str, Tensor],
        gains: Mapping[str, Tensor],
        end: str,
        seed: Tensor,
        normalize: Normalization | None,
        advance: Advance,
    ) -> dict[str, Tensor]:
        """Sums over paths from each input's nodes, which enter by their deviation."""

        def weight_and_advance(link: Ends) -> Weight:
            advance()
            return self._correlation(link)

        between = {name: gain for name, gain in gains.items() if name != end}
        seed = seed.to(next(iter(deviations.values())).device)
        sums = backward_sums(
            self.layers, self.links, end, seed, weight_and_advance, normalize, between
        )
        return {
            layer.name: sums[layer.name] * deviations.get(layer.name, 0.0)
            for layer in self._inputs
        }

    def steps(self, query: Mapping[str, Tensor] | None) -> int:
        """How often `advance` is called for these queries, at most."""
        return len(self.links)

    def _sample(
        self, query: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Deviations of what layers pass on, and gains, [S, size] by layer."""
        values = self.values if query is None else self._grouped(query)
        deviations = {
            name: self._moments(name, passed_on=True).standardize(values[name])
            for name in dict.fromkeys(link.source for link in self.links)
        }
        predicted: dict[str, Tensor] = {}
        for link in self.links:
            part = (self._correlation(link).mT @ deviations[link.source].mT).mT
            earlier = predicted.get(link.target)
            predicted[link.target] = part if earlier is None else earlier + part
        gains = {}
        for name, expected in predicted.items():
            found = self._moments(name, passed_on=False).standardize(values[name])
            gains[name] = (found * expected + 1) / (expected.square() + 1)
        return deviations, gains

    def _weight(self, link: Ends) -> Tensor:
        """A copy of a link's correlations, for a graph."""
        found = self._correlation(link)
        return found.to_tensor() if isinstance(found, FieldMatrix) else found.clone()

    def _correlation(self, link: Ends) -> Weight:
        if link not in self._correlations:
            self._correlations[link] = signed_linfoot(
                self.rule.estimator,
                self.passed_on[link.source],
                self.values[link.target],
                self.fields.get(link),
            )
        return self._correlations[link]

    def _moments(self, name: str, passed_on: bool) -> _Moments:
        if (name, passed_on) not in self._known_moments:
            values = (self.passed_on if passed_on else self.values)[name]
            self._known_moments[name, passed_on] = _Moments.of(values)
        return self._known_moments[name, passed_on]


def _scaled(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """A copy of a weight, [a, b], times factors of its source and target nodes."""
    if weight.is_sparse:
        a, b = weight.indices()
        values = weight.values().clone()
        values = values if rows is None else values * rows[a]
        values = values if columns is None else values * columns[b]
        return sorted_sparse(weight.indices().clone(), values, weight.shape)
    weight = weight.clone() if rows is None else weight * rows.unsqueeze(1)
    return weight if columns is None else weight * columns
