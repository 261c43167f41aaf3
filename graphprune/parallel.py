"""Threads for work that numpy and the operating system do outside of Python.  Start reading at `in_parallel`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results for all items, in order; as many at a time as there are processors for this process."""
    workers = min(len(items), len(os.sched_getaffinity(0)))
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
