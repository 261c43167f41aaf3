"""Writes a network with MaxRoiPool, for docs/adding-an-operator.md.

Run: python docs/examples/roi_pool/pooled.py pooled.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def pooled() -> onnx.ModelProto:
    """Conv (3 -> 8), MaxRoiPool, Conv (8 -> 5), with random weights."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3), np.float32), "before.weight"),
        numpy_helper.from_array(rng.standard_normal((5, 8, 1, 1), np.float32), "after.weight"),
        numpy_helper.from_array(np.array([[0, 0, 0, 7, 7], [0, 2, 3, 11, 9]], np.float32), "regions"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "before.weight"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxRoiPool", ["features", "regions"], ["pooled"], pooled_shape=[4, 4]),
        helper.make_node("Conv", ["pooled", "after.weight"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 12, 12])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [2, 5, 4, 4])]
    graph = helper.make_graph(nodes, "pooled", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


if __name__ == "__main__":
    onnx.save(pooled(), sys.argv[1])
