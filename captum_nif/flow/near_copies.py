"""Near-copies among samples, which would be compared with each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COMPARED = 256
"""Samples among which near-copies are looked for."""

_GAP = 5.0
"""How much farther than its near-copies all others are from a sample, whatever the
dimension. Distances to the j-th and the next neighbor in a cloud of d dimensions
differ by this factor with probability 5^-(j d): in one dimension, the worst, for a
quarter of the samples."""

_CLEAR = 2.1
"""As :data:`_GAP`, where nearer neighbors tell the dimension. The next neighbors on a
line with even spacing are 2 times farther; clusters of real data are closer than that.
"""

_TIMES = 20.0
"""How many times wider than the gaps before it such a gap is. With f at the (j + 1)-th
neighbor, the probability in any dimension is (1 + f / (j - 1))^-(j - 1): over all
j > 2, for one sample in a hundred. Two neighbors, one gap, tell too little."""

_FAR = 20.0
"""How much farther than from each other samples that are all copies are from 0."""


def share_of_near_copies(x: Tensor) -> float:
    """Share of the samples, [N, d], that have near or exact copies among the others.

    A near-copy is told by the gap behind it and not by a distance, for which there is
    no scale: in few dimensions, neighbors are close in any sample.
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
    r"""Whether a gap follows the j-th neighbor, [N, J - 1], of distances [N, J].

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
