"""PaddlePaddle inference models, by paddle2onnx.  Start reading at `PaddleImporter.read`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto

from graphprune.errors import InvalidModelError
from graphprune.extras import require
from graphprune.shape_inference import InputShapes

from .base import Importer, has_suffix, read_written


class PaddleImporter(Importer):
    """What `paddle.jit.save` writes: NAME.json or NAME.pdmodel beside NAME.pdiparams; parameters keep their names."""

    name: ClassVar[str] = "paddle"

    def accepts(self, source: object) -> bool:
        """By the suffix, with the parameters beside it."""
        return has_suffix(source, ".pdmodel", ".json") and Path(str(source)).with_suffix(".pdiparams").exists()

    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """Convert.  Raises InvalidModelError where paddle2onnx cannot."""
        program = Path(source)
        parameters = program.with_suffix(".pdiparams")
        for path in (program, parameters):
            if not path.is_file():
                raise InvalidModelError(f"{path}: no such file")
        require("paddle", "paddle")
        paddle2onnx = require("paddle2onnx", "paddle")
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            output = Path(folder) / "model.onnx"
            try:
                paddle2onnx.export(str(program), str(parameters), str(output), verbose=False)
            except Exception as error:
                raise InvalidModelError(f"{program}: paddle2onnx cannot convert it: {error}") from error
            if not output.exists():
                raise InvalidModelError(f"{program}: paddle2onnx wrote nothing")
            return read_written(output)
