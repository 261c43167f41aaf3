"""Running models in ONNX Runtime: sessions, seeded random inputs, sizes for dynamic dimensions.

Start reading at `random_inputs` and `run`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, helper

from .errors import CalibrationError, InvalidModelError, UsageError, first_line
from .graph import Array, Graph, node_reads
from .limits import array_bytes, check_memory, clock_runs, lift, peak_bytes
from .model_file import fits_message, serialised, weight_bytes, write_model
from .shape_inference import InputShapes, concrete_shapes, run_shapes

if TYPE_CHECKING:
    import onnxruntime


def session(model: ModelProto, threads: int = 0, optimize: bool = True) -> onnxruntime.InferenceSession:
    """An ONNX Runtime CPU session; `threads` = 0 lets the runtime decide, and is one while time is limited (`graphprune.limits`).

    Without `optimize` the graph runs as it is written.  Raises onnxruntime's own exceptions for models that it cannot run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return _session(model, options, threads)


@contextmanager
def profiled(model: ModelProto, threads: int, folder: Path) -> Iterator[onnxruntime.InferenceSession]:
    """A session that profiles its runs and writes what it saw, as JSON, into a folder when it ends."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    active = _session(model, options, threads)
    try:
        yield active
    finally:
        active.end_profiling()


def _session(model: ModelProto, options: onnxruntime.SessionOptions, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    options.log_severity_level = 4
    options.intra_op_num_threads = threads or int(clock_runs())
    providers = ["CPUExecutionProvider"]
    if fits_message(model):
        return ort.InferenceSession(b"".join(serialised(model)), options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path)
        return ort.InferenceSession(str(path), options, providers=providers)


def prepare(model: ModelProto, feeds: Mapping[str, Array], threads: int) -> Callable[[], object]:
    """ONNX Runtime on the processor.

    The result runs the model once (a backend for `graphprune.bench`).  Raises UsageError where the model cannot be run.
    """
    check_runnable(model, feeds)
    try:
        active = session(model, threads)
        active.run(None, dict(feeds))
    except Exception as error:  # onnxruntime raises many unrelated types
        raise UsageError(f"ONNX Runtime cannot run the model: {first_line(error)}. Check --input-shape") from error
    return lambda: active.run(None, dict(feeds))


@contextmanager
def on_samples() -> Iterator[None]:
    """Turn what ONNX Runtime raises on the user's samples into a CalibrationError."""
    try:
        yield
    except cannot_run() as error:
        raise CalibrationError(f"ONNX Runtime cannot run the model on the calibration samples: {first_line(error)}") from error


def cannot_run() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a model or inputs that it cannot run."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented", "RuntimeException")
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError)


def random_inputs(
    graph: Graph, seed: int = 0, shapes: InputShapes | None = None, batch: int = 2, scale: int = 1
) -> dict[str, Array]:
    """Seeded random inputs of the right types: normal for floats, small numbers for integers.

    Raises UsageError for names in `shapes` that are no inputs.
    """
    shapes = shapes or {}
    names = [value.name for value in graph.inputs]
    for name in shapes:
        if name not in names:
            raise UsageError(f"input shape for {name!r}: the model has no such input; it has: {', '.join(names)}")
    rng = np.random.default_rng(seed)
    sizes = concrete_shapes(graph.inputs, shapes, batch, scale)
    check_memory(sum(array_bytes(shape, 64) for shape in sizes.values()), weight_bytes(graph.model), "an input of the network")
    return {value.name: _random(graph, value, sizes[value.name], rng) for value in graph.inputs}


def _random(graph: Graph, value: onnx.ValueInfoProto, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    kind = value.type.tensor_type.elem_type
    if kind not in helper.get_all_tensor_dtypes():
        raise InvalidModelError(f"input {value.name!r} is no tensor, or of no type that a runtime knows")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    if dtype == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.kind in "iu":
        top = 256 if dtype.itemsize == 1 and dtype.kind == "u" else _index_bound(graph, value.name)
        return np.asarray(rng.integers(0, top, shape), dtype)
    if dtype.kind not in "fV":
        raise UsageError(f"input {value.name!r} has type {dtype}: random inputs of that type cannot be made")
    return np.asarray(rng.standard_normal(shape), dtype)


def _index_bound(graph: Graph, name: str) -> int:
    """Integers below this are valid: the size of the smallest table that the input selects from."""
    sizes = [2]
    for use in graph.uses.get(name, []):
        node = graph.nodes[use.node]
        shape = graph.shape(node.input[0]) if node.op_type == "Gather" and use.input == 1 else None
        if shape and isinstance(shape[0], int):
            sizes.append(shape[0])
    return max(sizes) if len(sizes) == 1 else min(sizes[1:])


def check_runnable(model: ModelProto, feeds: Mapping[str, Array]) -> None:
    """Refuse a network whose values take more memory on these inputs than its size allows.

    Values whose shape cannot be inferred do not count.  Raises InvalidModelError.
    """
    sizes = {name: array_bytes(shape, bits) for name, (shape, bits) in run_shapes(model, feeds).items()}
    nodes = [(list(node_reads(node)), list(node.output)) for node in model.graph.node]
    peak = peak_bytes(nodes, sizes, [value.name for value in model.graph.output])
    check_memory(peak, weight_bytes(model), "running the network")


def trial(graph: Graph, shapes: InputShapes | None = None) -> None:
    """Run the network once within limits, if there are any, and lift them: what comes is work that the user asked for.

    What ONNX Runtime says against random inputs does not matter here.  Raises InvalidModelError where it would take too much.
    """
    if clock_runs() and fits_message(graph.model):
        with suppress(UsageError, *cannot_run()):
            run(graph.model, random_inputs(graph, shapes=shapes, batch=1))
    lift()


def run(model: ModelProto, feeds: Mapping[str, Array], optimize: bool = False) -> dict[str, Any]:
    """All outputs of a model by name.  Raises InvalidModelError where that takes too much memory."""
    check_runnable(model, feeds)
    active = session(model, optimize=optimize)
    names = [output.name for output in active.get_outputs()]
    return dict(zip(names, active.run(names, dict(feeds)), strict=True))
