"""Garbage collection while a network is compiled, which makes many objects and hardly any garbage.  Start reading at `rarely`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

OBJECTS = 200_000
"""New objects until garbage is collected; Python's own number, 700 or 2000, takes a twentieth of the time of a compile."""

_LOCK = Lock()
_BEFORE: list[tuple[int, int, int]] = []
"""The thresholds that were set before, once for every caller that is inside."""


@contextmanager
def rarely() -> Iterator[None]:
    """Collect garbage once in `OBJECTS` new objects; as before when the last caller, of any thread, has left.

    Thresholds that are larger, or 0, which is never, stay.
    """
    with _LOCK:
        _BEFORE.append(_BEFORE[0] if _BEFORE else gc.get_threshold())
        if 0 < gc.get_threshold()[0] < OBJECTS:
            gc.set_threshold(OBJECTS, *_BEFORE[0][1:])
    try:
        yield
    finally:
        with _LOCK:
            before = _BEFORE.pop()
            if not _BEFORE:
                gc.set_threshold(*before)
