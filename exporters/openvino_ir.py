"""OpenVINO's intermediate representation: NAME.xml with the graph and NAME.bin with the weights (extra openvino).

Start reading at `OpenVinoExporter.write`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto

from graphprune.branches import with_branches
from graphprune.errors import GraphpruneError, InvalidModelError
from graphprune.extras import need
from graphprune.graph import Array, Graph
from graphprune.model_file import write_model
from graphprune.provenance import PREFIX

from .agreement import compared
from .base import Exporter, Written, staged


@dataclass(frozen=True)
class OpenVinoExporter(Exporter):
    """OpenVINO IR: NAME.xml and, beside it, NAME.bin with the weights as they are (extra openvino)."""

    name: ClassVar[str] = "openvino"
    suffixes: ClassVar[tuple[str, ...]] = (".xml",)

    def check(self, path: Path) -> None:
        """Refuse other names, and say what is missing.  Raises UsageError or MissingExtraError."""
        super().check(path)
        need("openvino")

    def files(self, path: Path) -> tuple[Path, ...]:
        """The graph and the weights."""
        return path, path.with_suffix(".bin")

    def write(self, model: ModelProto, path: Path) -> Written:
        """Write both files; where the model came from goes into the section `rt_info` of the graph.

        Raises InvalidModelError where OpenVINO cannot read the model, ProofError where the files compute something else,
        UsageError and MissingExtraError.
        """
        self.check(path)
        openvino = need("openvino")
        model = with_branches(model)
        path, weights = self.files(path)
        with staged(weights, path) as (_, file):
            read = imported(model)
            for entry in model.metadata_props:
                if entry.key.startswith(PREFIX):
                    read.set_rt_info(entry.value, ["graphprune", entry.key.removeprefix(PREFIX)])
            openvino.save_model(read, str(file), compress_to_fp16=False)
            difference = compared(Graph(model), model, lambda feeds: run(file, feeds), "OpenVINO")
        return Written((path, weights), difference)


def prepare(model: ModelProto, feeds: Mapping[str, Array], threads: int) -> Callable[[], object]:
    """OpenVINO on the processor, in the precision of the model.

    The result runs the model once, with the sizes of `feeds` (a backend for `graphprune.bench`).
    Raises InvalidModelError where OpenVINO cannot run the model, and MissingExtraError.
    """
    need("openvino")
    read = imported(model)
    with _understood():
        read.reshape({name: list(value.shape) for name, value in feeds.items()})
        request = _compiled(read, threads).create_infer_request()
        request.infer(dict(feeds))
    run_again: Callable[[], object] = request.infer
    return run_again  # the inputs stay


def imported(model: ModelProto) -> Any:
    """The model in OpenVINO.  Raises InvalidModelError, which names operators that OpenVINO does not know."""
    openvino = need("openvino")
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder, _understood():
        path = Path(folder) / "model.onnx"
        write_model(model, path)
        return openvino.Core().read_model(str(path))


def run(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs of an IR file, in order.  Raises InvalidModelError where OpenVINO cannot run it."""
    with _understood():
        compiled = _compiled(need("openvino").Core().read_model(str(path)), threads=0)
        results = compiled(dict(feeds))
        return [results[index] for index in range(len(compiled.outputs))]


def _compiled(read: Any, threads: int) -> Any:
    """A network for this processor; `threads` = 0 lets OpenVINO decide.  Without the hint it may compute in bfloat16."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    return need("openvino").Core().compile_model(read, "CPU", settings)


@contextmanager
def _understood() -> Iterator[None]:
    """Turn what OpenVINO raises into an InvalidModelError."""
    try:
        yield
    except GraphpruneError:
        raise
    except Exception as error:  # OpenVINO raises many unrelated types
        raise InvalidModelError(f"OpenVINO cannot run the model: {_telling(str(error))}") from error


PLACES = ("Exception from", "Check ", "FrontEnd API failed", "Model wasn't fully converted")
"""How the lines of a message begin that say where in OpenVINO's sources it was found, and not what is wrong."""


def _telling(text: str) -> str:
    """The part of a message that says what is wrong: operators without a rule, or the first line with what it announces."""
    lines = [line.strip("- ") for line in text.splitlines() if line.strip()]
    missing = [line for line in lines if line.startswith("No conversion rule found")]
    plain = [line for line in lines if not line.startswith(PLACES)]
    found = missing or plain or [text.strip()]
    return " ".join(found[:2]) if found[0].endswith(":") else found[0]
