"""A Llama-shaped ONNX network whose weights are a sparse file, of hidden size 8192.  Start reading at `llama`."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

WIDTH, HEADS, GROUPS, HEAD, INNER, VOCABULARY, TOKENS = 8192, 64, 8, 128, 28672, 32000, 16


class Writer:
    """A graph under construction; weights are places in a file."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.size = 0
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        """An initializer of half-precision numbers in the file."""
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.location), ("offset", self.size), ("length", 2 * prod(shape))):
            tensor.external_data.add(key=key, value=str(value))
        self.size += 2 * prod(shape)
        self.tensors.append(tensor)
        return name

    def constant(self, name: str, value: object, dtype: type = np.int64) -> str:
        """A small initializer with its value."""
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Append a node with one result."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}.{operator}", **attributes))
        return output


def normalized(w: Writer, x: str, name: str) -> str:
    """RMS normalisation, as exporters write it out."""
    square = w.node("Mul", [x, x], f"{name}.square")
    mean = w.node("ReduceMean", [square, "last"], f"{name}.mean", keepdims=1)
    root = w.node("Sqrt", [w.node("Add", [mean, "epsilon"], f"{name}.shifted")], f"{name}.root")
    return w.node("Mul", [w.node("Div", [x, root], f"{name}.divided"), w.weight(f"{name}.weight", WIDTH)], f"{name}.out")


def layer(w: Writer, x: str, name: str) -> str:
    """Grouped-query attention and a gated MLP."""
    a = normalized(w, x, f"{name}.norm1")
    sizes = {"q": HEADS * HEAD, "k": GROUPS * HEAD, "v": GROUPS * HEAD}
    part = {
        key: w.node("MatMul", [a, w.weight(f"{name}.{key}.weight", WIDTH, size)], f"{name}.{key}") for key, size in sizes.items()
    }
    for key in "qkv":
        split = w.node("Reshape", [part[key], "queries" if key == "q" else "groups"], f"{name}.{key}.split")
        part[key] = w.node("Transpose", [split], f"{name}.{key}.heads", perm=[0, 2, 1, 3])
    for key in "kv":
        wide = w.node("Expand", [w.node("Unsqueeze", [part[key], "two"], f"{name}.{key}.new"), "repeat"], f"{name}.{key}.wide")
        part[key] = w.node("Reshape", [wide, "joined"], f"{name}.{key}.repeated")
    scores = w.node("MatMul", [part["q"], w.node("Transpose", [part["k"]], f"{name}.kt", perm=[0, 1, 3, 2])], f"{name}.scores")
    mixed = w.node("MatMul", [w.node("Softmax", [scores], f"{name}.softmax", axis=-1), part["v"]], f"{name}.mixed")
    flat = w.node("Reshape", [w.node("Transpose", [mixed], f"{name}.back", perm=[0, 2, 1, 3]), "flat"], f"{name}.flat")
    out = w.node("MatMul", [flat, w.weight(f"{name}.o.weight", HEADS * HEAD, WIDTH)], f"{name}.o")
    x = w.node("Add", [x, out], f"{name}.middle")
    b = normalized(w, x, f"{name}.norm2")
    gate = w.node("MatMul", [b, w.weight(f"{name}.gate.weight", WIDTH, INNER)], f"{name}.gate")
    up = w.node("MatMul", [b, w.weight(f"{name}.up.weight", WIDTH, INNER)], f"{name}.up")
    silu = w.node("Mul", [gate, w.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
    down = w.weight(f"{name}.down.weight", INNER, WIDTH)
    return w.node("Add", [x, w.node("MatMul", [w.node("Mul", [silu, up], f"{name}.gated"), down], f"{name}.down")], f"{name}.end")


def llama(layers: int, path: Path) -> ModelProto:
    """Write the network; the file with its weights is as long as they would be, and empty."""
    w = Writer(f"{path.name}.data")
    for name, value in {
        "queries": [1, TOKENS, HEADS, HEAD],
        "groups": [1, TOKENS, GROUPS, HEAD],
        "repeat": [1, GROUPS, HEADS // GROUPS, TOKENS, HEAD],
        "joined": [1, HEADS, TOKENS, HEAD],
        "flat": [1, TOKENS, HEADS * HEAD],
        "two": [2],
        "last": [-1],
    }.items():
        w.constant(name, value)
    w.constant("epsilon", 1e-5, np.float16)
    x = w.node("Gather", [w.weight("embed.weight", VOCABULARY, WIDTH), "ids"], "embedded")
    for k in range(layers):
        x = layer(w, x, f"layers.{k}")
    w.node("MatMul", [normalized(w, x, "norm"), w.weight("head.weight", WIDTH, VOCABULARY)], "logits")
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, TOKENS])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT16, [1, TOKENS, VOCABULARY])]
    graph = helper.make_graph(w.nodes, "llama", inputs, outputs, w.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    with path.with_name(w.location).open("wb") as file:
        file.truncate(w.size)
    return model
