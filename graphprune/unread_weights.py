"""Transposes, Reshapes and Casts of weights that stay in their file: done when a weight is read, without memory of their own.

Start reading at `fold_in_file`, and at `with_types_of_file` for the way back.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, helper

from .external import cast, is_external, reshaped, turned, type_in_file, uncast
from .folding import ties_of
from .graph import (
    FLOATS,
    Graph,
    attributes,
    copy_model,
    free_name,
    item_bits,
    node_reads,
    operator_name,
    replace_nodes,
    value_names,
)

_CAST_ALIKE = (*FLOATS, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32)
"""Types that numpy casts to floats as ONNX Runtime does."""

_RESHAPES = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def fold_in_file(graph: Graph) -> bool:
    """Turn, reshape and cast weights that stay in their file only when they are read: such nodes need no memory.

    Returns whether there were any.  Casts of casts are left, since the first may have rounded.
    """
    ties, outputs = ties_of(graph.model), {value.name for value in graph.outputs}
    tensors = {name: tensor for name, tensor in graph.initializers.items() if name not in graph.overridable}
    rest: list[NodeProto] = []
    for node in graph.nodes:
        fixed = len(node.output) == 1 and all(name in tensors for name in node.input) and not {*node.output} & (ties | outputs)
        view = _view(graph, node, tensors[node.input[0]]) if fixed and node.input else None
        if view is None:
            rest.append(node)
            continue
        view.name = node.output[0]
        tensors[view.name] = view
        graph.model.graph.initializer.append(view)
    if len(rest) == len(graph.nodes):
        return False
    replace_nodes(graph.model.graph, rest)
    return True


def _view(graph: Graph, node: NodeProto, tensor: TensorProto) -> TensorProto | None:
    """What a node that only turns, reshapes or casts gives of a weight in a file; None for others."""
    if not is_external(tensor) or item_bits(tensor.data_type) < 8:
        return None
    shape = graph.shapes.get(node.output[0], (None,)) if operator_name(node) in _RESHAPES else (None,)
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) == len(shape):
        return reshaped(tensor, sizes)
    if operator_name(node) == "Transpose":
        axes = range(len(tensor.dims))
        order = attributes(node).get("perm", axes[::-1])
        return turned(tensor, order) if sorted(order) == list(axes) else None
    if operator_name(node) == "Cast" and type_in_file(tensor) == tensor.data_type:
        wanted = attributes(node)["to"]
        return cast(tensor, wanted) if wanted in FLOATS and tensor.data_type in _CAST_ALIKE else None
    return None


def with_types_of_file(model: ModelProto) -> ModelProto:
    """The model with weights in the type that their file has, where that is smaller: a Cast makes of it what it made before."""
    wide = {tensor.name: tensor for tensor in model.graph.initializer if is_external(tensor) and _smaller_in_file(tensor)}
    if not wide:
        return model
    taken = value_names(model.graph)
    result = copy_model(model, without=["initializer", "node"])
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in wide)
    for node in model.graph.node:
        for name in sorted(node_reads(node) & wide.keys()):
            tensor = wide.pop(name)
            stored = uncast(tensor)
            stored.name = free_name(stored.name, taken)
            result.graph.initializer.append(stored)
            result.graph.node.append(helper.make_node("Cast", [stored.name], [name], name=f"Cast_{name}", to=tensor.data_type))
        result.graph.node.append(node)
    return result


def _smaller_in_file(tensor: TensorProto) -> bool:
    return item_bits(type_in_file(tensor)) < item_bits(tensor.data_type)
