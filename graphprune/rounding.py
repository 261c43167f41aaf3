"""The proof of quantised graphs: where rounding and saturation would hide that two graphs compute the same.

Two things are done to both graphs.  A value that is rounded to integers is compared where it arises and then given to both from
the reference, so that one step of rounding does not travel (`rounded_values`, `given`).  And 8-bit weights are written
unsigned, since the kernels of processors without VNNI saturate sums of two products of unsigned and signed bytes, so that what
they compute depends on which channels are neighbours (`without_saturation`).  docs/decisions/0008-proof-of-quantised-graphs.md
has the measurements.  Start reading at `rounded_values`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .graph import Array, Graph, operator_name, to_array

FLIPPED = 1e-2
"""Largest share of the elements that may be one step apart."""

SUFFIX = "_given"

WEIGHTS = {
    "QLinearConv": (3, 5, 2),
    "QLinearMatMul": (3, 5, 2),
    "ConvInteger": (1, 3, 2),
    "MatMulInteger": (1, 3, 2),
    "com.microsoft::QGemm": (3, 5, 2),
    "com.microsoft::MatMulIntegerToFloat": (1, 5, 4),
}
"""The inputs that hold the weight, its zero point and that of the activations."""


def rounded_values(graph: Graph) -> list[str]:
    """The activations that QuantizeLinear rounds."""
    outputs = {value.name for value in graph.outputs}
    typed = {value.name for value in graph.model.graph.value_info}
    return [
        node.output[0]
        for node in graph.nodes
        if node.op_type == "QuantizeLinear"
        and node.input[0] not in graph.initializers
        and node.output[0] in typed
        and node.output[0] not in outputs
    ]


def given(model: ModelProto, values: Mapping[str, Array], types: dict[str, int]) -> None:
    """Let every reader of these values read an input NAME_given instead, in place; what writes them stays."""
    written = {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in values and name in written:
                node.input[index] = name + SUFFIX
    for name, array in values.items():
        model.graph.input.append(helper.make_tensor_value_info(name + SUFFIX, types[name], array.shape))


def flips(expected: Array, actual: Array) -> tuple[float, float]:
    """The share of elements that differ, and the tolerance; infinite where any differs by more than one step."""
    if expected.shape != actual.shape:
        return float("inf"), FLIPPED
    gap = np.abs(expected.astype(np.int64) - actual.astype(np.int64))
    share = float((gap > 0).mean()) if gap.size else 0.0
    return (float("inf") if gap.max(initial=0) > 1 else share), max(FLIPPED, 1.5 / max(1, gap.size))


def without_saturation(model: ModelProto) -> None:
    """Write signed 8-bit weights that meet unsigned activations as unsigned ones with a shifted zero point, in place."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        weight, point, data = WEIGHTS.get(operator_name(node), (0, 0, 0))
        if not weight or not _is_signed(tensors, node, weight) or _is_signed(tensors, node, data):
            continue
        while len(node.input) <= point:
            node.input.append("")
        if node.input[point] and node.input[point] not in tensors:
            continue
        node.input[weight] = _unsigned(model, tensors, node.input[weight])
        node.input[point] = _unsigned(model, tensors, node.input[point]) if node.input[point] else _middle(model, tensors)


def _is_signed(tensors: dict[str, TensorProto], node: NodeProto, index: int) -> bool:
    tensor = tensors.get(node.input[index]) if index < len(node.input) else None
    return tensor is not None and tensor.data_type == TensorProto.INT8


def _unsigned(model: ModelProto, tensors: dict[str, TensorProto], name: str) -> str:
    made = f"{name}_unsigned"
    if made not in tensors:
        array = to_array(tensors[name]).astype(np.int16) + 128
        tensors[made] = numpy_helper.from_array(np.asarray(array, np.uint8), made)
        model.graph.initializer.append(tensors[made])
    return made


def _middle(model: ModelProto, tensors: dict[str, TensorProto]) -> str:
    made = "graphprune_zero_point_128"
    if made not in tensors:
        tensors[made] = numpy_helper.from_array(np.asarray(128, np.uint8), made)
        model.graph.initializer.append(tensors[made])
    return made
