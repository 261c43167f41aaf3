"""TensorFlow: SavedModel folders and TFLite files, by tf2onnx in a process of its own.

Start reading at `TensorFlowImporter.read`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto

from graphprune.errors import InvalidModelError
from graphprune.extras import require
from graphprune.shape_inference import InputShapes

from .base import Importer, has_suffix, read_written

OPSET = 17


class TensorFlowImporter(Importer):
    """A SavedModel folder or a `.tflite` file; initializers have tf2onnx's names, which begin with the layer's."""

    name: ClassVar[str] = "tensorflow"

    def accepts(self, source: object) -> bool:
        """By the suffix, or by what is in the folder."""
        return has_suffix(source, ".tflite") or (isinstance(source, str | Path) and (Path(source) / "saved_model.pb").exists())

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """Convert.  Raises InvalidModelError where tf2onnx cannot."""
        require("tf2onnx", "tensorflow")
        path = Path(source)
        if not path.exists():
            raise InvalidModelError(f"{path}: no such file or folder")
        kind = "--tflite" if path.suffix == ".tflite" else "--saved-model"
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            output = Path(folder) / "model.onnx"
            arguments = [kind, str(path), "--output", str(output), "--opset", str(OPSET)]
            command = [sys.executable, "-m", "tf2onnx.convert", *arguments]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own interpreter, no shell)
            if finished.returncode or not output.exists():
                lines = finished.stderr.strip().splitlines() or ["no message"]
                raise InvalidModelError(f"{path}: tf2onnx cannot convert it: {lines[-1]}")
            return read_written(output)
