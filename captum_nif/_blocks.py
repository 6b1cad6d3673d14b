"""Cutting work into blocks, so that memory stays bounded whatever the input's size."""

from __future__ import annotations

from collections.abc import Iterator


def blocks(total: int, length: int) -> Iterator[slice]:
    """Cut ``range(total)`` into consecutive slices of at most ``length``.

    Examples::

        >>> list(blocks(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, total, length):
        yield slice(start, min(start + length, total))
