"""Samples and models that are refused, or warned about, before anything is computed.

Every message says what came, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captum_nif._messages import counted, warn
from captum_nif.flow.near_copies import COMPARED, share_of_near_copies
from captum_nif.tracing.tracer import Structure
from captum_nif.tracing.undisturbed import is_stochastic

MIN_BATCH = 32
"""Fewest samples from which a batch can be explained without a background."""

# --- inputs ---------------------------------------------------------------------------


def check_sizes(inputs: Sequence[Tensor], what: str) -> None:
    """Refuses inputs that are not batches of one, positive number of samples."""
    sizes = {x.shape[0] if x.dim() else None for x in inputs}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"The inputs of {what} have shapes {[tuple(x.shape) for x in inputs]}: "
            "every input needs the same, positive number of samples along axis 0."
        )


def check_inputs(model: nn.Module, inputs: Sequence[Tensor], what: str) -> None:
    """Refuses inputs that the model cannot take or that hold no numbers."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    devices = {p.device for p in model.parameters()}
    for i, x in enumerate(inputs):
        if x.is_meta:
            raise ValueError(
                f"Input {i} of {what} is on the meta device, which holds no values (if "
                "the model is, inputs follow it): load both into memory."
            )
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
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            first = tuple((~finite).nonzero()[0].tolist())
            raise ValueError(
                f"Input {i} of {what} holds NaN or infinity (first at {first}): drop "
                "or fill such samples."
            )


# --- layers that a batch ran through --------------------------------------------------


def check_same(expected: Structure, found: Structure, what: str) -> None:
    """Refuses a batch that ran through other layers than the others."""
    if expected == found:
        return
    names = {layer.name for layer in expected.layers}
    others = {layer.name for layer in found.layers}
    differing = sorted(names ^ others) or sorted(
        f"{a} -> {b}" for a, b in set(expected.links) ^ set(found.links)
    )
    raise ValueError(
        f"The model ran through other layers or shapes for {what} than before "
        f"(differing: {', '.join(differing) or 'the shapes of layers'}). A graph holds "
        "one control flow: give samples that take the same path."
    )


def check_reached(structure: Structure, samples: Sequence[Tensor]) -> None:
    """Token ids are categories and no nodes: refuses them alone, else says so."""
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
        warn(
            f"{', '.join(lost)} holds token ids, which are no nodes of the graph: "
            "their attributions are 0."
        )


_DEEP = 8
"""Links on a path from which sums of products may leave any scale."""

_LARGE = 1e6
"""Sums beyond this number, or below its inverse, have left the scale of nats."""


def check_scale(sums: Sequence[Tensor], links: int) -> None:
    """Refuses or warns of sums over long paths that grew or vanished with their length.

    Args:
        sums (sequence of Tensor): over paths whose links are not normalized.
        links (int): how many links the longest path may have.

    Raises:
        ValueError: if they do not fit single precision.
    """
    tops = [x.abs().max().double() for x in sums if x.numel()]
    largest = float(torch.stack(tops).max())  # NaN, if there is one
    advice = (
        f"they are products of up to {links} links, which grow or vanish with depth. "
        'Pass `normalize="node"` (or take `graph.normalized("node")`), which gives '
        "routes of any length one scale."
    )
    if not largest < torch.finfo(torch.float32).max:
        raise ValueError(f"Sums over paths overflow: {advice}")
    if links >= _DEEP and largest and not 1 / _LARGE < largest < _LARGE:
        warn(f"The largest sum over paths is {largest:.0e}: {advice}")


# --- what values depend on ------------------------------------------------------------


def check_own_population(samples: Sequence[Tensor]) -> None:
    """Refuses a batch too small to be its own population; warns of near-copies."""
    count = len(samples[0])
    if count < MIN_BATCH:
        raise ValueError(
            "Nothing is fitted, so the batch is its own population, and "
            f"{counted(count, 'sample is', 'samples are')} too few to estimate "
            f"probabilities from (at least {MIN_BATCH}): call `fit(background)` first, "
            "with some hundred samples of your data, or pass `background=`."
        )
    flat = torch.cat([x.detach()[:COMPARED].flatten(1).double() for x in samples], 1)
    copies = share_of_near_copies(flat)
    if copies > 0.5:
        warn(
            f"{copies:.0%} of the samples have near-copies in the batch, and nothing "
            "is fitted, so they are compared with their copies: attributions may be "
            "far too large. Call `fit(background)` before using NoiseTunnel, "
            "`sensitivity_max` and the like."
        )


def warn_if_training(model: nn.Module) -> None:
    """Warns where training mode makes values depend on the batch or on chance."""
    for module in model.modules():
        if module.training and is_stochastic(module):
            warn(
                f"The model is in training mode, and its {type(module).__name__} makes "
                "values depend on the batch or on chance: call `model.eval()` first."
            )
            return


NO_GRADIENT = (
    "No gradient flows from the model's output back to its inputs: it detaches, "
    "rounds, or computes under `torch.no_grad()`. Use preset='gradient_free'."
)


def check_differentiable(model: nn.Module) -> None:
    """Refuses parameters and buffers that no gradient can be computed with."""
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if x.is_inference():
            raise RuntimeError(
                f"The model's {name!r} was made under `torch.inference_mode()`, where "
                "torch computes no gradients: build or load the model outside of it."
            )
