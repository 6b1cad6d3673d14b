"""Whether a model is still the one that a population ran through."""

from __future__ import annotations

import zlib

import torch
from torch import nn

from captum_nif.flow.checks import is_stochastic


def fingerprint(model: nn.Module) -> int:
    """A checksum of the model's parameters, buffers, devices, dtypes and modes."""
    modes = [m.training for m in model.modules() if is_stochastic(m)]
    state = zlib.crc32(bytes(modes))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        described = f"{name} {tensor.dtype} {tensor.device} {tuple(tensor.shape)}"
        state = zlib.crc32(described.encode(), state)
        if tensor.is_meta:  # no content
            continue
        content = tensor.detach().cpu().contiguous().flatten()
        state = zlib.crc32(content.view(torch.uint8).numpy().data, state)
    return state
