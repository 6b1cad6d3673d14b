r"""What makes a sample's values depend on other samples, or on chance.

Modules in evaluation mode may do either: a normalization without running statistics, a
dropout that is called without ``training=self.training``, noise that is drawn. Both are
seen by the functions that run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

_NORMS = frozenset(["batch_norm", "native_batch_norm"])
# position and default of the argument `training`, by name of the function
_TRAINING = {
    **dict.fromkeys(_NORMS, (5, False)),
    **dict.fromkeys(["dropout", "dropout1d", "dropout2d", "dropout3d"], (2, True)),
    **dict.fromkeys(["feature_dropout", "native_dropout"], (2, True)),
    **dict.fromkeys(["alpha_dropout", "feature_alpha_dropout"], (2, False)),
    "rrelu": (3, False),
}
_DRAWING = frozenset(
    """rand randn randint randperm rand_like randn_like randint_like bernoulli normal
    multinomial poisson uniform exponential random cauchy log_normal geometric
    gumbel_softmax""".split()
)
WATCHED = frozenset([*_TRAINING, *_DRAWING, "scaled_dot_product_attention"])
"""Names of functions that may do so."""


def takes_batch_statistics(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Whether a call normalizes by the mean and variance of its batch."""
    return name in _NORMS and bool(_training(name, args, kwargs))


def draws(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call draws random numbers from a generator that others use."""
    if name in _DRAWING:
        return kwargs.get("generator") is None
    if name == "scaled_dot_product_attention":
        return bool(_argument(args, kwargs, 4, "dropout_p", 0.0))
    if name in _NORMS or not _training(name, args, kwargs):
        return False
    return name == "rrelu" or bool(_argument(args, kwargs, 1, "p", 0.5))


def _training(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    position, default = _TRAINING[name]
    named = kwargs.get("training", kwargs.get("train", default))
    return bool(args[position] if len(args) > position else named)


def _argument(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    position: int,
    name: str,
    default: Any,
) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def running_module(model: nn.Module) -> tuple[nn.Module, str]:
    """The innermost module of a model whose code runs, and its description.

    It is found by the frames of Python's stack, so it is meant for messages.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    frame = sys._getframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, nn.Module) and id(candidate) in paths:
            path = paths[id(candidate)] or "model"
            return candidate, f"{path!r} ({type(candidate).__name__})"
        frame = frame.f_back  # type: ignore[assignment]
    return model, f"'model' ({type(model).__name__})"


def batch_statistics_error(name: str, where: str) -> NotImplementedError:
    """What to say of a normalization by the batch in evaluation mode."""
    return NotImplementedError(
        f"`{name}` in {where} takes mean and variance of the batch, in evaluation mode "
        "too, so what it makes of a sample depends on the samples beside it: give it "
        "running statistics (`track_running_stats=True`, or `training=self.training`)."
    )
