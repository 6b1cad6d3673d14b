r"""Flow over each sample's own population: from samples to what explains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from captum_nif.flow.backdrop import Backdrop, summarize_background
from captum_nif.flow.basis import Basis, FeatureMask, Question, layer_named
from captum_nif.flow.batches import Background, Batches, batches_of, cut
from captum_nif.flow.checks import check_inputs, check_own_population, warn_if_training
from captum_nif.flow.feature_groups import FeatureGroups, feature_groups
from captum_nif.flow.hybrid_flow import HybridFlow, HybridQuery
from captum_nif.flow.information import Advance, ignore_progress
from captum_nif.flow.options import Options
from captum_nif.graph.elements import Layer
from captum_nif.graph.path_sums import Normalization

HybridBasis = Basis[Backdrop, HybridFlow]


@dataclass(frozen=True)
class HybridSetup:
    """A model, and how its slopes are averaged; see :class:`basis.Method`.

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
    ) -> HybridBasis:
        """A background as basis; ``size`` samples at a time run through the model."""
        warn_if_training(self.model)
        batches = batches_of(self.model, background, extra, size, bar)
        return self._basis(batches, "the background", feature_mask)

    def of_batch(
        self,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
    ) -> HybridBasis:
        """The batch that is explained as basis."""
        warn_if_training(self.model)
        check_inputs(self.model, samples, "the batch")
        check_own_population(samples)
        return self._basis(cut(samples, extra, size), "the batch", feature_mask)

    def _basis(
        self, batches: Batches, what: str, feature_mask: FeatureMask | None
    ) -> HybridBasis:
        backdrop = summarize_background(
            self.model, batches, self.options.layers, what, self.options.seed
        )
        return self._with_groups(backdrop, feature_mask)

    def regrouped(self, basis: HybridBasis, feature_mask: FeatureMask) -> HybridBasis:
        """The same population, with features grouped."""
        return self._with_groups(basis.population, feature_mask)

    def _with_groups(
        self, backdrop: Backdrop, feature_mask: FeatureMask | None
    ) -> HybridBasis:
        groups: dict[str, FeatureGroups] = {}
        if feature_mask is not None:
            groups = feature_groups(feature_mask, backdrop.inputs)
        return Basis(backdrop, HybridFlow(self.model, self.options, backdrop, groups))

    def query(
        self,
        basis: HybridBasis,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        size: int,
    ) -> HybridQuery:
        """The samples explained."""
        check_inputs(self.model, samples, "the samples")
        return HybridQuery(samples, extra, size)

    def own_query(self, basis: HybridBasis) -> HybridQuery:
        """The rows of the background that are kept."""
        return basis.flow.own_query

    def end(self, basis: HybridBasis, layer: object) -> Layer:
        """The layer whose nodes are explained: by name, by module, or the output."""
        return layer_named(basis.population.structure, self.model, layer)

    def standard_errors(
        self,
        basis: HybridBasis,
        question: Question,
        groups: int,
        seed: int,
        advance: Advance = ignore_progress,
    ) -> list[Tensor]:
        """Of the attributions that a question asks for, over hybrids and background."""
        return basis.flow.standard_errors(question, advance)

    def matrix_standard_error(
        self,
        basis: HybridBasis,
        end: str,
        normalize: Normalization | None,
        groups: int,
        seed: int,
        advance: Advance = ignore_progress,
    ) -> Tensor:
        """Of the population's attributions."""
        return basis.flow.matrix_standard_error(end, advance)
