r"""Which modules of a model are layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from captum_nif.tracing.layer_types import layer_type_of

Layers = str | Sequence[str | nn.Module] | Mapping[Any, int | None] | None
"""What users may say of layers; see :func:`find_layers`."""


def copied(layers: Layers) -> Layers:
    """What users said of layers, whatever they do later to the list or dict."""
    if layers is None or isinstance(layers, str):
        return layers
    return dict(layers) if isinstance(layers, Mapping) else tuple(layers)


@dataclass(frozen=True)
class Selection:
    """The modules that are layers.

    Args:
        paths (dict of Module to str): all of them, in the order of
            ``model.named_modules()``, with their paths.
        named (tuple of Module): those that the user names, which must be used.
        channel_axes (dict of Module to int): where the channels are in what they
            return, if the user says so.
        is_default (bool): whether the layers are found by their types, if some are
            named besides; functions with a parameter are layers then.
    """

    paths: dict[nn.Module, str]
    named: tuple[nn.Module, ...] = ()
    channel_axes: Mapping[nn.Module, int] | None = None
    is_default: bool = True


def find_layers(model: nn.Module, layers: Layers = None) -> dict[nn.Module, str]:
    """The modules that are layers, with their paths in the model.

    Args:
        model (Module): the network.
        layers (list or dict or str, optional): the modules to take as layers, by path
            or by object; as a dict, with the axis along which the channels lie in what
            they return, or None where that is to be told by what runs inside. A path
            that begins with "+" is taken besides the default: ``"+encoder"``, or a list
            of such. What lies inside a layer is part of it. Default: the modules of all
            types that are registered; see :mod:`captum_nif.tracing.layer_types`.

    Returns:
        dict of Module to str: in the order of ``model.named_modules()``.

    Raises:
        TypeError: if ``model`` is no module, or an entry of ``layers`` of another type.
        ValueError: if an entry of ``layers`` is not in the model or lies in another.
        NotImplementedError: if the model cannot be hooked (scripted, compiled, ...).

    Examples::

        >>> import torch
        >>> block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> net = torch.nn.Sequential(block, torch.nn.Linear(4, 2))
        >>> list(find_layers(net).values())
        ['0.0', '1']
        >>> list(find_layers(net, "+0").values())
        ['0', '1']
        >>> list(find_layers(net, {"0.1": 1}).values())
        ['0.1']
    """
    return select(model, layers).paths


def select(model: nn.Module, layers: Layers = None) -> Selection:
    """As :func:`find_layers`, with all that users say of layers."""
    _refuse_opaque(model)
    paths = {module: path or "model" for path, module in model.named_modules()}
    default = _outermost(m for m in paths if layer_type_of(m) is not None)
    if layers is None:
        return Selection({m: path for m, path in paths.items() if m in default})
    axes, besides = _entries(layers)
    chosen = {_resolve(layer, model): axis for layer, axis in axes.items()}
    inside = {m for outer in chosen for m in outer.modules() if m is not outer}
    wanted = (default - inside) | set(chosen) if besides else set(chosen)
    for outer in wanted:
        for inner in outer.modules():
            if inner is not outer and inner in chosen:
                raise ValueError(
                    f"The layer {paths[inner]!r} lies inside the layer "
                    f"{paths[outer]!r}: name one of them."
                )
    return Selection(
        {m: path for m, path in paths.items() if m in wanted},
        tuple(chosen),
        {m: axis for m, axis in chosen.items() if axis is not None},
        besides,
    )


def default_layers_inside(module: nn.Module) -> dict[nn.Module, str]:
    """The modules inside another that would be layers, with their paths in it."""
    found = _outermost(
        m for m in module.modules() if m is not module and layer_type_of(m) is not None
    )
    return {m: path for path, m in module.named_modules() if m in found}


def _outermost(modules: Iterator[nn.Module]) -> set[nn.Module]:
    """What lies inside a layer, as an attention's projection, is part of it."""
    found = set(modules)
    return found - {m for outer in found for m in outer.modules() if m is not outer}


def _entries(layers: Layers) -> tuple[dict[str | nn.Module, int | None], bool]:
    """The axis of the channels by layer, and whether they come besides the default."""
    if isinstance(layers, str) and layers.startswith("+"):
        layers = [layers]
    if isinstance(layers, Mapping):
        axes = dict(layers)
    elif isinstance(layers, Sequence) and not isinstance(layers, str):
        axes = dict.fromkeys(layers)
    else:
        raise TypeError(
            "`layers` must be a list of module names or modules, a dict of them with "
            f"the axes of their channels, or a name after a '+', got {layers!r}."
        )
    if not axes:
        raise ValueError("`layers` is empty: name at least one layer, or pass None.")
    for layer, axis in axes.items():
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
            raise TypeError(
                f"The axis of the channels of the layer {layer!r} must be an int or "
                f"None, got {axis!r}."
            )
    added = {x: axis for x, axis in axes.items() if _is_added(x)}
    if added and len(added) < len(axes):
        plain = [x for x in axes if x not in added]
        raise ValueError(
            "Either all of `layers` come besides the default, with names that begin "
            f"with '+', or none does; got {list(added)} and {plain}."
        )
    plain_names = {x[1:] if isinstance(x, str) else x: a for x, a in added.items()}
    return (plain_names, True) if added else (axes, False)


def _is_added(layer: object) -> bool:
    return isinstance(layer, str) and layer.startswith("+")


def _resolve(layer: str | nn.Module, model: nn.Module) -> nn.Module:
    # a module shared by two parents answers to both paths
    paths: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        if not any(layer is module for module in paths.values()):
            raise ValueError(
                f"The layer {type(layer).__name__} in `layers` is not part of the "
                "model: name one of the model's own modules."
            )
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"A layer must be a module name or a module, got {type(layer).__name__}."
        )
    if layer == "model" and layer not in paths:  # the name of the whole in the graph
        return model
    if not layer or layer not in paths:
        names = [path for path in paths if path]
        known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise ValueError(
            f"The model has no module {layer!r}; its modules are: {known or 'none'}."
        )
    return paths[layer]


def _refuse_opaque(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            "NIF follows values from layer to layer, so it needs the network itself, a "
            f"torch.nn.Module; got {type(model).__name__}. Wrap a function in a Module "
            "whose `forward` calls it."
        )
    for path, module in model.named_modules():
        name = f"{path or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise NotImplementedError(
                f"{name} is a scripted or traced module, which layer hooks cannot see "
                "into: pass the original Python module."
            )
        if hasattr(module, "_orig_mod"):
            raise NotImplementedError(
                f"{name} is compiled, and layer hooks would be compiled away: pass the "
                "original module, which `torch.compile` keeps as `compiled._orig_mod`."
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise NotImplementedError(
                f"{name} was compiled in place by `.compile()`, and layer hooks would "
                "be compiled away: pass `copy.deepcopy(model)`, which is not compiled."
            )
        if hasattr(module, "_hf_hook") and _is_offloaded(module):
            raise NotImplementedError(
                f"{name} is offloaded by accelerate, so its weights are not in memory: "
                "load the model without offloading, or load them by "
                "`accelerate.hooks.remove_hook_from_submodules(model)`."
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise NotImplementedError(
                f"{name} runs its replicas in threads on several devices: pass the "
                "wrapped module (`parallel.module`)."
            )
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and (
            module.has_uninitialized_params()  # type: ignore[misc]
        ):
            raise ValueError(
                f"{name} has uninitialized parameters: run the model once on a batch."
            )


def _is_offloaded(module: nn.Module) -> bool:
    held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(x.is_meta for x in held)
