"""Writes the network of the drawing in docs/concepts.md: a residual block with a depthwise convolution, then a Concat.

Run: python docs/examples/residual_block.py residual_block.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SHAPES = {
    "stem.weight": (8, 3, 3, 3),
    "expand.weight": (16, 8, 1, 1),
    "depthwise.weight": (16, 1, 3, 3),
    "project.weight": (8, 16, 1, 1),
    "branch.weight": (4, 8, 1, 1),
    "head.weight": (10, 12, 1, 1),
}


def conv(name: str, source: str, **attributes: object) -> NodeProto:
    """A convolution called `name`, whose result has the same name."""
    return helper.make_node("Conv", [source, f"{name}.weight"], [name], name=name, **attributes)


def network() -> onnx.ModelProto:
    """The network, with random weights."""
    nodes = [
        conv("stem", "image", pads=[1, 1, 1, 1]),
        conv("expand", "stem"),
        conv("depthwise", "expand", pads=[1, 1, 1, 1], group=16),
        conv("project", "depthwise"),
        helper.make_node("Add", ["stem", "project"], ["add"], name="add"),
        conv("branch", "add"),
        helper.make_node("Concat", ["add", "branch"], ["concat"], name="concat", axis=1),
        conv("head", "concat"),
    ]
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in SHAPES.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])
    scores = helper.make_tensor_value_info("head", TensorProto.FLOAT, ["batch", 10, 16, 16])
    graph = helper.make_graph(nodes, "residual_block", [image], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


if __name__ == "__main__":
    onnx.save(network(), sys.argv[1])
