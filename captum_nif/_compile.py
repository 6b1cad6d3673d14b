"""Compiling kernels with numba: without the GIL, cached on disk where that works.

Inside kernels numba infers all types; annotations there are for readers, and scalars,
whose width and sign are numba's business, are :data:`Int`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

from captum_nif._messages import warn

Int: TypeAlias = Any
"""An integer, of Python, NumPy or the machine."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_KERNELS = Path(__file__).parent / "estimators" / "kernels"


def kernel(function: _Function) -> _Function:
    """Compile ``function`` when it is first called.

    Compiled code is kept beside the source, or in the user's cache folder, for later
    processes. Where neither can be written to, each process compiles for itself.
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
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy", **options)(function)
    with contextlib.suppress(RuntimeError):  # numba has no folder to write to
        dispatcher._cache = _Cache(function)
    return cast("_Function", dispatcher)


class _Cache(FunctionCache):
    """numba's cache, made anew where sources have changed or files are damaged.

    By itself numba knows a function by its own file, and not by those of the functions
    that it calls, whose code it holds as well.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file._source_stamp = _stamp(function.__code__.co_filename)

    def _load_overload(self, *signature: Any) -> Any:
        try:
            return super()._load_overload(*signature)  # type: ignore[no-untyped-call]
        except OSError:
            raise  # numba knows which of these are harmless
        except (AttributeError, ImportError):
            pass  # of another version of this package
        except Exception as error:
            warn(
                f"The compiled code of {self._py_func.__qualname__} in "
                f"{self.cache_path} cannot be read ({error!r}). It is compiled again, "
                "which takes some seconds."
            )
        self.flush()  # type: ignore[no-untyped-call]
        return None


@lru_cache(maxsize=32)
def _stamp(source: str) -> str:
    """What changes with a kernel's file, or with one that its callees may be in."""
    digest = hashlib.blake2b(digest_size=16)
    for path in (Path(source), Path(__file__), *sorted(_KERNELS.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
