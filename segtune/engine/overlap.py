"""Reading and writing by a thread while the model computes, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(function: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Iterator[Made]:
    """`map(function, items)`, computed by one thread up to `depth` items ahead of what is taken.

    Args:
        function: reads a file or writes one, for example; one item after the other.
        items: what computes them runs in the caller's thread, beside `function`.
        depth: so many items wait or are worked on while the caller is at one, at least 1.

    Yields:
        The results in order. What `function` raises is raised in the place of its result. Where the
        caller ends early, or computing an item fails, what was begun is done nevertheless.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for item in items:
            waiting.append(thread.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
