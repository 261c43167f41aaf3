"""ONNX files.  Start reading at `OnnxImporter.read`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from graphprune.model_file import read_model

from .base import Importer


class OnnxImporter(Importer):
    """ONNX files, with external data in the same folder."""

    name: ClassVar[str] = "onnx"

    def accepts(self, source: str) -> bool:
        """By the suffix."""
        return Path(source).suffix == ".onnx"

    def read(self, source: str) -> ModelProto:
        """The model with its external data loaded.  Raises InvalidModelError."""
        return read_model(Path(source))
