r"""Layers that follow each other in a chain, however the model branches inside them.

Where branches part and meet again, as at the shortcuts of a residual network, no layer
within them sees all that flows: the paths through a branch and those around it add up
only if what the layer does is independent of what goes around it, which training sees
to that it is not. So a branched stretch is better taken as a whole: the smallest module
around it becomes the layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
        NotImplementedError: if a link would hold what cannot be followed.

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
    paths = {module: path for path, module in model.named_modules()}
    with _noting_calls(model) as called:
        structure = trace(model, inputs, extra).structure
    holders = {path: module for module, path in paths.items() if module in called}
    names = [layer.name for layer in structure.layers if layer.kind != "input"]
    layers = _modules(names, find_layers(model))
    while layers and passed_by(structure):
        passed = _modules(passed_by(structure), find_layers(model, layers))
        lifted = {_holder(paths[module], holders) for module in passed} - {model}
        kept = {*layers, *lifted} - {*passed}
        inner = {m for outer in kept for m in outer.modules() if m is not outer}
        layers = [module for module in paths if module in kept - inner]
        if layers:
            structure = _relinked(model, inputs, extra, layers)
    if not layers:
        raise ValueError(
            "No layer of this model takes in all that flows past it, so there is no "
            "chain of layers: name modules in `layers`."
        )
    return layers


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


@contextlib.contextmanager
def _noting_calls(model: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules that are called meanwhile; others are only lists of modules."""
    called: set[nn.Module] = set()

    def note(module: nn.Module, args: object) -> None:
        called.add(module)

    handles = [m.register_forward_pre_hook(note) for m in model.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _relinked(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    layers: list[nn.Module],
) -> Structure:
    """The structure with other layers; what lies outside them is part of links."""
    try:
        return trace(model, inputs, extra, layers).structure
    except NotImplementedError as error:
        raise NotImplementedError(
            "The model has no chain of layers that can be followed, since branches "
            "part and meet in its own `forward`, and what they go through would be "
            f"part of a link: {error} Or move them to a module of their own."
        ) from error


def _modules(names: list[str], layers: dict[nn.Module, str]) -> list[nn.Module]:
    """The modules with layers of these names, which may number their calls."""
    paths = {*names, *(name.rpartition(":")[0] for name in names)}
    return [module for module, path in layers.items() if path in paths]


def _holder(path: str, called: dict[str, nn.Module]) -> nn.Module:
    """The smallest module around another one that is itself called."""
    outer = path.rpartition(".")[0]
    while outer not in called:
        outer = outer.rpartition(".")[0]
    return called[outer]
