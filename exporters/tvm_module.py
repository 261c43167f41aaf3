"""From ONNX to a module of scheduled loops, and to machine code.

    ONNX -> relax -> NHWC -> packed contractions -> fused loops -> schedule -> LLVM

Start reading at `imported`, `lowered`, `scheduled` and `built`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import tvm
from onnx import ModelProto
from tvm import relax

from graphprune.errors import InvalidModelError, UsageError
from graphprune.graph import DEFAULT_DOMAINS, subgraphs
from graphprune.model_file import fits_message, whole

from . import tvm_gpu
from .tvm_folding import simplified
from .tvm_movement import moved_once
from .tvm_operators import lowerings
from .tvm_schedule import schedules
from .tvm_targets import target_options
from .tvm_tiles import machine_of

Module = Any
"""An IRModule of TVM, which ships no types."""

CONTRIBUTED = {"Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "QAttention", "SkipLayerNormalization"}
"""What relax's table means in ONNX Runtime's reading (com.microsoft), though it looks at names alone."""


def target_of(options: dict[str, Any]) -> Any:
    """The TVM target.  Raises UsageError for options that TVM does not take."""
    try:
        return tvm.target.Target(options)
    except Exception as error:  # TVM raises many unrelated types
        raise UsageError(f"TVM does not take the target {options}: {first_line(error)}") from error


def imported(model: ModelProto) -> Module:
    """The model in relax.  Raises InvalidModelError that names operators TVM has no converter for, and for 2 GB and more."""
    from tvm.relax.frontend.onnx import from_onnx

    if not fits_message(model):
        raise InvalidModelError("TVM cannot import models of 2 GB or more")

    missing = sorted(unsupported(model))
    if missing:
        raise InvalidModelError(f"TVM cannot import the operators {', '.join(missing)}")
    try:
        module = from_onnx(whole(model))
    except Exception as error:  # TVM raises many unrelated types
        advice = "; fixing dynamic sizes with --input-shape may help" if _is_dynamic(model) else ""
        raise InvalidModelError(f"TVM cannot import the model: {first_line(error)}{advice}") from error
    return module


def unsupported(model: ModelProto) -> set[str]:
    """The operators of a model, branches included, that relax's ONNX importer has no converter for."""
    from tvm.relax.frontend.onnx import onnx_frontend

    known = {*onnx_frontend._get_convert_map(), "If", "Constant"}
    missing = set()
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            pending.extend(subgraphs(node))
            if node.domain in DEFAULT_DOMAINS:
                if node.op_type not in known - CONTRIBUTED:
                    missing.add(node.op_type)
            elif node.domain != "com.microsoft" or node.op_type not in known & CONTRIBUTED:
                missing.add(f"{node.domain}.{node.op_type}")
    return missing


def lowered(module: Module, target: Any) -> Module:
    """Fused loop functions without a schedule; for processors, contractions packed for the vector unit.

    Raises InvalidModelError.
    """
    packed = {} if tvm_gpu.is_gpu(target) else lowerings(machine_of(target))
    try:
        if packed:
            return _lowered(module, target, packed, relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]}))
    except Exception:  # TVM raises many unrelated types; its layouts do not know every operator
        logging.getLogger(__name__).info("TVM cannot change the layout of this network; its convolutions will be slow")
    try:
        return _lowered(module, target, packed, relax.transform.CanonicalizeBindings())
    except Exception as error:  # as above
        raise InvalidModelError(f"TVM cannot compile the model: {first_line(error)}") from error


def _lowered(module: Module, target: Any, packed: Mapping[str, Any], layout: Any) -> Module:
    passes = relax.transform
    steps = [
        passes.DecomposeOpsForInference(),
        passes.CanonicalizeBindings(),
        simplified,
        passes.FoldConstant(),
        layout,
        passes.CanonicalizeBindings(),
        simplified,
        passes.FoldConstant(),
        moved_once,
        passes.LegalizeOps(packed),
        passes.AnnotateTIROpPattern(),
        passes.FoldConstant(),
        passes.FuseOps(),
        passes.FuseTIR(),
        passes.DeadCodeElimination(),
    ]
    with target:
        return tvm.transform.Sequential(steps)(module)


def scheduled(module: Module, target: Any) -> Module:
    """Give every loop function that has no schedule yet the default one."""
    if tvm_gpu.is_gpu(target):
        return tvm_gpu.scheduled(module, target)
    with target:
        return schedules(machine_of(target))(module)


def built(module: Module, target: Any) -> Any:
    """Machine code for a scheduled module.  Raises InvalidModelError."""
    try:
        return tvm.compile(module, target=target)
    except Exception as error:  # TVM raises many unrelated types
        raise InvalidModelError(f"TVM cannot compile the model: {first_line(error)}") from error


def kernels(module: Module) -> list[str]:
    """The names of the loop functions."""
    return sorted(name.name_hint for name, function in module.functions_items() if isinstance(function, tvm.tirx.PrimFunc))


def unscheduled(module: Module) -> list[str]:
    """The loop functions that no schedule fitted: they are right, and slow."""
    return [name for name in kernels(module) if not module[name].attrs.get("tirx.is_scheduled", False)]


def runs_here(target: Any) -> bool:
    """Whether this machine has the vectors that a target of its own family of processors asks for."""
    native = tvm.target.Target(target_options("native"))
    return str(target.kind) == "llvm" and machine_of(target).floats <= machine_of(native).floats


def _is_dynamic(model: ModelProto) -> bool:
    dims = [dim for value in model.graph.input for dim in value.type.tensor_type.shape.dim]
    return any(not dim.HasField("dim_value") for dim in dims)


def first_line(error: Exception) -> str:
    """What an error of TVM says, without its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Check failed", "Error", "Invalid", "Unsupported", "ValueError"))]
    return (telling or lines[-1:] or [type(error).__name__])[0]
