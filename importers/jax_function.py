"""JAX and Flax, by jax2onnx.

Initializers that hold a Flax parameter unchanged, or transposed, get its path as their name (`layers.0.kernel`).  Start reading
at `JaxImporter.read`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from onnx import ModelProto

from graphprune.errors import InvalidModelError, UsageError
from graphprune.extras import require
from graphprune.shape_inference import InputShapes

from .base import Importer, is_from
from .naming import name_initializers

OPSET = 21


class JaxImporter(Importer):
    """A Flax `nnx.Module`, or (function, example inputs); shapes of a module's inputs come from --input-shape, in order."""

    name: ClassVar[str] = "jax"

    def accepts(self, source: object) -> bool:
        """By the class of the module, or of the example inputs."""
        if isinstance(source, tuple) and len(source) == 2 and callable(source[0]):
            inputs = source[1] if isinstance(source[1], tuple | list) else [source[1]]
            return any(is_from(value, package) for value in [source[0], *inputs] for package in ("jax", "jaxlib", "flax"))
        return is_from(source, "flax")

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """Convert.  Raises InvalidModelError where jax2onnx cannot, UsageError where shapes are missing."""
        jax2onnx = require("jax2onnx", "jax")
        function, inputs = source if isinstance(source, tuple) else (source, [tuple(shape) for shape in shapes.values()])
        inputs = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        if not callable(function):
            raise UsageError(f"--format jax: expected a function or nnx.Module, got {type(function).__qualname__}")
        if not inputs:
            raise UsageError("give --input-shape NAME=1,28,28,1 for each argument, or let the function return (module, inputs)")
        try:
            names = list(shapes) or None
            model: ModelProto = jax2onnx.to_onnx(function, inputs, opset=OPSET, input_names=names, return_mode="proto")
        except Exception as error:
            raise InvalidModelError(f"jax2onnx cannot convert the function: {error}") from error
        if is_from(function, "flax"):
            name_initializers(model, _parameters(function))
        return model


def _parameters(module: Any) -> Iterator[tuple[str, Any]]:
    nnx = require("flax.nnx", "jax")
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))):
        yield ".".join(str(part) for part in path), np.asarray(variable[...])
