"""What is refused, or warned about, at the door: samples that cannot be explained.

Every message says what came, what was expected, and what to do.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captum_nif.tracing.tracer import Structure

MIN_BATCH = 32
"""Fewest samples from which a batch can be explained without a background."""

_COMPARED = 256
"""Samples among which near-copies are looked for."""

_GAP = 5.0
"""How much farther than its near-copies all others are from a sample, whatever the
dimension. Distances to the j-th and the next neighbour in a cloud of d dimensions
differ by this factor with probability 5^-(j d): in one dimension, the worst, for a
quarter of the samples."""

_CLEAR = 2.1
"""As :data:`_GAP`, where nearer neighbours tell the dimension. The next neighbours on a
line with even spacing are 2 times farther; clusters of real data are closer than that.
"""

_TIMES = 20.0
"""How many times wider than the gaps before it such a gap is. With f at the (j + 1)-th
neighbour, the probability in any dimension is (1 + f / (j - 1))^-(j - 1): over all
j > 2, for one sample in a hundred. Two neighbours, one gap, tell too little."""

_FAR = 20.0
"""How much farther than from each other samples that are all copies are from 0."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things in words: ``"1 sample"``, ``"2 samples"``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


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


def check_positive(name: str, value: object) -> None:
    """Refuses numbers of samples that are no positive int."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an int, got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


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
    flat = torch.cat([x.detach()[:_COMPARED].flatten(1).double() for x in samples], 1)
    copies = _share_of_copies(flat)
    if copies > 0.5:
        warn(
            f"{copies:.0%} of the samples have near-copies in the batch, and nothing "
            "is fitted, so they are compared with their copies: attributions may be "
            "far too large. Call `fit(background)` before using NoiseTunnel, "
            "`sensitivity_max` and the like."
        )


def _share_of_copies(x: Tensor) -> float:
    """Share of the samples, [N, d], that have near or exact copies among the others.

    A near-copy is told by the gap behind it and not by a distance, for which there is
    no scale: in few dimensions, neighbours are close in any sample.
    """
    magnitudes = x.norm(dim=1)
    distances = torch.cdist(x, x)
    exact = distances <= 1e-6 * magnitudes.median()  # cdist rounds
    distances = distances.masked_fill(exact, 0.0)
    ordered = distances.sort(1).values
    farthest = ordered[:, -1]
    # a gap far out is behind an outlier, not behind copies
    near = _gaps(ordered[:, 1:])[:, : len(x) // 2 - 1].any(1)
    near |= (farthest > 0) & (magnitudes > _FAR * farthest)
    # Discrete samples repeat too, in more combinations than an element has levels.
    multiplicity = exact.sum(1)
    combinations = multiplicity.reciprocal().sum()
    levels = 1 + (x.sort(0).values.diff(dim=0) != 0).sum(0).max()
    repeated = (multiplicity > 1) & (2 * levels >= combinations) & (x.shape[1] > 1)
    return float((near | repeated).double().mean())


def _gaps(ordered: Tensor) -> Tensor:
    r"""Whether a gap follows the j-th neighbour, [N, J - 1], of distances [N, J].

    In a cloud of d dimensions, :math:`j \log(T_{j+1} / T_j)` of the distances T are
    independent and exponential with mean 1 / d. The ones before the j-th have the mean
    :math:`\sum_{i<j} \log(T_j / T_i) / (j - 1)` (Levina and Bickel, 2004), so the gap
    is measured by them: the more dimensions, the less it takes.
    """
    logs = ordered.clamp_min(torch.finfo(ordered.dtype).tiny).log()
    closer, widths = logs[:, :-1], logs.diff(dim=1)
    j = torch.arange(1, logs.shape[1], device=logs.device)
    before = j * closer - closer.cumsum(1)
    clear = (j > 2) & (j * (j - 1) * widths > _TIMES * before)
    gaps = (widths > math.log(_GAP)) | (clear & (widths > math.log(_CLEAR)))
    return gaps & (ordered[:, :-1] > 0)


def warn_if_training(model: nn.Module) -> None:
    """Warns where training mode makes values depend on the batch or on chance."""
    for module in model.modules():
        if module.training and is_stochastic(module):
            warn(
                f"The model is in training mode, and its {type(module).__name__} makes "
                "values depend on the batch or on chance: call `model.eval()` first."
            )
            return


def is_stochastic(module: nn.Module) -> bool:
    """Whether a module does otherwise in training mode than in evaluation."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)
    return isinstance(module, kinds)


def warn(message: str) -> None:
    """Warns at the user's line: the first one outside this package and Captum."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in ("captum_nif", "captum", "torch")
