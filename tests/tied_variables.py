"""Independent variables that tie in the ways those of networks do."""

import torch

KINDS = ["untied", "relu", "90 % zeros", "binary", "levels"]


def variables(kind, samples, count, seed=0):
    """Independent variables of one kind."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(samples, count, generator=generator, dtype=torch.float64)
    if kind == "untied":
        return normal
    if kind == "relu":  # from 20 % to 80 % zeros
        return (normal - torch.linspace(-0.84, 0.84, count)).relu()
    if kind == "90 % zeros":
        return (normal - 1.28).relu()
    if kind == "binary":
        return (normal > torch.linspace(-1, 1, count)).double()
    assert kind == "levels"
    return (normal * torch.linspace(0.5, 4, count)).round()
