"""Compiling kernels with numba: without the GIL, cached on disk where that works.

Inside kernels numba infers all types; annotations there are for readers, and scalars,
whose width and sign are numba's business, are :data:`Int`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba

Int: TypeAlias = Any
"""An integer, of Python, NumPy or the machine."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """Compile ``function`` when it is first called.

    Compiled code is kept beside the source, or in the user's cache folder, for later
    processes. Where neither can be written to, each process compiles for itself.

    The cache knows a kernel by its own file: while developing, remove ``__pycache__``
    after a change in a kernel that others, in other files, call.
    """
    try:
        compiled: Any = _compiling(cache=True)(function)
    except RuntimeError:  # numba has no folder to write to
        compiled = _compiling(cache=False)(function)
    return cast("_Function", compiled)


def _compiling(cache: bool) -> Any:
    return numba.njit(nogil=True, cache=cache, error_model="numpy")
