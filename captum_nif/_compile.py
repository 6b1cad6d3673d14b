"""Compiling kernels with numba: without the GIL, cached on disk where that works.

Inside kernels numba infers all types; annotations there are for readers, and scalars,
whose width and sign are numba's business, are :data:`Int`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import numba

Int: TypeAlias = Any
"""An integer, of Python, NumPy or the machine."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """Compile ``function`` when it is first called.

    Compiled code is kept beside the source, or in the user's cache folder, for later
    processes. Where neither can be written to, each process compiles for itself.

    The cache knows a kernel by its own file. After a change in what kernels of other
    files call, as an update of a checkout may bring, remove ``__pycache__`` (or numba's
    folder, where that is used).
    """
    return _compiled(function)


def routine(function: _Function) -> _Function:
    """Compile ``function`` for the kernels that call it, and for nobody else.

    The way in from Python, which takes apart every array of the arguments, would cost
    much of the time to compile. Called from Python it crashes the interpreter: test it
    through a kernel.
    """
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _compiled(function: _Function, **options: Any) -> _Function:
    njit: Any = partial(numba.njit, nogil=True, error_model="numpy", **options)
    try:
        return cast("_Function", njit(cache=True)(function))
    except RuntimeError:  # numba has no folder to write to
        return cast("_Function", njit()(function))
