"""What is refused, or warned about, at the door: samples that cannot be explained.

Every message says what came, what was expected, and what to do.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from captum_nif.tracing import Structure

MIN_BATCH = 32
"""Fewest samples from which a batch can be explained without a background."""

_COMPARED = 256
"""Samples among which near-copies are looked for."""

_STOCHASTIC = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
)


def check_inputs(model: nn.Module, inputs: tuple[Tensor, ...], what: str) -> None:
    """Refuses inputs that the model cannot take or that hold no numbers."""
    sizes = {x.shape[0] if x.dim() else None for x in inputs}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"Inputs of {what} have shapes {[tuple(x.shape) for x in inputs]}: every "
            "input needs the same, positive number of samples along axis 0."
        )
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    dtypes = {p.dtype for p in parameters}
    devices = {p.device for p in model.parameters()}
    for i, x in enumerate(inputs):
        if x.is_complex():
            raise TypeError(f"Input {i} of {what} is complex; NIF needs real values.")
        if x.is_floating_point() and len(dtypes) == 1 and x.dtype not in dtypes:
            raise ValueError(
                f"Input {i} of {what} is {x.dtype} and the model is {dtypes.pop()}: "
                "convert one of them with `.to(dtype)`."
            )
        if len(devices) == 1 and x.device not in devices:
            raise ValueError(
                f"Input {i} of {what} is on {x.device} and the model on "
                f"{devices.pop()}: move one of them with `.to(device)`."
            )
        if not bool(torch.isfinite(x).all()):
            bad = (~torch.isfinite(x)).nonzero()[0].tolist()
            raise ValueError(
                f"Input {i} of {what} holds NaN or infinity (first at {tuple(bad)}): "
                "drop or fill such samples."
            )


def check_same(expected: Structure, found: Structure, what: str) -> None:
    """Refuses a batch that ran through other layers than the others."""
    if expected == found:
        return
    for layer, other in zip(expected.layers, found.layers, strict=False):
        if layer.kind == "input" == other.kind and layer.shape != other.shape:
            raise ValueError(
                f"Samples of {what} have shape {other.shape} for {other.name!r}, "
                f"expected {layer.shape} as in the background."
            )
    names = {layer.name for layer in expected.layers}
    others = {layer.name for layer in found.layers}
    differing = sorted(names ^ others) or sorted(
        f"{a}->{b}" for a, b in set(expected.links) ^ set(found.links)
    )
    raise ValueError(
        f"The model ran through other layers or shapes for {what} than before "
        f"(differing: {', '.join(differing) or 'the shapes of layers'}). A graph holds "
        "one control flow: give samples that take the same path."
    )


def check_sizes(inputs: tuple[Tensor, ...]) -> None:
    """Refuses an empty tuple of inputs and inputs without a batch axis."""
    if not inputs or any(x.dim() == 0 for x in inputs):
        raise ValueError("Inputs must be tensors with the samples along axis 0.")
    if len({x.shape[0] for x in inputs}) > 1:
        raise ValueError(
            f"Inputs have {[x.shape[0] for x in inputs]} samples: every input needs "
            "the same number."
        )


def check_positive(name: str, value: object) -> None:
    """Refuses batch sizes that are no positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive int, got {value!r}.")


def check_reached(structure: Structure, samples: tuple[Tensor, ...]) -> None:
    """Token ids are categories: they have no flow of their own, and are told apart."""
    sources = {source for source, _ in structure.links}
    inputs = [layer.name for layer in structure.layers if layer.kind == "input"]
    lost = [
        name
        for name, x in zip(inputs, samples, strict=True)
        if name not in sources and not x.is_floating_point()
    ]
    if len(lost) == len(inputs):
        raise ValueError(
            f"{', '.join(lost)}: token ids, which only an embedding reads, are "
            "categories and not nodes, so nothing can be attributed to them. Explain "
            "from the embedded tokens on: pass a module that takes those, or look at "
            "`flow()`."
        )
    if lost:
        warnings.warn(
            f"{', '.join(lost)} holds token ids, which are no nodes of the graph: "
            "their attributions are 0.",
            stacklevel=4,
        )


def check_own_population(samples: tuple[Tensor, ...]) -> None:
    """Refuses a batch too small to be its own population; warns of near-copies."""
    count = len(samples[0])
    if count < MIN_BATCH:
        raise ValueError(
            f"Nothing is fitted, so the batch is its own population, and {count} "
            f"sample{'s' if count > 1 else ''} are too few to estimate probabilities "
            f"from (at least {MIN_BATCH}): call `fit(background)` first, with some "
            "hundred samples of your data, or pass `background=`."
        )
    flat = torch.cat([x.detach().flatten(1).float() for x in samples], dim=1)
    flat = flat[:_COMPARED]
    distances = torch.cdist(flat, flat)
    typical = distances.median()
    nearest = distances.fill_diagonal_(float("inf")).min(1).values
    copies = float((nearest < 0.05 * typical).float().mean())
    if copies > 0.5:
        warnings.warn(
            f"{copies:.0%} of the samples have a near-copy in the batch, and nothing "
            "is fitted, so they are compared with their copies: attributions will be "
            "far too large. Call `fit(background)` before using NoiseTunnel, "
            "`sensitivity_max` and the like.",
            stacklevel=5,
        )


def warn_if_training(model: nn.Module) -> None:
    """Warns where training mode makes values depend on the batch or on chance."""
    modules = [m for m in model.modules() if m.training and isinstance(m, _STOCHASTIC)]
    if modules:
        warnings.warn(
            f"The model is in training mode, and its {type(modules[0]).__name__} makes "
            "values depend on the batch or on chance: call `model.eval()` first.",
            stacklevel=5,
        )
