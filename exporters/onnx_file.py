"""ONNX files.  Start reading at `OnnxExporter.write`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from onnx import ModelProto

from graphprune.model_file import Late, weights_beside, write_model

from .base import Exporter, Written


@dataclass(frozen=True)
class OnnxExporter(Exporter):
    """An ONNX file; weights are in it (above 2 GB in NAME.onnx.data), or beside it in NAME.onnx.data or NAME.onnx.safetensors."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    weights: Literal["inside", "data", "safetensors"] = "inside"

    def files(self, path: Path) -> tuple[Path, ...]:
        """The model and the file for weights beside it, where those of more than 2 GB are even if they should be inside."""
        return path, weights_beside(path, self.weights)[0]

    def write(self, model: ModelProto, path: Path, late: Late = dict) -> Written:
        """Write the files atomically, with metadata that is asked for when the weights are written.  Raises UsageError."""
        return Written(tuple(write_model(model, path, self.weights, late)), None)
