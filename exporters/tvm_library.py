"""Compiled libraries, by TVM: a shared library, or an archive of objects for another machine.

Only this module and `tvm_targets` can be imported without the extra `tvm`.  Start reading at `TvmExporter.compile`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from onnx import ModelProto, helper

from graphprune import ranges
from graphprune.atomic import atomic_file
from graphprune.branches import with_branches
from graphprune.errors import UsageError, first_line
from graphprune.extras import need, require
from graphprune.graph import Graph

from .agreement import Run, compared
from .base import Exporter, Written
from .tvm_targets import PROCESSORS, host, is_like_this, target_options

SOURCES = {"cuda": ".cu", "opencl": ".cl", "metal": ".metal"}
"""What files of kernels are called."""


@dataclass(frozen=True)
class Compiled:
    """What was written, and how it compares with ONNX Runtime."""

    library: str
    target: Mapping[str, Any]
    seconds: float
    """For everything but tuning."""
    bytes: int
    kernels: int
    unscheduled: tuple[str, ...]
    """Kernels that the default schedule has no rule for: right, but slow."""
    tuned: int
    """Kernels whose schedule came from the tuning database."""
    difference: float | None
    """Largest difference to ONNX Runtime relative to scale; None where this machine cannot run the target."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TvmExporter(Exporter):
    """A compiled library for one processor (TVM): NAME.so, or NAME.tar with object files."""

    name: ClassVar[str] = "tvm"
    suffixes: ClassVar[tuple[str, ...]] = (".so", ".tar")

    target: str = "native"
    threads: Annotated[int, ranges.Ge(0)] = 0
    tune_trials: Annotated[int, ranges.Ge(0)] = 0
    tune_seconds: Annotated[float, ranges.Ge(0)] = 0.0
    database: str = ""

    def files(self, path: Path) -> tuple[Path, ...]:
        """The library and what goes with it.  Raises UsageError for an unknown target."""
        known_without_tvm = {"kind": "llvm"}
        return path, *_beside(path, known_without_tvm if self.target == "native" else target_options(self.target))

    def write(self, model: ModelProto, path: Path) -> Written:
        """Compile a normalised model.  Raises what `compile` raises."""
        compiled = self.compile(Graph(model), path)
        return Written((path, *_beside(path, compiled.target)), compiled.difference)

    def compile(self, graph: Graph, path: Path, step: Callable[[str], None] = lambda text: None) -> Compiled:
        """Compile a normalised model with the sizes its inputs declare, compare with ONNX Runtime, and write the library.

        Beside NAME.so (or NAME.tar) come NAME.json with the names, types and shapes of inputs and outputs, NAME-run.py and
        NAME-README.md, and for a GPU the source of its kernels, NAME.cu.  Raises UsageError for targets and file names that do
        not fit, InvalidModelError for operators that TVM does not know, ProofError where the results differ, and
        MissingExtraError.
        """
        options, link = self.check(path)
        from . import tvm_module

        if self.tune_trials or self.tune_seconds:
            refuse_dynamic(graph)
        target = tvm_module.target_of(options)
        model = with_branches(graph.model)
        start = time.perf_counter()
        step("importing into TVM")
        module = tvm_module.lowered(tvm_module.imported(model), target)
        spent = time.perf_counter() - start
        module, tuned = self._tuned(module, options, step)
        start = time.perf_counter()
        step("compiling")
        module = tvm_module.scheduled(module, target)
        executable = tvm_module.built(module, target)
        with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
            library = Path(folder) / f"library{path.suffix}"
            _export(executable, library, link)
            spent += time.perf_counter() - start
            difference = None
            if tvm_module.runs_here(target) and is_like_this(options):
                step("comparing with ONNX Runtime")
                difference = compared(graph, model, _runner(library if path.suffix == ".so" else executable), "TVM")
            _write(library, path, _signature(model, options), executable)
        names = tvm_module.kernels(module)
        slow = tuple(tvm_module.unscheduled(module))
        return Compiled(str(path), options, spent, path.stat().st_size, len(names), slow, tuned, difference)

    def check(self, path: Path) -> tuple[dict[str, Any], Any]:
        """The target and the linker, found before any work starts.  Raises UsageError or MissingExtraError."""
        if path.suffix not in self.suffixes:
            raise UsageError(f"{path}: the output is a library NAME.so, or NAME.tar with the objects to link elsewhere")
        options = target_options(self.target, self.threads)
        if options["kind"] not in PROCESSORS and (self.tune_trials or self.tune_seconds or self.database):
            raise UsageError(
                f"--target {self.target}: schedules are tuned for processors, not for {options['kind']}; leave the tuning out"
            )
        if (self.tune_trials or self.tune_seconds) and (options["kind"] != "llvm" or not is_like_this(options)):
            raise UsageError(f"--target {self.target}: schedules are measured on a machine that the code runs on; tune there")
        need("tvm")
        return options, linker(path, options)

    def _tuned(self, module: Any, options: Mapping[str, Any], step: Callable[[str], None]) -> tuple[Any, int]:
        """The module with schedules from tuning, and how many kernels got one."""
        if not (self.tune_trials or self.tune_seconds or self.database):
            return module, 0
        from . import tvm_tuning

        return tvm_tuning.tuned(module, options, self.tune_trials, self.tune_seconds, self.database, step)


def refuse_dynamic(graph: Graph) -> None:
    """Raises UsageError where an input has a dynamic size: schedules are measured with real sizes."""
    for value in graph.inputs:
        open_ = [dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim if not dim.HasField("dim_value")]
        if open_:
            sizes = ", ".join(open_)
            raise UsageError(
                f"tuning needs fixed sizes; input {value.name!r} has dynamic ones ({sizes}): give them by --input-shape"
            )


def linker(path: Path, options: Mapping[str, Any]) -> Any:
    """How objects become the library; None for TVM's own way, a C++ compiler here.  Raises UsageError where nothing can link."""
    if path.suffix == ".tar":
        return None
    if not is_like_this(options):
        triple = str(host(options)["mtriple"])
        compiler = next((name for name in (f"{triple}-g++", f"{triple}-gcc") if shutil.which(name)), None)
        if compiler is None:
            raise UsageError(f"{path}: linking for {triple} needs {triple}-gcc; install it, or write a .tar of objects")
        return require("tvm.support.cc", "tvm").cross_compiler(compiler)
    if any(shutil.which(name) for name in ("g++", "clang++", "c++", "cc", "gcc")):
        return None
    if shutil.which("ld"):
        return _link
    raise UsageError(f"{path}: a shared library needs a C++ compiler or `ld`; install one, or write a .tar of objects")


def _export(executable: Any, library: Path, link: Any) -> None:
    """Write the library.  Raises UsageError where the linker fails."""
    try:
        executable.export_library(str(library), **({"fcompile": link} if link else {}))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        lines = said.decode(errors="replace") if isinstance(said, bytes) else said
        telling = next((line.strip() for line in lines.splitlines() if "error" in line.lower()), first_line(error))
        raise UsageError(f"the library cannot be linked: {telling}; write a .tar of objects, and link that") from error


def _link(output: str, objects: list[str], **_: Any) -> None:
    """Link with the bare linker, where there is no compiler."""
    command = ["ld", "-shared", "-o", output, *objects]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603


_link.output_format = "so"  # type: ignore[attr-defined]


# ---- files ----------------------------------------------------------------------------------------


def _signature(model: ModelProto, options: Mapping[str, Any]) -> dict[str, Any]:
    """Names, types and shapes of inputs and outputs; a dynamic size is a name."""
    inputs = [
        {
            "name": value.name,
            "type": np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
            "shape": [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim],
        }
        for value in model.graph.input
    ]
    return {"target": dict(options), "inputs": inputs, "outputs": [value.name for value in model.graph.output]}


def _write(library: Path, path: Path, signature: Mapping[str, Any], executable: Any) -> None:
    """The library and what goes with it, each whole or not at all; the library last."""
    from .tvm_gpu import source
    from .tvm_readme import readme

    runner = Path(__file__).with_name("tvm_run.py").read_text(encoding="utf-8")
    files = _beside(path, signature["target"])
    texts = [json.dumps(signature, indent=2) + "\n", runner, readme(path.name, signature)]
    texts += [source(executable)] if len(files) > len(texts) else []
    for file, text in zip(files, texts, strict=True):
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_file(path) as temporary:
        shutil.copyfile(library, temporary)


def _beside(path: Path, target: Mapping[str, Any]) -> list[Path]:
    """What goes with a library: its signature, a program that runs it, a page; for a GPU the source of its kernels."""
    kernels = [path.with_suffix(SOURCES[target["kind"]])] if target["kind"] in SOURCES else []
    return [path.with_suffix(".json"), *(path.with_name(f"{path.stem}-{each}") for each in ("run.py", "README.md")), *kernels]


def _runner(library: Any) -> Run:
    from .tvm_backend import loaded

    every_core = 0
    return loaded(library, every_core)
