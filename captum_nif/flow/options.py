r"""The choices that make up a method, and named combinations of them."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, Literal, TypeVar, get_args, overload

from captum_nif._messages import check_positive
from captum_nif.estimators import GaussianCopula, MixedKSG, PMIEstimator
from captum_nif.flow.link_weights import LinkRule, Relevance
from captum_nif.flow.population import Modules
from captum_nif.graph.path_sums import Normalization
from captum_nif.tracing.record import Nodes
from captum_nif.tracing.selection import copied

Normalize = Literal["auto"] | Normalization | None
Sampling = Literal["observed", "independent", "hybrid"]
Scale = Literal["nats", "correlation"]


class NotGiven(Enum):
    """The one value that stands for an option which the caller left out.

    None would not do: it is a value of ``normalize``, and a default must be able to
    override a preset.
    """

    TOKEN = "not given"

    def __repr__(self) -> str:
        return "<preset or default>"


NOT_GIVEN: Final = NotGiven.TOKEN


@dataclass(frozen=True)
class Options:
    """Every choice of the method, made once and never changed.

    The defaults are Eq. 4 on links of unbiased pointwise mutual information. See
    :class:`captum_nif.NIFAttribution` for the meaning of each.

    Args:
        layers (str, list or dict, optional): the modules that are layers; see
            :func:`captum_nif.tracing.find_layers`.
        estimator (PMIEstimator): of pointwise mutual information.
        relevance (str): ``"pairwise"`` or ``"joint"``.
        beta (float): weight of the redundancy.
        normalize (str or None): of the links, when paths are summed.
        scale (str): of the links, ``"nats"`` or ``"correlation"``.
        nodes (str): of hidden layers, ``"channel"`` or ``"neuron"``.
        sampling (str): what links are estimated from: ``"observed"`` values,
            ``"independent"`` inputs of each layer, or each sample's own ``"hybrid"``
            population.
        draws (int): independent inputs, at most.
        hybrids (int): of each sample.
        seed (int): of the draws.

    Raises:
        TypeError: if an option is of the wrong type.
        ValueError: if one is unknown or out of range, or two exclude each other.
    """

    layers: Modules = None
    estimator: PMIEstimator = field(default_factory=MixedKSG)
    relevance: Relevance = "pairwise"
    beta: float = 0.0
    normalize: Normalize = "auto"
    scale: Scale = "nats"
    nodes: Nodes = "channel"
    sampling: Sampling = "observed"
    draws: int = 4096
    hybrids: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", copied(self.layers))
        LinkRule(
            self.estimator, self.relevance, self.beta
        )  # refuses what it cannot use
        for name, known in (
            ("normalize", (None, "auto", *get_args(Normalization))),
            ("scale", get_args(Scale)),
            ("nodes", get_args(Nodes)),
            ("sampling", get_args(Sampling)),
        ):
            if getattr(self, name) not in known:
                choices = ", ".join(map(repr, known))
                raise ValueError(
                    f"`{name}` must be one of {choices}; got {getattr(self, name)!r}."
                )
        check_positive("draws", self.draws)
        check_positive("hybrids", self.hybrids)
        if not isinstance(self.seed, numbers.Integral) or isinstance(self.seed, bool):
            raise TypeError(f"`seed` must be an int, got {self.seed!r}.")
        if self.sampling == "hybrid":
            self._check_hybrid()
        elif self.scale == "correlation":
            self._check_correlation()

    def _check_hybrid(self) -> None:
        for name in ("estimator", "relevance", "beta", "normalize", "scale", "nodes"):
            value = getattr(self, name)
            if value != getattr(DEFAULTS, name) and (name, value) != _UNSCALED:
                raise ValueError(
                    f"`{name}` = {value!r} is an option of flow that is "
                    "estimated from information; with sampling='hybrid' (and "
                    "preset='faithful') slopes are averaged instead: leave it out, or "
                    "use another preset."
                )
        object.__setattr__(self, "normalize", None)

    def _check_correlation(self) -> None:
        for name in ("relevance", "beta"):
            value = getattr(self, name)
            if value != getattr(DEFAULTS, name):
                raise ValueError(
                    f"`{name}` = {value!r} is a part of Eq. 3, which is in nats: use "
                    "scale='nats', or leave it at its default."
                )
        if self.normalize not in ("auto", None):
            raise ValueError(
                f"`normalize` = {self.normalize!r} would take the scale of correlation "
                "away again: use scale='nats', or leave it at its default."
            )
        # Correlations are multiplied along paths as they are.
        object.__setattr__(self, "normalize", None)

    @property
    def rule(self) -> LinkRule:
        """How the weight of a link is computed, Eq. 3."""
        return LinkRule(self.estimator, self.relevance, self.beta)


_UNSCALED = ("normalize", None)  # what adds up along paths as it is
DEFAULTS: Final = Options()

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "paper": {
        "estimator": MixedKSG(formula="paper"),
        "beta": 5e-4,
        "normalize": None,
    },
    "faithful": {"sampling": "hybrid"},
    "gradient_free": {
        "estimator": GaussianCopula(marginals="standard"),
        "scale": "correlation",
        "nodes": "neuron",
        "sampling": "independent",
    },
}
"""What differs from the defaults. ``"paper"``: Eq. 3, 4 and 6 of Davis et al. (2020).
``"faithful"``: flow over a sample's own population, which foretells what the model does
(:mod:`captum_nif.flow.sample_population`). ``"gradient_free"``: its counterpart for
networks without gradients (:mod:`captum_nif.flow.path_analysis`)."""


def chosen(preset: str | None, given: Mapping[str, object]) -> Options:
    """What was given, or else what the preset says, or the default.

    Args:
        preset (str or None): the name of a preset.
        given (Mapping): options by name; :data:`NOT_GIVEN` stands for nothing given,
            and so does None where it is no value of the option.

    Raises:
        TypeError, ValueError: see :class:`Options`; if the preset is unknown.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {list(PRESETS)}, got {preset!r}.")
    named = {} if preset is None else PRESETS[preset]
    explicit = {
        name: value
        for name, value in given.items()
        if value is not NOT_GIVEN and (value is not None or name == "normalize")
    }
    return Options(**{**named, **explicit})


T = TypeVar("T")


class Option(Generic[T]):
    """An attribute that reads one of its owner's ``options``, and is never assigned."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Option[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Option[T] | T:
        if instance is None:
            return self
        value: T = getattr(instance.options, self._name)
        return value

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(
            f"`{self._name}` is fixed when the method is made, and `fit` has used it: "
            f"make another one with `with_options({self._name}=...)`, and fit that."
        )
