"""The benchmark areas: one module each, with `measure`, `section`, `plot` and `figures`.

Start reading at `AREAS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

AREAS = ("coverage", "architectures", "compile", "scale", "latency", "speed", "accuracy", "ordering")
"""In the order of the page."""


def area(name: str) -> Any:
    """The module of an area."""
    return import_module(f"areas.{name}")
