"""Shapes of all values, by ONNX's own shape inference on a copy of the graph without its weights.

Weights are left out so that models of any size cost the same and none meets protobuf's 2 GB limit (where onnx returns an
empty graph without a word).  Start reading at `infer_shapes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto, helper

from .errors import InvalidModelError, UsageError, first_line
from .external import is_external
from .graph import (
    DEFAULT_DOMAINS,
    SHAPE_SIZED,
    Dim,
    Graph,
    Shape,
    canonical_domain,
    declared_shape,
    element_count,
    item_bits,
    operator_name,
)
from .monomial import monomial, monomials
from .runtime_shapes import runtime_values
from .shape_flow import computed_size, copied_dimensions

InputShapes = Mapping[str, Sequence[int]]
"""Shapes that the user gives for inputs with dynamic dimensions."""

REFUSALS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    ValueError,
    RuntimeError,
)
"""What onnx raises for models that contradict themselves, whichever of its functions finds it."""

SYMBOL_ROUNDS = 8
"""How often sizes found behind a Reshape are fed back into shape inference; each round sees one Reshape further."""


def skeleton(model: ModelProto) -> ModelProto:
    """The model with large initializers replaced by inputs of the same type, and without value_info."""
    copy = ModelProto(ir_version=max(model.ir_version, 4))
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    names = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in names)
    for tensor in model.graph.initializer:
        if element_count(tensor) <= SHAPE_SIZED and not is_external(tensor):
            graph.initializer.add().CopyFrom(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    _forget_single_names(copy)
    return copy


def _forget_single_names(model: ModelProto) -> None:
    """Let go of names of an output's sizes that occur nowhere else: they say nothing, and hide what can be inferred."""
    values = [*model.graph.input, *model.graph.output]
    count = Counter(dim for value in values for dim in declared_shape(value) or () if isinstance(dim, str))
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim if declared_shape(output) else ():
            if count[dim.dim_param] == 1:
                dim.ClearField("dim_param")


def infer_shapes(model: ModelProto, shape_like: dict[str, str] | None = None) -> dict[str, Shape]:
    """The shape of every value for which one can be inferred, as `graphprune.graph.Shape`.

    `shape_like` maps operators that ONNX does not know to standard ones with the same output shape.
    """
    return shapes_of(inferred_model(skeleton(model), model, shape_like or {}))


def typical_model(graph: Graph, given: InputShapes | None = None) -> ModelProto:
    """The model without weights for one sample and typical sizes of other dynamic dimensions (or those given)."""
    copy = skeleton(graph.model)
    sizes = concrete_shapes(graph.inputs, given or {}, batch=1, scale=4)
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    _open_outputs(copy)
    return copy


def run_shapes(model: ModelProto, feeds: Mapping[str, Any]) -> dict[str, tuple[Shape, int]]:
    """Shape and bits per element of every value that is not an initializer, when the network runs on arrays of these shapes."""
    copy = skeleton(model)
    for value in copy.graph.input:
        if value.name in feeds:
            value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, feeds[value.name].shape))
    _open_outputs(copy)
    inferred = _inferred(copy)
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        shape = declared_shape(value)
        if shape is not None and value.name not in constants:
            found[value.name] = shape, item_bits(value.type.tensor_type.elem_type)
    return found


def shapes_of(inferred: ModelProto) -> dict[str, Shape]:
    """The shapes that a model declares, by value name."""
    shapes: dict[str, Shape] = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        shape = declared_shape(value)
        if shape is not None:
            shapes[value.name] = shape
    return shapes


def inferred_model(copy: ModelProto, model: ModelProto, shape_like: dict[str, str]) -> ModelProto:
    """The skeleton `copy` of `model` with value_info for every value whose type can be inferred."""
    kept = {value.name: value for value in model.graph.value_info}
    imitate_operators(copy, shape_like)
    foreign = {name for node in copy.graph.node if canonical_domain(node.domain) for name in node.output if name}
    learnt = runtime_values(copy, foreign) if foreign else []
    rest = foreign - {value.name for value in learnt}
    copy.graph.value_info.extend([*learnt, *(kept[name] for name in sorted(rest) if name in kept)])
    for _ in range(SYMBOL_ROUNDS):
        inferred = _inferred(copy)
        if not _name_sizes(inferred, copy):
            break
    return inferred


def _open_outputs(model: ModelProto) -> None:
    """Let the shapes of the outputs follow from those of the inputs."""
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")


def _inferred(copy: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(copy, check_type=False, strict_mode=False, data_prop=True)
    except REFUSALS as error:
        raise InvalidModelError(f"not a valid ONNX model: its shapes contradict each other: {first_line(error)}") from error


def _name_sizes(inferred: ModelProto, copy: ModelProto) -> bool:
    """Name sizes that ONNX leaves unknown and that must be those of an operand; note them in `copy`.

    True if there is something new to infer from.
    """
    named = {dim for value in copy.graph.input for dim in declared_shape(value) or () if isinstance(dim, str)}
    declared = {symbol for dim in named for symbol in monomial(dim, "").symbols}
    if not declared:
        return False
    shapes = {
        name: tuple(dim if {*monomial(dim, "").symbols} <= declared else None for dim in shape)
        for name, shape in shapes_of(inferred).items()
    }  # names that shape inference made up say nothing
    values = {value.name: value for value in inferred.graph.value_info}
    nodes = [node for node in copy.graph.node if node.op_type in _NAMING and None in shapes.get(node.output[0], ())]
    if not nodes:
        return False
    graph, found = Graph(copy, shapes), False
    for node in (node for node in nodes if node.output[0] in values):
        names = _NAMING[node.op_type](graph, node, shapes[node.output[0]])
        value = values[node.output[0]]
        for axis, name in names.items():
            dim = value.type.tensor_type.shape.dim[axis]
            if isinstance(name, str):
                dim.dim_param = name
            elif name:
                dim.dim_value = name
        if names:
            copy.graph.value_info.append(value)
            found = True
    return found


def _regrouped(graph: Graph, node: NodeProto, target: Shape) -> dict[int, Dim]:
    """Sizes of a Reshape's result: -1 stands for what all other sizes leave, as a number or by name (`8*N`)."""
    source = graph.shape(node.input[0])
    if source is None:
        return {}
    wanted = [computed_size(graph, node.input[1], k) if dim is None else dim for k, dim in enumerate(target)]
    sizes, results = monomials(source, wanted)
    known = {symbol for dim, size in zip(source, sizes, strict=True) if dim is not None for symbol in size.symbols}
    return {k: size.name for k, size in enumerate(results) if target[k] is None and {*size.symbols} <= known}


def _expanded(graph: Graph, node: NodeProto, target: Shape) -> dict[int, Dim]:
    """Sizes of Expand's result that are copied from other values, where the input has one or the same."""
    source, wanted = graph.shape(node.input[0]), _copied(graph, node.input[1])
    if source is None or not wanted:
        return {}
    rank = len(target)
    own, new = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (source, wanted))
    return {
        axis: name
        for axis, name in enumerate(new)
        if name not in (None, 0, -1) and target[axis] is None and len(own) == len(new) == rank and own[axis] in (1, name)
    }


def _counted(graph: Graph, node: NodeProto, _: Shape) -> dict[int, Dim]:
    """The size of Range(0, n, 1)."""
    start, limit, step = (graph.constant(node.input[0]), _copied(graph, node.input[1]), graph.constant(node.input[2]))
    plain = start is not None and step is not None and start.ravel()[:1] == 0 and step.ravel()[:1] == 1
    return {0: limit[0]} if plain and len(limit) == 1 and isinstance(limit[0], str) else {}


def _sliced(graph: Graph, node: NodeProto, target: Shape) -> dict[int, Dim]:
    """The sizes that Slice leaves, where those that it cuts are computed at run time."""
    source, axes = graph.shape(node.input[0]), graph.constant(node.input[3]) if len(node.input) > 3 else None
    if source is None or axes is None or len(source) != len(target):
        return {}
    cut = {int(axis) % len(source) for axis in axes.ravel()}
    return {axis: size for axis, size in enumerate(source) if axis not in cut and target[axis] is None and size is not None}


def _copied(graph: Graph, name: str) -> Shape:
    """The sizes, known or by name, that a vector of sizes copies; empty where that cannot be told."""
    return tuple(
        (graph.shape(entry[0]) or {entry[1]: None})[entry[1]] if isinstance(entry, tuple) else entry
        for entry in copied_dimensions(graph, name) or ()
    )


_NAMING = {"Reshape": _regrouped, "Expand": _expanded, "Range": _counted, "Slice": _sliced}
"""Operators whose result has sizes that ONNX's shape inference loses: how each axis of it is named."""


_TURNS = ("transA", "transB", "transBatchA", "transBatchB")
"""Attributes of FusedMatMul that MatMul does not have: with them its result has another shape."""


def imitate_operators(model: ModelProto, shape_like: dict[str, str]) -> None:
    """Put a standard operator with the same output shape in the place of one whose result onnx infers no shape of.

    So of those that it does not know, or knows as deprecated, or as a function alone.
    """
    version = next((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), 1)
    for node in model.graph.node:
        name = operator_name(node)
        turned = any(attribute.i for attribute in node.attribute if attribute.name in _TURNS)
        if name in shape_like and not turned and not _is_inferred(name, version):
            _imitate(node, shape_like[name])


@cache
def _is_inferred(name: str, version: int) -> bool:
    """Whether onnx infers the shapes of an operator's results in an opset of the standard domain."""
    try:
        schema = onnx.defs.get_schema(name, version)
    except onnx.defs.SchemaError:
        return False
    return schema.has_type_and_shape_inference_function and not schema.deprecated


def _imitate(node: onnx.NodeProto, operator: str) -> None:
    """Turn a node into the standard operator, with only the attributes that one has."""
    schema = onnx.defs.get_schema(operator)
    node.op_type, node.domain = operator, ""
    kept = [attribute for attribute in node.attribute if attribute.name in schema.attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    del node.input[len(schema.inputs) :]


def concrete_shapes(
    inputs: Sequence[onnx.ValueInfoProto], shapes: InputShapes, batch: int, scale: int = 1
) -> dict[str, tuple[int, ...]]:
    """A shape to run each input with: as given by the user, else as declared, with sizes for dynamic dimensions.

    The first dynamic axis of an input is the batch; further ones get 64 in an image (rank 4 and more), else 16, times `scale`.
    Equal names get equal sizes, and names such as `past + new` the sum of theirs.  Raises UsageError where a given shape does not
    fit.
    """
    symbols: dict[str, int] = {}
    result: dict[str, tuple[int, ...]] = {}
    declared = {value.name: declared_shape(value) or () for value in inputs}
    for name, given in ((name, shapes[name]) for name in declared if name in shapes):
        if not _fits(declared[name], given):
            raise UsageError(f"input shape {name}={','.join(map(str, given))} does not fit {list(declared[name])}")
        for dim, size in zip(declared[name], given, strict=True):
            if isinstance(dim, str):
                symbols.setdefault(dim, size)
    for shape in declared.values():
        for axis, dim in enumerate(shape):
            if isinstance(dim, str) and "+" not in dim:
                symbols.setdefault(dim, _size_of_axis(shape, axis, batch, scale))
    for name, shape in declared.items():
        sizes = []
        for axis, dim in enumerate(shape):
            added = _added_up(dim, symbols)
            size = _size_of_axis(shape, axis, batch, scale) if added is None else added
            sizes.append(symbols.setdefault(dim, size) if isinstance(dim, str) else size)
        result[name] = tuple(shapes.get(name, sizes))
    return result


def _size_of_axis(shape: Shape, axis: int, batch: int, scale: int) -> int:
    return batch if axis == 0 else (64 if len(shape) >= 4 else 16) * scale


def _added_up(dim: Dim, symbols: Mapping[str, int]) -> int | None:
    """A size, by number, name, or as a sum of those; None where it is unknown."""
    if not isinstance(dim, str) or dim in symbols:
        return symbols[dim] if isinstance(dim, str) else dim
    parts = [int(part) if part.isdecimal() else symbols.get(part) for part in map(str.strip, dim.split("+"))]
    return sum(part or 0 for part in parts) if None not in parts else None


def _fits(declared: Shape, given: Sequence[int]) -> bool:
    pairs = zip(declared, given, strict=False)
    return len(given) == len(declared) and all(not isinstance(dim, int) or dim == size for dim, size in pairs)
