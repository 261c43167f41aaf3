"""Loggers of libraries that tell of their own internals.  Start reading at `quiet`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(name: str, below: int = logging.ERROR) -> Iterator[None]:
    """Meanwhile the logger of this name says nothing below a level."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(below)
    try:
        yield
    finally:
        logger.setLevel(level)
