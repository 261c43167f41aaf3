"""Shapes of all values, by ONNX's own shape inference on a copy of the graph without its weights.

Weights are left out so that models of any size cost the same and none meets protobuf's 2 GB limit (where onnx returns an
empty graph without a word).  Start reading at `infer_shapes`.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, helper

from .graph import Shape, declared_shape, element_count, operator_name

SMALL = 4096
"""Constants of up to this many elements keep their values: they may be shapes, and shapes are followed."""


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
        if element_count(tensor) <= SMALL:
            graph.initializer.add().CopyFrom(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    return copy


def infer_shapes(model: ModelProto, shape_like: dict[str, str] | None = None) -> dict[str, Shape]:
    """The shape of every value for which one can be inferred, as `graphprune.graph.Shape`.

    `shape_like` maps operators that ONNX does not know to standard ones with the same output shape.
    """
    inferred = inferred_model(model, shape_like or {})
    shapes: dict[str, Shape] = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        shape = declared_shape(value)
        if shape is not None:
            shapes[value.name] = shape
    return shapes


def inferred_model(model: ModelProto, shape_like: dict[str, str]) -> ModelProto:
    """The skeleton with value_info for every value whose type can be inferred."""
    copy = skeleton(model)
    kept = {value.name: value for value in model.graph.value_info}
    for node in copy.graph.node:
        name = operator_name(node)
        if name in shape_like:
            _imitate(node, shape_like[name])
        elif node.domain not in ("", "ai.onnx"):
            copy.graph.value_info.extend(kept[output] for output in node.output if output in kept)
    return onnx.shape_inference.infer_shapes(copy, check_type=False, strict_mode=False, data_prop=True)


def _imitate(node: onnx.NodeProto, operator: str) -> None:
    """Turn a node into the standard operator, with only the attributes that one has."""
    schema = onnx.defs.get_schema(operator)
    node.op_type, node.domain = operator, ""
    kept = [attribute for attribute in node.attribute if attribute.name in schema.attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    del node.input[len(schema.inputs) :]
