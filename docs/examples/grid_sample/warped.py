"""Writes a network with GridSample, for docs/adding-an-operator.md.

Run: python docs/examples/grid_sample/warped.py warped.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def warped() -> onnx.ModelProto:
    """Conv (3 -> 8), GridSample, Conv (8 -> 5), with random weights."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3), np.float32), "before.weight"),
        numpy_helper.from_array(rng.standard_normal((5, 8, 1, 1), np.float32), "after.weight"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "before.weight"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("GridSample", ["features", "grid"], ["sampled"], align_corners=1),
        helper.make_node("Conv", ["sampled", "after.weight"], ["scores"]),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 12, 12]),
        helper.make_tensor_value_info("grid", TensorProto.FLOAT, ["batch", 6, 6, 2]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 5, 6, 6])]
    graph = helper.make_graph(nodes, "warped", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


if __name__ == "__main__":
    onnx.save(warped(), sys.argv[1])
