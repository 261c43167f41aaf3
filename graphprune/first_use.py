"""What a process does once, so that the first model takes no longer than the next.

`graphprune.pipeline` calls it where it is imported.  Whole runs take as long as before; who prunes in a process of his own
does not wait for onnx to register its operators (9 ms), for the entry points of all packages to be found (5 ms) and for the
modules that most runs need (3 ms) while his model waits.  Start reading at `prepare`.
"""

from __future__ import annotations

from contextlib import suppress

from onnx import defs

from . import registry, rule_match
from .errors import UsageError

__all__ = ["prepare", "rule_match"]

PASSES = (("importance", "magnitude"), ("selection", "uniform"), ("rewrite", "shrink"))
"""Those of the smallest run."""


def prepare() -> None:
    """Have ready what does not depend on a model.  A pass that cannot be loaded is passed over: who asks for it is told."""
    defs.has("Identity")
    for kind, name in PASSES:
        with suppress(UsageError):
            registry.load(kind, name)
