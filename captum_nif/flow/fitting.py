r"""Flow estimated from the values of nodes: from samples to what explains them.

The population that probabilities are estimated from is a background, or the very batch
that is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif._captum import progress
from captum_nif.flow.basis import Basis, FeatureMask, Question, layer_named
from captum_nif.flow.batches import Background, Batches, batches_of, cut
from captum_nif.flow.checks import (
    check_inputs,
    check_own_population,
    check_same,
    warn_if_training,
)
from captum_nif.flow.feature_groups import FeatureGroups, feature_groups
from captum_nif.flow.independent_inputs import draw, max_draws
from captum_nif.flow.information import Advance, Flow, ignore_progress
from captum_nif.flow.jackknife import jackknife, leave_groups_out
from captum_nif.flow.options import Options
from captum_nif.flow.path_analysis import CorrelationFlow
from captum_nif.flow.population import (
    Population,
    averaged,
    channel_averages,
    places,
    run_population,
)
from captum_nif.flow.receptive_fields import receptive_fields
from captum_nif.graph.elements import Layer
from captum_nif.graph.path_sums import Normalization
from captum_nif.tracing.record import Nodes

InformationBasis = Basis[Population, Flow]


@dataclass(frozen=True)
class Setup:
    """A model, with what are its nodes and how its links are weighed.

    Args:
        model (Module): the trained network.
        options (Options): the choices that make up the method.
    """

    model: nn.Module
    options: Options

    def of_background(
        self,
        background: Background,
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
        bar: bool,
    ) -> InformationBasis:
        """A background as basis; ``size`` samples at a time run through the model."""
        warn_if_training(self.model)
        batches = batches_of(self.model, background, extra, size, bar)
        population = self._run(batches, "the background", is_watched=True)
        self._check_size(population, "The background")
        return Basis(population, self.flow(population, feature_mask, bar))

    def of_batch(
        self,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
    ) -> InformationBasis:
        """The batch that is explained as basis, each sample against the others."""
        warn_if_training(self.model)
        check_inputs(self.model, samples, "the batch")
        check_own_population(samples)
        batches = cut(samples, extra, size)
        population = self._run(batches, "the batch", is_watched=True)
        self._check_size(population, "The batch")
        flow = self.flow(population, feature_mask)
        return Basis(population, flow, is_batch=self.options.sampling == "observed")

    def _run(self, batches: Batches, what: str, is_watched: bool = False) -> Population:
        # what is drawn are the values of neurons
        nodes: Nodes = (
            "neuron" if self.options.sampling == "independent" else self.options.nodes
        )
        layers = self.options.layers
        return run_population(self.model, batches, layers, what, nodes, is_watched)

    def _check_size(self, population: Population, what: str) -> None:
        """Refuses fewer samples than the estimator can work with."""
        estimator = self.options.estimator
        if population.size < estimator.min_samples:
            raise ValueError(
                f"{what} has {population.size} samples, and {estimator!r} needs at "
                f"least {estimator.min_samples}: give more samples, or choose an "
                "estimator (or its options) for so few."
            )

    def regrouped(
        self, basis: InformationBasis, feature_mask: FeatureMask
    ) -> InformationBasis:
        """The same population, with features grouped."""
        return Basis(basis.population, self.flow(basis.population, feature_mask))

    def flow(
        self,
        population: Population,
        feature_mask: FeatureMask | None,
        bar: bool = False,
    ) -> Flow:
        """The flow that a population gives, by features or by groups of them."""
        groups: dict[str, FeatureGroups] = {}
        if feature_mask is not None:
            groups = feature_groups(feature_mask, population.inputs)
        fields = {}
        if self.options.sampling == "independent":
            max_draws(population, self.options.draws)  # before what may take long
        if self.options.nodes == "neuron":
            fields = receptive_fields(self.model, population, self.options.seed)
            fields = {ends: x for ends, x in fields.items() if ends[0] not in groups}
        return self._flow(population, groups, fields, None, bar)

    def _flow(
        self,
        population: Population,
        groups: Mapping[str, FeatureGroups],
        fields: Mapping[tuple[str, str], Tensor],
        draws: Tensor | None,
        bar: bool = False,
    ) -> Flow:
        """The flow of a population, from these of its draws."""
        rule = self.options.rule
        kind = CorrelationFlow if self.options.scale == "correlation" else Flow
        if self.options.sampling == "observed":
            values = population.values
            return kind(population.structure, values, rule, groups, None, fields)
        together = {name: group.members for name, group in groups.items()}
        if self.options.nodes == "channel":
            for layer in population.structure.layers:
                if layer.kind == "hidden":
                    of_channel = torch.arange(layer.shape[0])
                    members = of_channel.repeat_interleave(places(layer))
                    together[layer.name] = members
        total = max_draws(population, self.options.draws)
        with progress(
            desc="NIF independent inputs", total=total, disable=not bar
        ) as drawn:
            found = draw(
                self.model,
                population,
                self.options.draws,
                self.options.seed,
                together,
                drawn.update,
                draws,
            )
        structure = population.structure
        computed, passed_on = found.computed, found.passed_on
        if self.options.nodes == "channel":
            computed, passed_on = (
                channel_averages(structure, x) for x in (computed, passed_on)
            )
            structure = averaged(structure)
        return kind(structure, computed, rule, groups, passed_on, fields)

    def query(
        self,
        basis: InformationBasis,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        size: int,
    ) -> Mapping[str, Tensor] | None:
        """Node values of the samples explained; None where they are the population."""
        if basis.is_batch:
            return None
        found = self._run(cut(samples, extra, size), "the samples")
        check_same(basis.population.structure, found.structure, "the samples")
        return self._of_nodes(found)

    def own_query(self, basis: InformationBasis) -> Mapping[str, Tensor] | None:
        """Node values of the population; None where its samples explain each other."""
        if self.options.sampling == "observed":
            return None
        return self._of_nodes(basis.population)

    def _of_nodes(self, population: Population) -> Mapping[str, Tensor]:
        if self.options.nodes == "channel":
            return channel_averages(population.structure, population.values)
        return population.values

    def end(self, basis: InformationBasis, layer: object) -> Layer:
        """The layer whose nodes are explained: by name, by module, or the output."""
        structure = basis.population.structure
        if self.options.nodes == "channel":
            structure = averaged(structure)
        return layer_named(structure, self.model, layer)

    def standard_errors(
        self,
        basis: InformationBasis,
        question: Question,
        groups: int,
        seed: int,
        advance: Advance = ignore_progress,
    ) -> list[Tensor]:
        """Of the attributions that a question asks for, by a jackknife."""
        return self._jackknife(basis, question.answer, groups, seed, advance)

    def matrix_standard_error(
        self,
        basis: InformationBasis,
        end: str,
        normalize: Normalization | None,
        groups: int,
        seed: int,
        advance: Advance = ignore_progress,
    ) -> Tensor:
        """Of the population's attributions, by a jackknife."""

        def matrix(flow: Flow) -> list[Tensor]:
            return [flow.attribution_matrix(end, normalize)]

        return self._jackknife(basis, matrix, groups, seed, advance)[0]

    def _jackknife(
        self,
        basis: InformationBasis,
        estimate: Callable[[Flow], list[Tensor]],
        groups: int,
        seed: int,
        advance: Advance,
    ) -> list[Tensor]:
        """Standard errors of an estimate, from flows without each of some groups."""
        replicates = []
        for flow in self._flows_without_groups(basis, groups, seed):
            replicates.append(estimate(flow))
            advance()
        return [jackknife(torch.stack(x)) for x in zip(*replicates, strict=True)]

    def _flows_without_groups(
        self, basis: InformationBasis, groups: int, seed: int
    ) -> Iterator[Flow]:
        """The flows without each of some groups of samples, for a jackknife.

        Independent inputs are drawn anew from the samples that are left, as close to
        the basis's own as can be. What chance adds to these is uncertain too: with each
        group of samples one of draws is left out, so that either counts once.
        """
        population, flow = basis.population, basis.flow
        left: Iterable[Tensor | None] = [None] * groups
        if self.options.sampling == "independent":
            left = leave_groups_out(
                max_draws(population, self.options.draws), groups, seed
            )
        rest = leave_groups_out(population.size, groups, seed)
        for kept, kept_draws in zip(rest, left, strict=True):
            part = population.subset(kept)
            self._check_size(part, f"The background without one of {groups} groups")
            yield self._flow(part, flow.groups, flow.fields, kept_draws)
