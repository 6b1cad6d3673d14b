r"""Whether a model is still the one that a population ran through.

Tensors are compared by what they hold, and where they are large by a sample of it and
by torch's count of in-place changes. So all is noticed but this: a few numbers of a
tensor of more than 256 KiB, changed past torch (through ``.data`` or numpy).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_nif.tracing.undisturbed import is_stochastic

_LOOKED_AT = 1 << 18
"""Bytes of a tensor that are looked at, about."""

_LINE = 64
"""Bytes that a processor reads at once."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a model was like at some time.

    Args:
        modules (tuple): of each module its path, kind, options, and hooks.
        tensors (tuple): of each parameter and buffer its name, kind and content.
        versions (tuple or None): how often each large parameter was changed in place,
            by torch's count, which starts anew in a copy of the model: None, for any.
    """

    modules: tuple[Any, ...]
    tensors: tuple[Any, ...]
    versions: tuple[int, ...] | None

    def __eq__(self, other: object) -> bool:
        """Whether there is no sign of a change."""
        if not isinstance(other, Fingerprint):
            return NotImplemented
        same = self.modules == other.modules and self.tensors == other.tensors
        counted = self.versions is not None and other.versions is not None
        return same and (self.versions == other.versions or not counted)

    __hash__ = None  # type: ignore[assignment]  # as equality is not transitive

    def __reduce__(self) -> tuple[Any, ...]:
        return Fingerprint, (self.modules, self.tensors, None)


def fingerprint(model: nn.Module) -> Fingerprint:
    """What tells a model from what it is after a change: weights, modules, options."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return Fingerprint(
        tuple(_of_module(path, module) for path, module in model.named_modules()),
        tuple(_of_tensor(name, x) for name, x in named),
        tuple(x._version for x in model.parameters() if _is_large(x)),
    )


def _of_module(path: str, module: nn.Module) -> tuple[Any, ...]:
    kind = type(module)
    options: tuple[Any, ...] = ()
    # Other modules may count their own calls, and the like.
    if kind.__module__.startswith("torch.nn."):
        options = tuple(
            (name, getattr(value, "__qualname__", value))
            for name, value in vars(module).items()
            if name not in _OF_ALL_MODULES
            and (value is None or callable(value) or isinstance(value, _PLAIN))
        )
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    names = tuple(
        getattr(hook, "__qualname__", type(hook))
        for hook in hooks
        if not str(getattr(hook, "__module__", "")).startswith("captum_nif.")
    )
    mode = module.training if is_stochastic(module) else None
    return path, kind, mode, options, names


_OF_ALL_MODULES = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, tuple)


def _is_large(x: Tensor) -> bool:
    """Whether only a sample of a tensor is looked at, and changes of it are counted."""
    return x.numel() * x.element_size() > _LOOKED_AT and not x.is_inference()


def _of_tensor(name: str, x: Tensor) -> tuple[Any, ...]:
    kind = name, x.dtype, x.device, tuple(x.shape)
    if x.is_meta or x.layout != torch.strided:  # without memory to look at
        return kind
    seen = torch.empty(0, dtype=torch.uint8, device=x.device)
    seen.set_(x.detach().untyped_storage())
    if len(seen) > _LOOKED_AT:  # the same number of lines, evenly spread
        lines = seen[: len(seen) // _LINE * _LINE].view(-1, _LINE)
        seen = lines[:: len(lines) * _LINE // _LOOKED_AT].flatten()
    content = zlib.crc32(seen.cpu().numpy().data)
    return *kind, x.stride(), x.storage_offset(), content
