"""Modules that are read when they are first used.

annotated_types says what range an option has.  Only what reads configurations asks.  Importing it first takes 15 ms: it brings
typing_extensions, which makes generic types slower to build from then on, and numpy builds many.  Start reading at `deferred`.
"""

from __future__ import annotations

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType


def deferred(name: str) -> ModuleType:
    """A module of the standard library or of a dependency, read with the first of its attributes.

    Raises ModuleNotFoundError where it is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ranges = deferred("annotated_types")
