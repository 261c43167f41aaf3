"""Models that ONNX Runtime has optimised already: as ONNX for this kind of processor, and in its own format (.ort).

Start reading at `OnnxRuntimeExporter.write`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from onnx import ModelProto

from graphprune.branches import with_branches
from graphprune.errors import InvalidModelError, UsageError, first_line
from graphprune.graph import Array, Graph
from graphprune.model_file import fits_message, serialised, weight_bytes, write_model
from graphprune.runtime import cannot_run

from .agreement import compared, nudged
from .base import Exporter, Written, staged

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class OnnxRuntimeExporter(Exporter):
    """An ONNX file that ONNX Runtime has optimised; above level `extended` for this kind of processor only."""

    name: ClassVar[str] = "onnxruntime"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)

    level: Literal["basic", "extended", "all"] = "all"

    def files(self, path: Path) -> tuple[Path, ...]:
        """The model, and its weights where they are too large for it."""
        return path, path.with_name(f"{path.name}.data")

    def write(self, model: ModelProto, path: Path) -> Written:
        """Write the optimised model with its metadata; weights above 2 GB go to `NAME.data` beside it.

        Raises InvalidModelError where ONNX Runtime cannot run the model, and ProofError where the file computes something else.
        """
        self.check(path)
        model = with_branches(model)
        path, data = self.files(path)
        with staged(data, path) as (weights, file):
            self._optimise(model, file, weights)
            written = tuple(each for each, source in ((path, file), (data, weights)) if source.exists())
            # not `sensitivity`, which takes for rounding what these optimisations change
            difference = compared(Graph(model), model, lambda feeds: _run(file, feeds), "the optimised model", nudged)
        return Written(written, difference)

    def _optimise(self, model: ModelProto, path: Path, weights: Path) -> None:
        """Let ONNX Runtime load the model and save what it made of it."""
        import onnxruntime as ort

        options = _quiet()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{self.level.upper()}")
        options.optimized_model_filepath = str(path)
        source = path.with_name("source")
        if not fits_message(model):
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights.name)
            write_model(model, source)
        given = b"".join(serialised(model)) if fits_message(model) else str(source)
        try:
            ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except cannot_run() as error:
            raise InvalidModelError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error


@dataclass(frozen=True)
class OrtExporter(OnnxRuntimeExporter):
    """ONNX Runtime's own format, which its builds for phones read as well; level `all` is for this kind of processor only."""

    name: ClassVar[str] = "ort"
    suffixes: ClassVar[tuple[str, ...]] = (".ort",)

    level: Literal["basic", "extended", "all"] = "extended"

    def write(self, model: ModelProto, path: Path) -> Written:
        """Write the .ort file.  Raises UsageError for models above 2 GB, which the format cannot hold, and as above."""
        if not fits_message(model):
            raise UsageError(f"{path}: the format 'ort' holds at most 2 GB, this model has {weight_bytes(model) / 1e9:.1f} GB")
        return super().write(model, path)


def _quiet() -> onnxruntime.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def _run(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    import onnxruntime as ort

    results = ort.InferenceSession(str(path), _quiet(), providers=["CPUExecutionProvider"]).run(None, dict(feeds))
    return list(results)
