"""Cutting work into blocks, so that memory stays bounded whatever the input's size."""

from __future__ import annotations

import math
from collections.abc import Iterator

_limit = 1 << 27

_CACHE = 1 << 25
"""Bytes of temporaries that, a few at a time, caches of processors hold."""


def set_memory_limit(limit: int) -> int:
    """
    Set how many bytes the temporary tensors of one block of work may take.

    Everything that grows with samples times nodes, or with pairs of nodes, is computed
    in blocks. Each thread works on one block at a time, so that this is the memory of a
    thread beyond the model, the samples and the results. A lower limit takes longer,
    a higher one gains little. Results do not depend on it.

    Args:

        limit (int): Bytes, at least 1: a block holds at least one item, whatever it
            takes. 128 MiB until this is called.

    Returns:

        int: the limit until now, to be put back.

    Raises:

        TypeError: If ``limit`` is no int.
        ValueError: If it is less than 1.

    Examples::

        >>> import captum_nif
        >>> before = captum_nif.set_memory_limit(1 << 30)
        >>> captum_nif.set_memory_limit(before) == 1 << 30
        True
    """
    global _limit
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, in bytes, but is {limit!r}.")
    if limit < 1:
        raise ValueError(f"limit must be at least 1 byte, not {limit}.")
    before, _limit = _limit, limit
    return before


def block_length(
    bytes_per_item: int, most: int | None = None, *, in_cache: bool = False
) -> int:
    """How many items a block may hold, at least one.

    Args:
        bytes_per_item (int): what the temporaries of one item take together.
        most (int, optional): items beyond which nothing is gained.
        in_cache (bool, optional): whether temporaries should fit the caches of
            processors, too, as more would be slower.
    """
    limit = min(_limit, _CACHE) if in_cache else _limit
    length = limit // max(1, bytes_per_item)
    return max(1, length if most is None else min(length, most))


def block_side(
    bytes_per_item: int, most: int | None = None, *, in_cache: bool = False
) -> int:
    """The side of the largest square block of items; see :func:`block_length`."""
    side = math.isqrt(block_length(bytes_per_item, in_cache=in_cache))
    return max(1, side if most is None else min(side, most))


def blocks(total: int, length: int) -> Iterator[slice]:
    """Cut ``range(total)`` into consecutive slices of at most ``length``.

    Examples::

        >>> list(blocks(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, total, length):
        yield slice(start, min(start + length, total))
