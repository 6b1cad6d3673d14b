r"""What an explanation stands on: a population, and the flow that it gives.

Two methods give both. :mod:`captum_nif.flow.fitting` estimates information between the
values of nodes, :mod:`captum_nif.flow.hybrid_fitting` averages slopes over each
sample's own population. :class:`Method` is what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from captum_nif.flow.batches import Background
from captum_nif.flow.information import Advance, Ends, ignore_progress
from captum_nif.graph.elements import Layer
from captum_nif.graph.flow_graph import FlowGraph
from captum_nif.graph.path_sums import Normalization
from captum_nif.tracing.dataflow import Structure

FeatureMask = Tensor | tuple[Tensor, ...]


class AnyPopulation(Protocol):
    """Samples that others are compared with."""

    @property
    def structure(self) -> Structure:
        """Layers and links."""

    @property
    def size(self) -> int:
        """Number of samples N."""

    @property
    def inputs(self) -> list[Layer]:
        """The model's inputs."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Of the model's inputs."""


class AnyFlow(Protocol):
    """What flows through a model; see :class:`captum_nif.flow.information.Flow`."""

    @property
    def links(self) -> list[Ends]:
        """The links of the graph."""

    @property
    def is_chain(self) -> bool:
        """Whether every layer reads just one."""

    def prepare(self, advance: Advance = ignore_progress) -> None:
        """Does once what all explanations share."""

    def steps(self, query: Any) -> int:
        """How often ``advance`` is called for these queries, at most."""

    def attributions(
        self,
        query: Any,
        end: str,
        nodes: Tensor,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        """Attributions of each sample, [S, elements], by input."""

    def class_attributions(
        self,
        query: Any,
        classes: Tensor,
        end: str,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> dict[str, Tensor]:
        """Attributions averaged for the samples of each class, by input."""

    def attribution_matrix(
        self,
        end: str,
        normalize: Normalization | None,
        advance: Advance = ignore_progress,
    ) -> Tensor:
        """Attributions of the population, [features, nodes of the end]."""

    def population_graph(
        self, end: str, node: int | None = None, advance: Advance = ignore_progress
    ) -> FlowGraph:
        """The graph of the population."""

    def with_pvalues(
        self,
        graph: FlowGraph,
        n_permutations: int | None = None,
        advance: Advance = ignore_progress,
    ) -> FlowGraph:
        """A population graph with the p-values of its links."""

    def instance_graphs(
        self,
        query: Any,
        end: str,
        nodes: Tensor | None,
        advance: Advance = ignore_progress,
    ) -> list[FlowGraph]:
        """The graph of each sample."""


P = TypeVar("P", bound=AnyPopulation)
F = TypeVar("F", bound=AnyFlow)


@dataclass(frozen=True)
class Basis(Generic[P, F]):
    """The population that samples are compared with, and the flow it gives.

    Args:
        population (Population or Backdrop): the samples.
        flow (Flow or HybridFlow): what flows.
        is_batch (bool): whether each sample of the batch that is explained is compared
            with the rest.
    """

    population: P
    flow: F
    is_batch: bool = False


AnyBasis = Basis[Any, Any]


class Question(NamedTuple):
    """Which samples are explained, and what of each."""

    query: Any
    end: str
    nodes: Tensor
    normalize: Normalization | None

    def answer(self, flow: AnyFlow, advance: Advance = ignore_progress) -> list[Tensor]:
        """The attributions that a flow gives, by input."""
        return list(flow.attributions(*self, advance).values())


class Method(Protocol):
    """From samples to what explains them."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    def of_background(
        self,
        background: Background,
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
        bar: bool,
    ) -> AnyBasis:
        """A background as basis; ``size`` samples at a time run through the model."""

    def of_batch(
        self,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        feature_mask: FeatureMask | None,
        size: int,
    ) -> AnyBasis:
        """The batch that is explained as basis."""

    def regrouped(self, basis: AnyBasis, feature_mask: FeatureMask) -> AnyBasis:
        """The same population, with features grouped."""

    def query(
        self,
        basis: AnyBasis,
        samples: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        size: int,
    ) -> Any:
        """The samples explained, as the flow takes them."""

    def own_query(self, basis: AnyBasis) -> Any:
        """The population, as the flow takes samples."""

    def end(self, basis: AnyBasis, layer: object) -> Layer:
        """The layer whose nodes are explained: by name, by module, or the output."""

    def standard_errors(
        self,
        basis: AnyBasis,
        question: Question,
        groups: int,
        seed: int,
        advance: Advance = ignore_progress,
    ) -> Sequence[Tensor]:
        """Of the attributions that a question asks for, by input."""

    def matrix_standard_error(
        self,
        basis: AnyBasis,
        end: str,
        normalize: Normalization | None,
        groups: int,
        seed: int,
        advance: Advance = ignore_progress,
    ) -> Tensor:
        """Of the population's attributions, [features, nodes of the end]."""


def layer_named(structure: Structure, model: nn.Module, layer: object) -> Layer:
    """The layer whose nodes are explained: by name, by module, or the output.

    Args:
        structure (Structure): the layers.
        model (Module): the network.
        layer (str, Module or None): which.

    Raises:
        TypeError: if ``layer`` is neither.
        ValueError: if there is no such layer, or it is an input.
    """
    if layer is None:
        return structure.output
    if isinstance(layer, nn.Module):
        paths = {m: path or "model" for path, m in model.named_modules()}
        if layer not in paths:
            raise ValueError(
                f"`layer` is a {type(layer).__name__} outside the model: name one of "
                "the model's modules."
            )
        layer = paths[layer]
    if not isinstance(layer, str):
        raise TypeError(
            "`layer` must be the name of a layer or a module, got "
            f"{type(layer).__name__}."
        )
    result = structure.layer(layer)
    if result.kind == "input":
        raise ValueError(
            f"`layer` is the input {layer!r}: information flows from it, not to it. "
            "Name a hidden layer or the output."
        )
    return result
