"""From ONNX to a module of scheduled loops, and to machine code.

    ONNX -> relax -> NHWC -> packed contractions -> fused loops -> schedule -> LLVM

Start reading at `imported`, `lowered`, `scheduled` and `built`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from onnx import ModelProto
from tvm import relax
from tvm.ir import GenericConst

from graphprune.errors import InvalidModelError, UsageError
from graphprune.graph import DEFAULT_DOMAINS, subgraphs

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
    """The model in relax.  Raises InvalidModelError that names operators TVM has no converter for."""
    from tvm.relax.frontend.onnx import from_onnx

    missing = sorted(unsupported(model))
    if missing:
        raise InvalidModelError(f"TVM cannot import the operators {', '.join(missing)}")
    try:
        module = from_onnx(model)
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
    """Fused loop functions without a schedule, contractions packed for the target's vector unit."""
    passes = relax.transform
    steps = [
        passes.DecomposeOpsForInference(),
        passes.CanonicalizeBindings(),
        folded_layouts,
        passes.FoldConstant(),
        passes.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]}),
        passes.CanonicalizeBindings(),
        folded_layouts,
        passes.FoldConstant(),
        passes.LegalizeOps(lowerings(machine_of(target))),
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
    with target:
        return schedules(machine_of(target))(module)


def built(module: Module, target: Any) -> Any:
    """Machine code for a scheduled module."""
    return tvm.compile(module, target=target)


def kernels(module: Module) -> list[str]:
    """The names of the loop functions."""
    return sorted(name.name_hint for name, function in module.functions_items() if isinstance(function, tvm.tirx.PrimFunc))


def unscheduled(module: Module) -> list[str]:
    """The loop functions that no schedule fitted: they are right, and slow."""
    return [name for name in kernels(module) if not module[name].attrs.get("tirx.is_scheduled", False)]


def runs_here(target: Any, same_family: bool) -> bool:
    """Whether this machine can run code for a target of its own family of processors."""
    native = tvm.target.Target(target_options("native"))
    return same_family and str(target.kind) == "llvm" and machine_of(target).floats <= machine_of(native).floats


@relax.expr_functor.mutator
class _Layouts(relax.PyExprMutator):  # type: ignore[misc]
    """Transposes and reshapes of constants, computed here: TVM compiles a function for each."""

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", "")
        if name not in ("relax.permute_dims", "relax.reshape"):
            return call
        source = call.args[0]
        if isinstance(source, relax.Var):
            source = self.lookup_binding(source)
        if not isinstance(source, GenericConst):
            return call
        values = source.value.numpy()
        if name == "relax.permute_dims":
            axes = call.attrs.axes
            return relax.const(np.ascontiguousarray(values.transpose(None if axes is None else [int(axis) for axis in axes])))
        shape = call.ty.shape
        if shape is None or not all(isinstance(size, tvm.tirx.IntImm) for size in shape):
            return call
        return relax.const(values.reshape([int(size) for size in shape]))


@tvm.transform.module_pass(opt_level=0, name="FoldedLayouts")
def folded_layouts(module: Module, context: Any) -> Module:
    """Fold transposes and reshapes of constants."""
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            module.update_func(name, _Layouts(module).visit_expr(function))
    return relax.transform.CanonicalizeBindings()(module)


def _is_dynamic(model: ModelProto) -> bool:
    dims = [dim for value in model.graph.input for dim in value.type.tensor_type.shape.dim]
    return any(not dim.HasField("dim_value") for dim in dims)


def first_line(error: Exception) -> str:
    """What an error of TVM says, without its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
