"""Folders as Hugging Face's Optimum writes them: `model.onnx` beside its configuration.

Start reading at `HuggingFaceImporter.read`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto

from graphprune.errors import InvalidModelError
from graphprune.model_file import read_model
from graphprune.shape_inference import InputShapes

from .base import Importer

PLACES = ("model.onnx", "onnx/model.onnx")


class HuggingFaceImporter(Importer):
    """A folder with `config.json` and `model.onnx` (or `onnx/model.onnx`); external data stays beside the file."""

    name: ClassVar[str] = "huggingface"

    def accepts(self, source: object) -> bool:
        """By what is in the folder."""
        return isinstance(source, str | Path) and any((Path(source) / name).exists() for name in ("config.json", *PLACES))

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """The ONNX model in the folder.  Raises InvalidModelError where there is none, with what to do."""
        folder = Path(source)
        for place in PLACES:
            if (folder / place).is_file():
                return read_model(folder / place)
        others = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.onnx"))
        if others:
            raise InvalidModelError(f"{folder}: no model.onnx; name one of its files instead: {', '.join(others[:4])}")
        raise InvalidModelError(
            f"{folder}: no ONNX model; export one with `optimum-cli export onnx --model {folder} OUT`, or from Python code with "
            "--format torch"
        )
