"""ONNX's text form, for people to read.  Start reading at `TextExporter.write`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnx

from graphprune.exporters.base import Exporter
from graphprune.model_file import atomic_file


class TextExporter(Exporter):
    """A text file with the graph, weights included."""

    name: ClassVar[str] = "template_text"

    def write(self, model: onnx.ModelProto, path: Path) -> None:
        """Write the file, whole or not at all.  Raises UsageError where the folder cannot be written."""
        with atomic_file(path) as temporary:
            temporary.write_text(onnx.printer.to_text(model), encoding="utf-8")
