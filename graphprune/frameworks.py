"""The way back to the framework that a model came from.  What does the work is registered, so the core imports no framework.

Start reading at `apply_to_torch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import registry

if TYPE_CHECKING:
    from .graph import Array
    from .pipeline import Result, Source
    from .plan import Plan


def apply_to_torch(
    module: Any,
    plan: Result | Plan | str | Path,
    onnx_model: Source | None = None,
    example_inputs: Any = None,
    *,
    weights: Mapping[str, Array] | None = None,
    baked_sizes: Literal["graph", "error"] = "graph",
) -> Any:
    """Shrink an nn.Module in place as a plan has it (docs/back-to-torch.md); see `graphprune.exporters.pytorch.apply`."""
    door = registry.load("frameworks", "torch").apply_to_torch
    return door(module, plan, onnx_model, example_inputs, weights=weights, baked_sizes=baked_sizes)


def module_from_plan(module: Any, plan: Any, state_dict: Mapping[str, Any] | None = None) -> Any:
    """Shrink a fresh module of the same architecture and load a pruned state dict; see `graphprune.exporters.pytorch.apply`."""
    return registry.load("frameworks", "torch").module_from_plan(module, plan, state_dict)


def apply_to_keras(
    model: Any,
    plan: Result | Plan | str | Path,
    onnx_model: Source | None = None,
    example_inputs: Any = None,
    *,
    weights: Mapping[str, Array] | None = None,
) -> Any:
    """A new Keras model as a plan has it (docs/back-to-keras.md); see `graphprune.exporters.keras3.apply`."""
    return registry.load("frameworks", "keras").apply_to_keras(model, plan, onnx_model, example_inputs, weights=weights)
