"""Keras 3: `.keras` files and models from Python code, by Keras's own exporter.

Initializers that hold a variable unchanged, or transposed, get the variable's path as their name (`conv/kernel`); a convolution
that the converter merged with its normalisation keeps the converter's name.  Start reading at `KerasImporter.read`.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from onnx import ModelProto

from graphprune.archives import check_archive
from graphprune.errors import InvalidModelError, UsageError
from graphprune.extras import require
from graphprune.shape_inference import InputShapes

from .base import Importer, has_suffix, is_from, read_written
from .naming import name_initializers


class KerasImporter(Importer):
    """A Keras model or a `.keras` file (read in safe mode: no code in it is run)."""

    name: ClassVar[str] = "keras"

    def accepts(self, source: object) -> bool:
        """By class or suffix."""
        return is_from(source, "keras") or has_suffix(source, ".keras", ".h5")

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """Export.  Raises InvalidModelError where Keras cannot load or export the model."""
        if has_suffix(source, ".h5"):
            raise InvalidModelError(f"{source}: HDF5 files may hold code; save the model as .keras, which can be read safely")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        keras = require("keras", "keras")
        require("tf2onnx", "keras")
        model = _loaded(keras, Path(source)) if isinstance(source, str | Path) else source
        if not isinstance(model, keras.Model):
            raise UsageError(f"--format keras: expected a keras.Model, got {type(model).__qualname__}")
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the converter about numpy
            path = Path(folder) / "model.onnx"
            try:
                _call_once(keras, model, shapes)
                model.export(path, format="onnx", verbose=False)
            except Exception as error:
                raise InvalidModelError(f"Keras cannot export the model to ONNX: {error}") from error
            result = read_written(path)
        name_initializers(result, ((variable.path, np.asarray(variable)) for variable in model.variables))
        return result


def _loaded(keras: Any, path: Path) -> Any:
    check_archive(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise InvalidModelError(f"{path}: Keras cannot load it: {error}") from error


def _call_once(keras: Any, model: Any, shapes: InputShapes) -> None:
    """The exporter wants a model that has been called; one without inputs of its own (subclassed) has been by who built it."""
    if getattr(model, "inputs", None) is None:
        return
    inputs = []
    for value in model.inputs:
        given = shapes.get(value.name)
        shape = given if given is not None else [1 if axis == 0 else size or 16 for axis, size in enumerate(value.shape)]
        inputs.append(np.zeros(shape, value.dtype))
    model(inputs[0] if len(inputs) == 1 else keras.tree.pack_sequence_as(model.input, inputs))
