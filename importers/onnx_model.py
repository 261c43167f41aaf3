"""ONNX files.  Start reading at `OnnxImporter.read`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto

from graphprune.model_file import read_model
from graphprune.shape_inference import InputShapes

from .base import Importer, has_suffix


class OnnxImporter(Importer):
    """ONNX files, with external data in the same folder."""

    name: ClassVar[str] = "onnx"

    def accepts(self, source: object) -> bool:
        """By the suffix."""
        return has_suffix(source, ".onnx")

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """The model with its external data.  Raises InvalidModelError."""
        return read_model(Path(source))
