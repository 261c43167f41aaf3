"""ONNX files.  Start reading at `OnnxExporter.write`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from graphprune.model_file import write_model

from .base import Exporter, Written


class OnnxExporter(Exporter):
    """An ONNX file; weights above 2 GB go to `NAME.data` beside it."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    def write(self, model: ModelProto, path: Path) -> Written:
        """Write the file atomically.  Raises UsageError."""
        write_model(model, path)
        return Written((path,), None)
