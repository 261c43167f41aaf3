"""graphprune: a structured pruning compiler over ONNX.

    import graphprune
    result = graphprune.prune("model.onnx", targets=["macs=0.5"])

Start reading at `graphprune.pipeline.prune`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .version import VERSION

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else importing onnxruntime writes into the home folder

__version__ = VERSION

if TYPE_CHECKING:
    from .frameworks import apply_to_keras, apply_to_torch, module_from_plan
    from .options import Options
    from .pipeline import Result, analyze, apply_plan, load, prune, verify

_PIPELINE = ("Options", "Result", "analyze", "apply_plan", "load", "prune", "verify")
_FRAMEWORKS = ("apply_to_keras", "apply_to_torch", "module_from_plan")

__all__ = [
    "Options",
    "Result",
    "__version__",
    "analyze",
    "apply_plan",
    "apply_to_keras",
    "apply_to_torch",
    "load",
    "module_from_plan",
    "prune",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the pipeline on first use, so that `import graphprune` costs nothing."""
    if name in _FRAMEWORKS:
        from . import frameworks

        return getattr(frameworks, name)
    if name not in _PIPELINE:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    from . import pipeline

    return getattr(pipeline, name)
