"""Input of every estimator: samples and queries are made ready, or refused.

Every message says what came, what was expected, and what to do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_nif.estimators.marginals import Marginals, Variables, prepare_variables
from captum_nif.estimators.protocol import Prepared

Pair = tuple[Variables, Variables]
"""The same samples of the variables x and of the variables y."""

_LARGEST = 1e300
"""Values whose differences, and ranges, are sure to stay finite in float64."""


def prepared(name: str, x: Tensor, marginals: Marginals) -> Variables:
    """Put samples on a scale, if they are a matrix of finite floats.

    Args:
        name (str): what to call them in messages.
        x (Tensor): N samples of n variables, [N, n].
        marginals (str): the scale.
    """
    _check_values(name, x, marginals)
    return prepare_variables(x.detach(), marginals)


def prepared_pair(
    x: Tensor | Prepared, y: Tensor | Prepared, marginals: Marginals, owner: str
) -> Pair:
    """Put x and y on a scale, where they are not yet, if they belong together.

    Args:
        x (Tensor or Prepared): N samples of a variables.
        y (Tensor or Prepared): the same N samples of b variables.
        marginals (str): the scale.
        owner (str): the class of the estimator.
    """
    first = _on_scale("x", x, marginals, owner)
    second = _on_scale("y", y, marginals, owner)
    if first.samples != second.samples:
        raise ValueError(
            f"x has {first.samples} samples and y has {second.samples}; they must "
            "be the same samples of different variables."
        )
    if first.device != second.device:
        raise ValueError(
            f"x is on {first.device} and y on {second.device}; move one of them."
        )
    return first, second


def checked_query(query: tuple[Tensor, Tensor], pair: Pair) -> tuple[Tensor, Tensor]:
    """The queries' values of x, [S, a], and of y, [S, b], if they match the samples.

    They are converted to the dtype of the samples, so that equal values tie.
    """
    if not isinstance(query, tuple) or len(query) != 2:
        raise TypeError(
            "query must be a tuple of two tensors, the queries' values of x [S, a] "
            f"and of y [S, b], not {_kind(query)}."
        )
    x, y = (
        _matching(f"query's {name}", values, samples)
        for name, values, samples in zip("xy", query, pair, strict=True)
    )
    if len(x) != len(y):
        raise ValueError(
            f"query holds {len(x)} rows for x and {len(y)} for y; give as many of both."
        )
    return x, y


def check_vector(size: int) -> None:
    """Refuse a vector of no components."""
    if size == 0:
        raise ValueError(
            "x has no variables, but a vector needs at least one; give some."
        )


def _on_scale(
    name: str, x: Tensor | Prepared, marginals: Marginals, owner: str
) -> Variables:
    if isinstance(x, Tensor):
        return prepared(name, x, marginals)
    if not isinstance(x, Variables):
        raise TypeError(
            f"{name} must be a tensor or come from {owner}.prepare, not {_kind(x)}."
        )
    if x.marginals != marginals:
        raise ValueError(
            f"{name} was prepared for {x.marginals!r} marginals, but this "
            f"estimator uses {marginals!r} ones; prepare it with this estimator."
        )
    return x


def _matching(name: str, query: Tensor, samples: Variables) -> Tensor:
    """Queries in the dtype of the samples, if they are of the same variables."""
    if isinstance(query, Tensor) and query.is_floating_point():
        query = query.detach().to(samples.dtype)
    _check_values(name, query, samples.marginals)
    if query.shape[1] != samples.size:
        raise ValueError(
            f"{name} has {query.shape[1]} variables and the samples have "
            f"{samples.size}; they must be the same variables."
        )
    if query.device != samples.device:
        raise ValueError(
            f"{name} is on {query.device} and the samples on {samples.device}; move "
            "one of them."
        )
    return query


def _check_values(name: str, x: Tensor, marginals: Marginals) -> None:
    """Refuse what is not a matrix of finite floats."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a tensor [samples, variables], not {_kind(x)}."
        )
    if x.layout is not torch.strided or not x.is_floating_point():
        raise TypeError(
            f"{name} must be a dense tensor of floating point, not {x.dtype} "
            f"({x.layout}); convert it, for example with .float()."
        )
    if x.dim() != 2:
        raise ValueError(
            f"{name} must be [samples, variables], but has shape {list(x.shape)}; use "
            ".unsqueeze(1) for one variable, .flatten(1) for a batch of images."
        )
    # NaN and infinity reach the extremes, which take no memory to find
    if x.numel() and not torch.stack(x.aminmax()).isfinite().all():
        rows = (~x.isfinite().all(dim=1)).nonzero().flatten()
        raise ValueError(
            f"{name} holds NaN or infinity in {len(rows)} of {len(x)} rows, first in "
            f"row {int(rows[0])}; remove or repair them."
        )
    if marginals != "normal" and x.numel() and x.abs().max() > _LARGEST:
        raise ValueError(
            f"{name} holds values beyond {_LARGEST:g}, whose differences overflow; "
            'rescale it or use marginals="normal".'
        )


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
