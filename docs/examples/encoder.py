"""Writes the network of docs/tutorials/transformer.md: an embedding, two pre-norm encoder layers, a classifier; random weights.

Run: python docs/examples/encoder.py encoder.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx

WIDTH, HEADS, SIZE, INNER, LAYERS, TOKENS, CLASSES = 64, 8, 8, 256, 2, 1000, 3


def layer(i: int) -> str:
    """One encoder layer in ONNX's text form: x{i} to x{i+1}."""
    return f"""
        n{i} = LayerNormalization <axis = -1> (x{i}, norm1_{i}_scale, norm1_{i}_bias)
        q{i} = MatMul (n{i}, query_{i})  k{i} = MatMul (n{i}, key_{i})  v{i} = MatMul (n{i}, value_{i})
        qr{i} = Reshape (q{i}, heads)  kr{i} = Reshape (k{i}, heads)  vr{i} = Reshape (v{i}, heads)
        qh{i} = Transpose <perm = [0, 2, 1, 3]> (qr{i})
        kh{i} = Transpose <perm = [0, 2, 3, 1]> (kr{i})
        vh{i} = Transpose <perm = [0, 2, 1, 3]> (vr{i})
        s{i} = MatMul (qh{i}, kh{i})
        ss{i} = Mul (s{i}, scale)
        p{i} = Softmax <axis = -1> (ss{i})
        o{i} = MatMul (p{i}, vh{i})
        ot{i} = Transpose <perm = [0, 2, 1, 3]> (o{i})
        om{i} = Reshape (ot{i}, merged)
        a{i} = MatMul (om{i}, out_{i})
        y{i} = Add (x{i}, a{i})
        m{i} = LayerNormalization <axis = -1> (y{i}, norm2_{i}_scale, norm2_{i}_bias)
        u{i} = MatMul (m{i}, up_{i})
        ub{i} = Add (u{i}, up_{i}_bias)
        g{i} = Gelu (ub{i})
        d{i} = MatMul (g{i}, down_{i})
        x{i + 1} = Add (y{i}, d{i})"""


def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of each weight."""
    inner = HEADS * SIZE
    found: dict[str, tuple[int, ...]] = {"embedding": (TOKENS, WIDTH), "classifier": (WIDTH, CLASSES)}
    for i in range(LAYERS):
        found |= {f"norm{n}_{i}_{part}": (WIDTH,) for n in (1, 2) for part in ("scale", "bias")}
        found |= {f"{name}_{i}": (WIDTH, inner) for name in ("query", "key", "value")}
        found |= {f"out_{i}": (inner, WIDTH), f"up_{i}": (WIDTH, INNER), f"up_{i}_bias": (INNER,), f"down_{i}": (INNER, WIDTH)}
    return found


def network() -> onnx.ModelProto:
    """The network: tokens int64 [batch, 16] to logits [batch, 3]."""
    text = f"""
        <ir_version: 9, opset_import: ["" : 20]>
        encoder (int64[batch,16] tokens) => (float[batch,{CLASSES}] logits)
        <int64[4] heads = {{0, 0, {HEADS}, {SIZE}}}, int64[3] merged = {{0, 0, -1}}, float scale = {{{SIZE**-0.5}}}> {{
        x0 = Gather (embedding, tokens)
        {"".join(layer(i) for i in range(LAYERS))}
        pooled = ReduceMean <keepdims = 0> (x{LAYERS}, axes)
        logits = MatMul (pooled, classifier)
        }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes().items():
        weight = rng.standard_normal(shape) / np.sqrt(shape[0]) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    return model


if __name__ == "__main__":
    onnx.save(network(), sys.argv[1])
