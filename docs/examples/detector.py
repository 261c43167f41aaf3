"""Writes the network of docs/tutorials/detector.md: a small detector with two scales that are merged, and one head for both.

Random weights. Run: python docs/examples/detector.py detector.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

CLASSES = 4
SHAPES = {
    "stem": (16, 3, 3, 3),
    "down1": (32, 16, 3, 3),
    "res1": (32, 32, 3, 3),
    "down2": (64, 32, 3, 3),
    "res2": (64, 64, 3, 3),
    "lateral": (32, 64, 1, 1),
    "merge": (48, 64, 3, 3),
    "deep": (48, 64, 1, 1),
    "tower": (48, 48, 3, 3),
    "boxes": (4, 48, 1, 1),
    "classes": (CLASSES, 48, 1, 1),
}


def conv(name: str, source: str, result: str = "", relu: bool = True, stride: int = 1) -> list[NodeProto]:
    """The convolution with the weights `name`, padded to keep the image's size, and a ReLU."""
    result, pad = result or name, SHAPES[name][2] // 2
    attributes = {"pads": [pad] * 4, "strides": [stride] * 2}
    done = f"{result}_conv" if relu else result
    nodes = [helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [done], name=f"{result}_conv", **attributes)]
    return [*nodes, helper.make_node("Relu", [done], [result], name=f"{result}_relu")] if relu else nodes


def head(source: str, scale: str) -> list[NodeProto]:
    """Boxes and classes of one scale as [batch, positions, 4 + classes]; both scales share the weights."""
    return [
        *conv("tower", source, f"tower_{scale}"),
        *conv("boxes", f"tower_{scale}", f"boxes_{scale}", relu=False),
        *conv("classes", f"tower_{scale}", f"logits_{scale}", relu=False),
        helper.make_node("Sigmoid", [f"logits_{scale}"], [f"classes_{scale}"]),
        helper.make_node("Concat", [f"boxes_{scale}", f"classes_{scale}"], [f"joined_{scale}"], axis=1),
        helper.make_node("Reshape", [f"joined_{scale}", "rows"], [f"rows_{scale}"]),
        helper.make_node("Transpose", [f"rows_{scale}"], [f"found_{scale}"], perm=[0, 2, 1]),
    ]


def network() -> onnx.ModelProto:
    """The network: image [1, 3, 64, 64] to detections [1, 320, 8]."""
    nodes = [
        *conv("stem", "image", stride=2),
        *conv("down1", "stem", stride=2),
        *conv("res1", "down1"),
        helper.make_node("Add", ["down1", "res1"], ["fine"]),
        *conv("down2", "fine", stride=2),
        *conv("res2", "down2"),
        helper.make_node("Add", ["down2", "res2"], ["coarse"]),
        *conv("lateral", "coarse"),
        helper.make_node("Resize", ["lateral", "", "twice"], ["up"], mode="nearest"),
        helper.make_node("Concat", ["up", "fine"], ["both"], axis=1),
        *conv("merge", "both"),
        *conv("deep", "coarse"),
        *head("merge", "fine"),
        *head("deep", "coarse"),
        helper.make_node("Concat", ["found_fine", "found_coarse"], ["detections"], axis=1),
    ]
    rng = np.random.default_rng(0)
    constants = {"rows": np.array([1, 4 + CLASSES, -1]), "twice": np.array([1, 1, 2, 2], np.float32)}
    for name, shape in SHAPES.items():
        constants[f"{name}.weight"] = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        constants[f"{name}.bias"] = rng.standard_normal(shape[0]).astype(np.float32) / 10
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])
    detections = helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, 320, 4 + CLASSES])
    graph = helper.make_graph(nodes, "detector", [image], [detections], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


if __name__ == "__main__":
    onnx.save(network(), sys.argv[1])
