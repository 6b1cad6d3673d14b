r"""Layers that follow each other in a chain, however the model branches inside them.

Where branches part and meet again, as at the shortcuts of a residual network, no layer
within them sees all that flows: the paths through a branch and those around it add up
only if what the layer does is independent of what goes around it, which training sees
to that it is not. So a branched stretch is better taken as a whole: the smallest module
around it becomes the layer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from captum_nif.dataflow import Structure
from captum_nif.tracing import find_layers, trace


def chain_of_modules(
    model: nn.Module, inputs: tuple[Tensor, ...], extra: tuple[Any, ...] = ()
) -> list[nn.Module]:
    """The smallest modules through which everything flows that flows past them.

    Layers that something flows around are replaced by the module that holds them, and
    that one by its own, until nothing flows around any. Layers that only the model
    itself holds are left out, and are part of the link across them.

    Args:
        model (Module): the network.
        inputs (tuple of Tensor): a batch.
        extra (tuple): further arguments of the model.

    Returns:
        list of Module: for the ``layers`` of :func:`captum_nif.tracing.trace`.

    Raises:
        ValueError: if no layer is left.

    Examples::

        >>> import torch
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.inner(x).relu()
        >>> net = nn.Sequential(nn.Linear(3, 4), Block(), nn.Linear(4, 2))
        >>> [type(m).__name__ for m in chain_of_modules(net, (torch.randn(5, 3),))]
        ['Linear', 'Block', 'Linear']
    """
    modules = dict(model.named_modules())
    layers = list(find_layers(model).values())
    given: list[str | nn.Module] | None = None
    while True:
        structure = trace(model, inputs, extra, given).structure
        passed = {_path(name, modules) for name in passed_by(structure)}
        if not passed:
            return [modules[path] for path in layers]
        lifted = {_holder(path, modules) for path in passed} - {""}
        layers = [
            path
            for path in modules
            if (path in layers and path not in passed) or path in lifted
        ]
        layers = [
            path
            for path in layers
            if not any(path.startswith(f"{outer}.") for outer in layers)
        ]
        if not layers:
            raise ValueError(
                "No layer of this model takes in all that flows past it, so there is "
                "no chain of layers: name modules in `layers`."
            )
        given = list(layers)


def passed_by(structure: Structure) -> list[str]:
    """The hidden layers that something can flow around.

    A layer is passed if one before it has a path to the output that does not go through
    the layer, besides one that does.
    """
    readers: dict[str, list[str]] = {layer.name: [] for layer in structure.layers}
    for source, target in structure.links:
        readers[source].append(target)
    reached: dict[str, set[str]] = {}  # all after a layer
    certain: dict[str, set[str]] = {}  # those that every path from it goes through
    for layer in reversed(structure.layers):
        after = readers[layer.name]
        reached[layer.name] = set(after).union(*(reached[name] for name in after))
        through = [certain[name] | {name} for name in after]
        certain[layer.name] = set.intersection(*through) if through else set()
    passed = {name for start in readers for name in reached[start] - certain[start]}
    return [
        layer.name
        for layer in structure.layers
        if layer.kind == "hidden" and layer.name in passed
    ]


def _path(name: str, modules: dict[str, nn.Module]) -> str:
    """The module of a layer, one of whose calls may be numbered."""
    return name if name in modules else name.rpartition(":")[0]


def _holder(path: str, modules: dict[str, nn.Module]) -> str:
    """The module around another one that is itself called; "" for the model."""
    while path:
        path = path.rpartition(".")[0]
        if not isinstance(modules[path], (nn.ModuleList, nn.ModuleDict)):
            break
    return path
