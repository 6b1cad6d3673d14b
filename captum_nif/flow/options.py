r"""The choices that make up a method, and named combinations of them."""

from __future__ import annotations

from typing import Any, Literal, get_args

from captum_nif.estimators import GaussianCopula, MixedKSG
from captum_nif.graph.path_sums import Normalization
from captum_nif.tracing.record import Nodes

Inputs = Literal["observed", "independent"]
Normalize = Literal["auto"] | Normalization | None
Scale = Literal["nats", "correlation"]

DEFAULTS: dict[str, Any] = {
    "estimator": MixedKSG(),
    "relevance": "pairwise",
    "beta": 0.0,
    "normalize": "auto",
    "scale": "nats",
    "nodes": "channel",
    "inputs": "observed",
}
"""Eq. 4 on links of unbiased pointwise mutual information."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "estimator": MixedKSG(formula="paper"),
        "beta": 5e-4,
        "normalize": None,
    },
    "faithful": {
        "estimator": GaussianCopula(marginals="standard"),
        "scale": "correlation",
        "nodes": "neuron",
        "inputs": "independent",
    },
}
"""What differs from the defaults. ``"paper"``: Eq. 3, 4 and 6 of Davis et al. (2020).
``"faithful"``: what deletion and insertion favour; see
:mod:`captum_nif.flow.path_analysis`."""

_FREE = ("estimator", "scale", "nodes", "inputs")
"""Options for which None stands for nothing given; for others their default does."""


def chosen(preset: str | None, **given: Any) -> dict[str, Any]:
    """Every option: what was given, or else what the preset says, or the default.

    Raises:
        ValueError: if a preset or the name of an option is unknown, or options exclude
            each other.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {list(PRESETS)}, got {preset!r}.")
    found = DEFAULTS | (PRESETS[preset] if preset is not None else {})
    unset = DEFAULTS | dict.fromkeys(_FREE)
    found |= {name: x for name, x in given.items() if x != unset[name]}
    _check(found)
    if found["scale"] == "correlation":
        found["normalize"] = None  # correlations add up over paths as they are
    return found


def _check(options: dict[str, Any]) -> None:
    for name, known in (
        ("normalize", (None, "auto", *get_args(Normalization))),
        ("scale", get_args(Scale)),
        ("nodes", get_args(Nodes)),
        ("inputs", get_args(Inputs)),
    ):
        if options[name] not in known:
            choices = ", ".join(map(repr, known))
            raise ValueError(
                f"`{name}` must be one of {choices}; got {options[name]!r}."
            )
    if options["scale"] == "correlation":
        for name in ("relevance", "beta"):
            if options[name] != DEFAULTS[name]:
                raise ValueError(
                    f"`{name}` = {options[name]!r} is a part of Eq. 3, which is in "
                    "nats: use scale='nats', or leave it at its default."
                )
        if options["normalize"] not in ("auto", None):
            raise ValueError(
                f"`normalize` = {options['normalize']!r} would take the scale of "
                "correlation away again: use scale='nats', or leave it at its default."
            )
