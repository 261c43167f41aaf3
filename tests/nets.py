"""Ten-line networks in ONNX's text form, with seeded weights.

A name between the angle brackets that has no value becomes a weight: `<float[8,3,3,3] w>`.  Weights are random and asymmetric
(never all ones, no two channels alike), so that a wrong index shows.  Start reading at `net`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphprune.graph import to_array

HEAD = '<ir_version: 10, opset_import: ["" : {opset}{domains}]>\n'


def net(text: str, opset: int = 17, seed: int = 0, domains: tuple[str, ...] = ()) -> ModelProto:
    """The model that a graph in text form describes: `net (float[N,3,8,8] x) => (float[N,4] y) <weights> { nodes }`."""
    extra = "".join(f', "{domain}" : 1' for domain in domains)
    model = onnx.parser.parse_model(HEAD.format(opset=opset, domains=extra) + text)
    fill_weights(model, seed)
    return model


def fill_weights(model: ModelProto, seed: int = 0) -> None:
    """Turn every declared value that no node writes into an initializer with random asymmetric values."""
    graph = model.graph
    written = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    declared = [value for value in graph.value_info if value.name not in written]
    rest = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.value_info if v.name in written]
    for value in declared:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        array = values(shape, kind.elem_type, _purpose(model, value.name), seed + zlib.crc32(value.name.encode()))
        graph.initializer.append(numpy_helper.from_array(array, value.name))
    del graph.value_info[:]
    graph.value_info.extend(rest)


QUANTISED = {
    "QLinearConv": {1: "step", 4: "step", 5: "zero", 6: "step"},
    "QLinearMatMul": {1: "step", 4: "step", 5: "zero", 6: "step"},
    "QGemm": {1: "step", 4: "step", 5: "zero", 7: "step"},
    "QLinearAdd": {1: "step", 4: "step", 6: "step"},
    "MatMulInteger": {3: "zero"},
    "ConvInteger": {3: "zero"},
    "MatMulIntegerToFloat": {2: "step", 3: "step", 5: "zero"},
    "MatMulNBits": {2: "step"},
}
"""Which operands are scales, and which are the zero points of weights."""


def _purpose(model: ModelProto, name: str) -> str:
    """What a weight is read as, where that restricts its values."""
    for node in model.graph.node:
        for index, read in enumerate(node.input):
            if read != name:
                continue
            if node.op_type == "BatchNormalization" and index in (1, 4):
                return "positive"
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1:
                return "step"
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 2:
                return "zero"
            if node.op_type in QUANTISED and index in QUANTISED[node.op_type]:
                return QUANTISED[node.op_type][index]
            if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum") and index == 1:
                return "weight"
    return ""


def values(shape: list[int], kind: int, purpose: str, seed: int) -> np.ndarray:
    """Random values of no symmetry; `purpose` restricts them."""
    rng = np.random.default_rng(seed)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if purpose == "positive":
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    if purpose == "step":
        return rng.uniform(0.01, 0.05, shape).astype(dtype)
    if purpose == "zero":
        return np.zeros(shape, dtype)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(-60 if np.dtype(dtype).kind == "i" else 0, 60, shape).astype(dtype)  # more may saturate in kernels
    scale = 1 / np.sqrt(max(1, np.prod(shape[1:]))) if purpose == "weight" else 0.5
    return ((rng.standard_normal(shape) + 0.2) * scale).astype(dtype)


def on_disk(model: ModelProto, folder: Path) -> Path:
    """A file of the model, with all of its weights in another."""
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    """The initializers by name, wherever they are."""
    return {tensor.name: np.array(to_array(tensor)) for tensor in model.graph.initializer}


def write(model: ModelProto, path: Path) -> Path:
    """Write a model as it is, without graphprune."""
    path.write_bytes(model.SerializeToString())
    return path


def initializer(model: ModelProto, name: str) -> np.ndarray:
    """The value of one initializer."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def set_initializer(model: ModelProto, name: str, array: np.ndarray) -> None:
    """Overwrite one initializer."""
    tensor: TensorProto = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def attribute(model: ModelProto, operator: str, name: str, which: int = 0) -> object:
    """An attribute of the `which`-th node of an operator."""
    node = [node for node in model.graph.node if node.op_type == operator][which]
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def operators(model: ModelProto) -> list[str]:
    """The operators of a graph, in order."""
    return [node.op_type for node in model.graph.node]


# ---- situations that several files use ------------------------------------------------------------


def plain() -> ModelProto:
    """Two convolutions in a row, pooled and classified."""
    return net("""
        plain (float[N,3,8,8] x) => (float[N,5] y)
        <float[8,3,3,3] w1, float[8] b1, float[12,8,3,3] w2, float[12] b2, float[5,12] w3, float[5] b3> {
            c1 = Conv(x, w1, b1)
            r1 = Relu(c1)
            c2 = Conv(r1, w2, b2)
            r2 = Relu(c2)
            p = GlobalAveragePool(r2)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, w3, b3)
        }""")


def residual() -> ModelProto:
    """A residual block with batch normalisation: stem and block are coupled, the inner width is free."""
    return net("""
        residual (float[N,3,8,8] x) => (float[N,4] y)
        <float[8,3,3,3] stem, float[8] s1, float[8] o1, float[8] m1, float[8] v1,
         float[6,8,3,3] inner, float[6] s2, float[6] o2, float[6] m2, float[6] v2,
         float[8,6,3,3] outer, float[8] s3, float[8] o3, float[8] m3, float[8] v3, float[4,8] head, float[4] bias> {
            c1 = Conv<pads = [1,1,1,1]>(x, stem)
            n1 = BatchNormalization(c1, s1, o1, m1, v1)
            r1 = Relu(n1)
            c2 = Conv<pads = [1,1,1,1]>(r1, inner)
            n2 = BatchNormalization(c2, s2, o2, m2, v2)
            r2 = Relu(n2)
            c3 = Conv<pads = [1,1,1,1]>(r2, outer)
            n3 = BatchNormalization(c3, s3, o3, m3, v3)
            sum = Add(r1, n3)
            r3 = Relu(sum)
            p = GlobalAveragePool(r3)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, head, bias)
        }""")


def block() -> ModelProto:
    """A residual block with a product before and one behind; channels of `a` are pruned."""
    return net("""
        block (float[N,6,8,8] x) => (float[N,5] y)
        <float[6,6,3,3] s, float[6] t, float[12,6,3,3] a, float[12] b, float[6,12,1,1] c, float[6] d, float[5,6] h, float[5] i> {
            u = Conv<pads = [1, 1, 1, 1]>(x, s, t)
            v = Relu(u)
            p = Conv<pads = [1, 1, 1, 1]>(v, a, b)
            q = Relu(p)
            r = Conv(q, c, d)
            w = Add(v, r)
            z = Relu(w)
            g = GlobalAveragePool(z)
            f = Flatten(g)
            y = Gemm<transB = 1>(f, h, i)
        }""")


def wide() -> ModelProto:
    """Enough channels that a target can be met closely."""
    return net("""
        wide (float[N,3,8,8] x) => (float[N,10] y)
        <float[48,3,3,3] w1, float[48] b1, float[64,48,3,3] w2, float[64] b2, float[48,64,1,1] w3, float[10,48] w4> {
            a = Conv<pads = [1,1,1,1]>(x, w1, b1)
            r = Relu(a)
            b = Conv<pads = [1,1,1,1]>(r, w2, b2)
            s = Relu(b)
            c = Conv(s, w3)
            d = Add(c, r)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, w4)
        }""")
