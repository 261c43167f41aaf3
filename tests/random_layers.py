"""Nodes with weights for random networks: contractions and what acts on each channel.  Start reading at `LAYERS`."""

from __future__ import annotations

from math import prod

import numpy as np
from network_builder import LARGEST, Builder
from onnx import helper

# ---- contractions ---------------------------------------------------------------------------------


def conv(b: Builder) -> None:
    x = b.pick((3, 4))
    if x is None:
        return
    n, c, *space = b.shapes[x]
    kernel = [b.choose([k for k in (1, 3) if k <= size + 2]) for size in space]
    groups = b.divisor(c)
    out = b.channels(12, groups)
    stride = b.choose([1, 1, 2])
    pads = [k // 2 for k in kernel]
    sizes = [(size + 2 * p - k) // stride + 1 for size, p, k in zip(space, pads, kernel, strict=True)]
    inputs = [x, b.weight(out, c // groups, *kernel)] + ([b.vector(out)] if b.coin() else [])
    b.add("Conv", inputs, (n, out, *sizes), group=groups, pads=pads * 2, strides=[stride] * len(space), kernel_shape=kernel)


def depthwise(b: Builder) -> None:
    x = b.pick((4,), lambda shape: shape[1] <= 8)
    if x is None:
        return
    n, c, *space = b.shapes[x]
    out = c * b.number(1, 2)
    b.add("Conv", [x, b.weight(out, 1, 3, 3), b.weight(out, scale=0.5)], (n, out, *space), group=c, pads=[1] * 4)


def shared_conv(b: Builder) -> None:
    """One weight, applied twice."""
    x = b.pick((4,))
    if x is None:
        return
    n, c, *space = b.shapes[x]
    w, bias = b.weight(c, c, 1, 1), b.weight(c, scale=0.5)
    first = b.add("Conv", [x, w, bias], (n, c, *space))
    b.add("Conv", [b.add("Tanh", [first], (n, c, *space)), w, bias], (n, c, *space))


def transposed_conv(b: Builder) -> None:
    x = b.pick((4,), lambda s: prod(s) * 4 <= LARGEST and s[1] <= 12)
    if x is None:
        return
    n, c, h, w = b.shapes[x]
    groups = b.divisor(c)
    out = b.channels(max(1, 8 // groups))
    inputs = [x, b.weight(c, out, 2, 2)] + ([b.weight(out * groups, scale=0.5)] if b.coin() else [])
    b.add("ConvTranspose", inputs, (n, out * groups, h * 2, w * 2), group=groups, strides=[2, 2], kernel_shape=[2, 2])


def gemm(b: Builder) -> None:
    x = b.pick((2,))
    if x is None:
        return
    n, k = b.shapes[x]
    out, swap = b.channels(), b.coin()
    w = b.weight(out, k) if swap else b.weight(k, out)
    bias = b.choose([None, (out,), (1, out), (1,)])
    inputs = [x, w] + ([] if bias is None else [b.weight(*bias, scale=0.5)])
    b.add("Gemm", inputs, (n, out), transB=int(swap), alpha=b.choose([1.0, 0.5]))


def matmul(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    *lead, k = b.shapes[x]
    out = b.channels()
    y = b.add("MatMul", [x, b.weight(k, out)], (*lead, out))
    if b.coin():
        b.add("Add", [b.weight(out, scale=0.5), y] if b.coin() else [y, b.weight(out, scale=0.5)], (*lead, out))


def batched_matmul(b: Builder) -> None:
    """A weight with a leading axis for each head."""
    x = b.pick((4,))
    if x is None:
        return
    n, h, t, k = b.shapes[x]
    out = b.channels()
    b.add("MatMul", [x, b.weight(b.choose([1, h]), k, out, scale=0.5)], (n, h, t, out))


def einsum(b: Builder) -> None:
    x = b.pick((4,))
    if x is None:
        return
    n, c, h, w = b.shapes[x]
    out = b.channels()
    if b.coin():
        b.add("Einsum", [x, b.weight(out, c, scale=0.5)], (n, out, h, w), equation="nchw,oc->nohw")
    else:
        b.add("Einsum", [x, b.weight(c, w, out, scale=0.5)], (n, h, out), equation="nchw,cwo->nho")


def attention(b: Builder) -> None:
    """Self-attention: query, key and value projected, split into heads, joined again."""
    x = b.pick((3,))
    if x is None:
        return
    n, t, d = b.shapes[x]
    heads, size = b.number(1, 3), b.number(1, 4)
    parts = []
    for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        flat = b.add("MatMul", [x, b.weight(d, heads * size)], (n, t, heads * size))
        flat = b.add("Add", [flat, b.weight(heads * size, scale=0.5)], (n, t, heads * size))
        grid = b.add("Reshape", [flat, b.target(n, t, heads, size)], (n, t, heads, size))
        shape = tuple((n, t, heads, size)[k] for k in order)
        parts.append(b.add("Transpose", [grid], shape, perm=list(order)))
    scores = b.add("MatMul", parts[:2], (n, heads, t, t))
    soft = b.add("Softmax", [scores], (n, heads, t, t), axis=-1)
    mixed = b.add("MatMul", [soft, parts[2]], (n, heads, t, size))
    back = b.add("Transpose", [mixed], (n, t, heads, size), perm=[0, 2, 1, 3])
    b.add("Reshape", [back, b.target(n, t, heads * size)], (n, t, heads * size))
    b.silenced = True


# ---- per channel ----------------------------------------------------------------------------------


def batch_norm(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    c = b.shapes[x][1]
    vectors = [b.vector(c), b.vector(c), b.vector(c), b.weight(c, scale=0.5, positive=True)]
    b.add("BatchNormalization", [x, *vectors], b.shapes[x])


def other_norm(b: Builder) -> None:
    x = b.pick((3, 4), lambda s: prod(s[2:]) >= 4)
    if x is None:
        return
    shape = b.shapes[x]
    c = shape[1]
    kind = b.choose(["instance", "group", "layer"])
    if kind == "instance":
        b.add("InstanceNormalization", [x, b.weight(c, scale=0.5), b.weight(c, scale=0.5)], shape, epsilon=1e-2)
    elif kind == "group":
        vectors = [b.weight(c, scale=0.5), b.weight(c, scale=0.5)]
        b.add("GroupNormalization", [x, *vectors], shape, num_groups=b.divisor(c), epsilon=1e-2)
    else:
        b.add("LayerNormalization", [x, b.weight(shape[-1], scale=0.5)], shape, epsilon=1e-2)


def activation(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    operator = b.choose(["Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh", "Neg", "Exp", "Identity", "Softplus", "Gelu"])
    if operator == "Exp":
        x = b.add("Tanh", [x], b.shapes[x])
    b.add(operator, [x], b.shapes[x])


def prelu(b: Builder) -> None:
    x = b.pick((3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    slope = b.choose([(shape[1], *[1] * (len(shape) - 2)), (1,), shape[1:], (1, shape[1], *[1] * (len(shape) - 2))])
    b.add("PRelu", [x, b.weight(*slope, scale=0.5)], shape)


def scale(b: Builder) -> None:
    """A constant operand, broadcast in one of several ways."""
    x = b.pick((2, 3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    tail = b.number(0, len(shape))
    other = [size if b.coin() else 1 for size in shape[len(shape) - tail :]]
    if len(other) == len(shape):
        other[0] = 1
    inputs = [x, b.weight(*other, scale=0.5)]
    b.add(b.choose(["Mul", "Add", "Sub", "Max"]), inputs if b.coin() else inputs[::-1], shape)


def clip(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    low = f"k{len(b.weights)}"
    b.weights[low] = np.float32(-0.7)
    b.add("Clip", [x, low], b.shapes[x])


def squeeze_excitation(b: Builder) -> None:
    x = b.pick((4,))
    if x is None:
        return
    n, c, *space = b.shapes[x]
    r = b.channels(4)
    if b.coin():
        pooled = b.add("GlobalAveragePool", [x], (n, c, 1, 1))
    else:
        pooled = b.add("ReduceMean", [x, b.integers(2, 3)], (n, c, 1, 1), keepdims=1)
    small = b.add("Relu", [b.add("Conv", [pooled, b.weight(r, c, 1, 1)], (n, r, 1, 1))], (n, r, 1, 1))
    gate = b.add("Conv", [small, b.weight(c, r, 1, 1), b.weight(c, scale=0.5)], (n, c, 1, 1))
    b.add("Mul", [x, b.add("Sigmoid", [gate], (n, c, 1, 1))], (n, c, *space))


def quantised_weight(b: Builder) -> None:
    x = b.pick((4,))
    if x is None:
        return
    n, c, *space = b.shapes[x]
    out = b.channels()
    name = f"q{len(b.weights)}"
    b.weights[name] = b.rng.integers(-90, 100, (out, c, 1, 1)).astype(np.int8)
    zero = f"z{len(b.weights)}"
    b.weights[zero] = np.zeros(out, np.int8)
    step = b.weight(out, scale=0.01, positive=True)
    w = f"d{len(b.nodes)}"
    b.nodes.append(helper.make_node("DequantizeLinear", [name, step, zero], [w], name=f"n{len(b.nodes)}", axis=0))
    b.add("Conv", [b.add("Tanh", [x], b.shapes[x]), w], (n, out, *space))


LAYERS = (
    *(shared_conv, transposed_conv, gemm, batched_matmul, einsum, attention, other_norm, prelu, scale, clip),
    *(squeeze_excitation, quantised_weight),
)
"""Those that are drawn as often as any other kind."""
