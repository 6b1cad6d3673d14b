"""Words of messages: counts, checks of plain numbers, warnings at the user's line."""

from __future__ import annotations

import sys
import warnings


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


def warn(message: str) -> None:
    """Warns at the user's line: the first one outside this package and Captum."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in ("captum_nif", "captum", "torch")
