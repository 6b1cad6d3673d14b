"""Running blocks of work in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def in_threads(
    work: Callable[[_Task], _Result], tasks: Iterable[_Task]
) -> Iterator[_Result]:
    """``map(work, tasks)`` in as many threads as torch uses.

    ``work`` must release the GIL to gain from it. Only a few tasks are under way at a
    time, so results do not pile up, and an interrupt ends it after those.

    Examples::

        >>> list(in_threads(abs, [-1, -2, 3]))
        [1, 2, 3]
    """
    threads = torch.get_num_threads()
    tasks = iter(tasks)
    first = list(islice(tasks, 2))
    tasks = chain(first, tasks)
    if threads == 1 or len(first) == 1:  # one task is not worth starting threads
        yield from map(work, tasks)
        return
    under_way: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                under_way.append(pool.submit(work, task))
                if len(under_way) > 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
