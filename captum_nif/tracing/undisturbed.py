r"""A model that is run for its values, and left as it was.

Hooks belong to a module, so those who hook the same model take turns. Buffers that the
model overwrites are put back. Random numbers are another matter: generators that are
put back would repeat, in other threads, numbers that were drawn meanwhile. So torch's
are forked only where the model is known to draw, as a dropout in training mode does. A
model that draws by itself in ``forward`` moves the generators on, as in any other call.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = (
    weakref.WeakKeyDictionary()
)
_lock_of_locks = threading.Lock()


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock that all who hook this model share."""
    with _lock_of_locks:
        return _locks.setdefault(model, threading.RLock())


class Hooks:
    """Hooks that one thread has on a model while it runs it."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._thread = threading.get_ident()

    def add(self, *handles: RemovableHandle) -> None:
        """Hold what registering a hook returned."""
        _hooks.add(self)
        self._handles += handles

    def remove(self) -> None:
        """Take all hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def is_of_this_thread(self) -> bool:
        """Whether the running thread made these hooks: others are none of theirs."""
        return threading.get_ident() == self._thread


_hooks: weakref.WeakSet[Hooks] = weakref.WeakSet()


def _forget_other_threads() -> None:
    """In a forked child: only the forking thread is there, others held locks."""
    global _locks, _lock_of_locks
    _locks, _lock_of_locks = weakref.WeakKeyDictionary(), threading.Lock()
    for hooks in list(_hooks):
        if not hooks.is_of_this_thread:
            hooks.remove()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Nobody else hooks the model meanwhile, and its buffers are put back after."""
    with lock_of(model), _buffers_put_back(model), _draws_of_its_own(model):
        yield


@contextlib.contextmanager
def _buffers_put_back(model: nn.Module) -> Iterator[None]:
    buffers = [
        (module, key, buffer, buffer.clone())
        for module in model.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, key, buffer, before in buffers:
            module._buffers[key] = buffer
            # written only if it changed: another thread may be reading it
            if not torch.equal(buffer, before):
                buffer.copy_(before)


def _draws_of_its_own(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    if not any(m.training and _draws(m) for m in model.modules()):
        return contextlib.nullcontext()
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return torch.random.fork_rng([d.index for d in devices if d.index is not None])


def is_stochastic(module: nn.Module) -> bool:
    """Whether a module does otherwise in training mode than in evaluation."""
    return _draws(module) or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _draws(module: nn.Module) -> bool:
    """Whether a module draws random numbers in training mode."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    return isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
