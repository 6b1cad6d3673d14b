r"""A model and the rule that weighs its links: from samples to what explains them.

A :class:`Basis` is what an explanation stands on: the population that probabilities are
estimated from, and the flow that it gives. It comes from a background, or from the very
batch that is explained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from captum_nif.activations import (
    Background,
    Population,
    batches_of,
    cut,
    run_population,
)
from captum_nif.checks import (
    check_inputs,
    check_own_population,
    check_same,
    warn_if_training,
)
from captum_nif.features import feature_groups
from captum_nif.flow import Flow
from captum_nif.layers import Layer
from captum_nif.links import LinkRule

FeatureMask = Tensor | tuple[Tensor, ...]


class Basis(NamedTuple):
    """The population that probabilities are estimated from, and the flow it gives."""

    population: Population
    flow: Flow
    is_batch: bool = False
    """Whether the population is the batch that is explained."""


@dataclass(frozen=True)
class Setup:
    """A model, with what are its layers and how its links are weighed.

    Args:
        model (Module): the trained network.
        layers (list of str or Module, optional): see
            :func:`captum_nif.tracing.find_layers`.
        rule (LinkRule): how a link's weight is computed.
    """

    model: nn.Module
    layers: list[str | nn.Module] | None
    rule: LinkRule

    def of_background(
        self,
        background: Background,
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
        bar: bool,
    ) -> Basis:
        """A background as basis; ``size`` samples at a time run through the model."""
        warn_if_training(self.model)
        batches = batches_of(self.model, background, extra, size, bar)
        population = run_population(self.model, batches, self.layers)
        self._check_size(population, "The background")
        return Basis(population, self.flow(population, feature_mask))

    def of_batch(
        self,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
    ) -> Basis:
        """The batch that is explained as basis, each sample against the others."""
        warn_if_training(self.model)
        check_inputs(self.model, samples, "the batch")
        check_own_population(samples)
        batches = cut(samples, extra, size)
        population = run_population(self.model, batches, self.layers, "the batch")
        self._check_size(population, "The batch")
        return Basis(population, self.flow(population, feature_mask), is_batch=True)

    def _check_size(self, population: Population, what: str) -> None:
        """Refuses fewer samples than the estimator can work with."""
        estimator = self.rule.estimator
        if population.size < estimator.min_samples:
            raise ValueError(
                f"{what} has {population.size} samples, and {estimator!r} needs at "
                f"least {estimator.min_samples}: give more samples, or choose an "
                "estimator (or its options) for so few."
            )

    def flow(self, population: Population, feature_mask: FeatureMask | None) -> Flow:
        """The flow that a population gives, by features or by groups of them."""
        groups = None
        if feature_mask is not None:
            groups = feature_groups(feature_mask, population.inputs)
        return Flow(population.structure, population.values, self.rule, groups)

    def query(
        self,
        basis: Basis,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        size: int,
    ) -> Mapping[str, Tensor] | None:
        """Node values of the samples explained; None where they are the population."""
        if basis.is_batch:
            return None
        batches = cut(samples, extra, size)
        found = run_population(self.model, batches, self.layers, "the samples")
        check_same(basis.population.structure, found.structure, "the samples")
        return found.values

    def end(self, basis: Basis, layer: object) -> Layer:
        """The layer whose nodes are explained: by name, by module, or the output."""
        structure = basis.population.structure
        if layer is None:
            return structure.output
        if isinstance(layer, nn.Module):
            paths = {m: path or "model" for path, m in self.model.named_modules()}
            if layer not in paths:
                raise ValueError(
                    f"`layer` is a {type(layer).__name__} outside the model: name one "
                    "of the model's modules."
                )
            layer = paths[layer]
        if not isinstance(layer, str):
            raise TypeError(
                "`layer` must be the name of a layer or a module, got "
                f"{type(layer).__name__}."
            )
        found = structure.layer(layer)
        if found.kind == "input":
            raise ValueError(
                f"`layer` is the input {layer!r}: information flows from it, not to "
                "it. Name a hidden layer or the output."
            )
        return found
