"""Words of messages: counts, checks of plain numbers, warnings at the user's line."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things in words: ``"1 sample"``, ``"2 samples"``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def check_positive(name: str, value: object) -> None:
    """Refuses numbers of samples that are no positive int."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an int, got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def add_note(error: BaseException, note: str) -> None:
    """Says more of an error that keeps its type and message (from Python 3.11 on)."""
    if hasattr(error, "add_note"):
        error.add_note(note)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the user's line: the first one outside this package and Captum."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def renamed_argument(
    old: str, new: str
) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Decorator: a keyword argument is still taken by its old name, with a warning."""

    def decorate(
        function: Callable[_Parameters, _Result],
    ) -> Callable[_Parameters, _Result]:
        @functools.wraps(function)
        def renamed(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"`{old}` is the old name of `{new}`: drop `{old}`")
                warn(f"`{old}` is now called `{new}`", DeprecationWarning)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renamed

    return decorate


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in ("captum_nif", "captum", "torch", "numba")
