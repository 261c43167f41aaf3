"""Constant nodes as initializers.  Start reading at `lift_constants`."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, TensorProto, helper

from .graph import operator_name, replace_nodes


def lift_constants(graph: GraphProto) -> None:
    """Turn Constant nodes of the main graph into initializers of the same name."""
    rest = []
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is None:
            rest.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(rest) != len(graph.node):
        replace_nodes(graph, rest)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node, without a name; None for other nodes."""
    if operator_name(node) != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        copy = TensorProto()
        copy.CopyFrom(value)
        return copy
    kinds = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64, "value_string": TensorProto.STRING}
    for name, kind in kinds.items():
        if attribute.name == name:
            return helper.make_tensor("", kind, [], [value])
        if attribute.name == f"{name}s":
            return helper.make_tensor("", kind, [len(value)], list(value))
    return None
