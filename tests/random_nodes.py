"""One function for each kind of node that a random network may have; each appends nodes that fit what is there, or nothing.

Start reading at `KINDS`.
"""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import strategies as st
from network_builder import BATCH, LARGEST, Builder
from onnx import helper

# ---- contractions -------------------------------------------------------------------------------


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


# ---- per channel --------------------------------------------------------------------------------


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


# ---- combination --------------------------------------------------------------------------------


def combine(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    others = [name for name, other in b.shapes.items() if other == shape]
    b.add(b.choose(["Add", "Mul", "Sub", "Max", "Sum"]), [x, b.choose(others[::-1])], shape)


def residual(b: Builder) -> None:
    x = b.pick((4,))
    if x is None:
        return
    n, c, *space = b.shapes[x]
    inner = b.channels()
    y = b.add("Conv", [x, b.weight(inner, c, 1, 1)], (n, inner, *space))
    y = b.add("Relu", [y], (n, inner, *space))
    y = b.add("Conv", [y, b.weight(c, inner, 1, 1), b.weight(c, scale=0.5)], (n, c, *space))
    b.add("Add", [x, y] if b.coin() else [y, x], (n, c, *space))


def broadcast(b: Builder) -> None:
    """Two activations of which one has axes of size 1 or is of lower rank."""
    x = b.pick((3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    others = [
        name
        for name, other in b.shapes.items()
        if len(other) == len(shape) and other[0] == shape[0] and all(o in (1, k) for o, k in zip(other, shape, strict=True))
    ]
    b.add(b.choose(["Add", "Mul"]), [x, b.choose(others)], shape)


def concat(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    axis = b.number(1, len(shape) - 1)
    rest = shape[:axis] + shape[axis + 1 :]
    others = [name for name, s in b.shapes.items() if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == rest]
    parts = [x, *[b.choose(others[::-1]) for _ in range(b.number(1, 2))]]
    total = sum(b.shapes[name][axis] for name in parts)
    if total > 24:
        return
    b.add("Concat", parts, (*shape[:axis], total, *shape[axis + 1 :]), axis=b.choose([axis, axis - len(shape)]))


def split(b: Builder) -> None:
    x = b.pick((2, 3, 4), lambda s: s[1] >= 2)
    if x is None:
        return
    n, c, *space = b.shapes[x]
    if b.coin() and c % 2 == 0:
        b.add_many("Split", [x], [(n, c // 2, *space)] * 2, axis=1, num_outputs=2)
    else:
        cut = b.number(1, c - 1)
        b.add_many("Split", [x, b.integers(cut, c - cut)], [(n, cut, *space), (n, c - cut, *space)], axis=1)


# ---- movement -----------------------------------------------------------------------------------


def slice_(b: Builder) -> None:
    x = b.pick((2, 3, 4), lambda s: s[1] >= 2)
    if x is None:
        return
    shape = b.shapes[x]
    axis = b.number(1, len(shape) - 1)
    size = shape[axis]
    step = b.choose([1, 1, 2, 3, -1, -2])
    start = b.number(0, size - 1)
    last = b.number(start + 1, size + 1) if step > 0 else b.number(0, start) - 1 - size
    end = b.choose([2**40, last] if step > 0 else [-(2**40), -size - 1, last])
    taken = len(range(size)[slice(start, None if step < 0 and end <= -size - 1 else end, step)])
    if not taken:
        return
    inputs = [x, b.integers(start), b.integers(end), b.integers(axis), b.integers(step)]
    b.add("Slice", inputs, (*shape[:axis], taken, *shape[axis + 1 :]))


def gather(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    axis = b.number(1, len(shape) - 1)
    size = shape[axis]
    indices = b.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=size + 2))
    b.add("Gather", [x, b.integers(*indices)], (*shape[:axis], len(indices), *shape[axis + 1 :]), axis=axis)


def shuffle(b: Builder) -> None:
    x = b.pick((4,), lambda s: s[1] >= 4)
    if x is None:
        return
    n, c, h, w = b.shapes[x]
    g = b.divisor(c)
    y = b.add("Reshape", [x, b.target(n, g, c // g, h, w)], (n, g, c // g, h, w))
    y = b.add("Transpose", [y], (n, c // g, g, h, w), perm=[0, 2, 1, 3, 4])
    b.add("Reshape", [y, b.target(n, c, h, w)], (n, c, h, w))


def pad(b: Builder) -> None:
    x = b.pick((4,))
    if x is None:
        return
    shape = b.shapes[x]
    before = [0] + [b.number(-1 if size > 2 else 0, 2) if b.coin() else 0 for size in shape[1:]]
    after = [0] + [b.number(-1 if size > 2 else 0, 2) if b.coin() else 0 for size in shape[1:]]
    made = tuple(size + p + q for size, p, q in zip(shape, before, after, strict=True))
    if prod(made) <= LARGEST:
        mode = b.choose(["constant", "constant", "edge"]) if min(before + after) >= 0 else "constant"
        b.add("Pad", [x, b.integers(*before, *after)], made, mode=mode)


def tile(b: Builder) -> None:
    x = b.pick((2, 3, 4), lambda s: prod(s) * 2 <= LARGEST and s[1] <= 8)
    if x is None:
        return
    shape = b.shapes[x]
    axis = b.number(1, len(shape) - 1)
    repeats = [2 if k == axis else 1 for k in range(len(shape))]
    b.add("Tile", [x, b.integers(*repeats)], tuple(s * r for s, r in zip(shape, repeats, strict=True)))


def expand(b: Builder) -> None:
    x = b.pick((4,), lambda s: 1 in s[1:])
    if x is None:
        return
    shape = b.shapes[x]
    made = tuple(b.number(1, 4) if size == 1 and k else size for k, size in enumerate(shape))
    if prod(made) <= LARGEST:
        b.add("Expand", [x, b.integers(1, *made[1:])], made)


def transpose(b: Builder) -> None:
    x = b.pick((3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    order = [0, *b.draw(st.permutations(range(1, len(shape))))]
    b.add("Transpose", [x], tuple(shape[k] for k in order), perm=order)


def reshape(b: Builder) -> None:
    """Any regrouping of what follows the batch: splits, joins and cuts across."""
    x = b.pick((2, 3, 4))
    if x is None:
        return
    n, *rest = b.shapes[x]
    sizes, left = [], prod(rest)
    for _ in range(b.number(0, 2)):
        sizes.append(b.divisor(left))
        left //= sizes[-1]
    sizes.append(left)
    if max(sizes) <= 512:
        b.add("Reshape", [x, b.target(n, *sizes)], (n, *sizes))


def flatten(b: Builder) -> None:
    x = b.pick((3, 4), lambda s: prod(s[1:]) <= 256)
    if x is not None:
        n, *rest = b.shapes[x]
        b.add("Flatten", [x], (n, prod(rest)), axis=1)


def computed_reshape(b: Builder) -> None:
    """What the legacy exporter writes: sizes read at run time, with what is known as constants."""
    x = b.pick((3, 4))
    if x is None:
        return
    n, c, *rest = b.shapes[x]
    shape = b.add("Shape", [x], (2 + len(rest),), keep=False)
    parts = [b.add("Gather", [shape, b.integers(0)], (1,), keep=False, axis=0)]
    if b.coin():
        parts.append(b.add("Slice", [shape, b.integers(1), b.integers(2)], (1,), keep=False))
    else:
        parts.append(b.integers(c))
    parts.append(b.integers(-1))
    target = b.add("Concat", parts, (3,), keep=False, axis=0)
    b.add("Reshape", [x, target], (n, c, prod(rest)))


def resize_to_another(b: Builder) -> None:
    """Upsampling to the size of another value, as feature pyramids do; channels are copied from the value itself."""
    x, y = b.pick((4,)), b.pick((4,))
    if x is None or y is None:
        return
    n, c, *_ = b.shapes[x]
    height, width = b.shapes[y][2:]
    if n != b.shapes[y][0] or n * c * height * width > LARGEST:
        return
    own, other = (b.add("Shape", [name], (4,), keep=False) for name in (x, y))
    front = b.add("Slice", [own, b.integers(0), b.integers(2)], (2,), keep=False)
    back = b.add("Slice", [other, b.integers(2), b.integers(4)], (2,), keep=False)
    sizes = b.add("Concat", [front, back], (4,), keep=False, axis=0)
    b.add("Resize", [x, "", "", sizes], (n, c, height, width), mode="nearest")


def slice_two(b: Builder) -> None:
    x = b.pick((3, 4), lambda s: s[1] >= 2 and s[2] >= 2)
    if x is None:
        return
    n, c, h, *rest = b.shapes[x]
    inputs = [x, b.integers(1, 0), b.integers(h, c - 1), b.integers(2, 1)]
    b.add("Slice", inputs, (n, c - 1, h - 1, *rest))


def gather_grid(b: Builder) -> None:
    """Indices of rank 2: the axis becomes two."""
    x = b.pick((2, 3), lambda s: s[1] >= 2)
    if x is None:
        return
    n, c, *rest = b.shapes[x]
    name = f"k{len(b.weights)}"
    b.weights[name] = b.rng.integers(-c, c, (2, 2)) if b.coin() else np.arange(c // 2 * 2).reshape(2, -1)
    b.add("Gather", [x, name], (n, *b.weights[name].shape, *rest), axis=1)


def where(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    axis = b.number(1, len(shape) - 1)
    inner = (shape[axis], *[1] * (len(shape) - axis - 1))
    name = f"m{len(b.weights)}"
    b.weights[name] = b.rng.random(inner) < 0.5
    inputs = [x, b.weight(*inner, scale=0.5)]
    b.add("Where", [name, *(inputs if b.coin() else inputs[::-1])], shape)


def concat_constant(b: Builder) -> None:
    """A class token: a constant joined to an axis."""
    x = b.pick((3, 4), lambda s: s[0] == BATCH)
    if x is None or b.dynamic:
        return
    shape = b.shapes[x]
    axis = b.number(1, len(shape) - 1)
    extra = (*shape[:axis], b.number(1, 2), *shape[axis + 1 :])
    parts = [x, b.weight(*extra, scale=0.5)]
    b.add("Concat", parts if b.coin() else parts[::-1], (*shape[:axis], shape[axis] + extra[axis], *shape[axis + 1 :]), axis=axis)


def split_three(b: Builder) -> None:
    x = b.pick((2, 3, 4), lambda s: s[-1] >= 5)
    if x is None:
        return
    *front, last = b.shapes[x]
    chunk = -(-last // 3)
    b.add_many("Split", [x], [(*front, size) for size in (chunk, chunk, last - 2 * chunk)], axis=-1, num_outputs=3)


def gated(b: Builder) -> None:
    """One half of the channels times the sigmoid of the other."""
    x = b.pick((3, 4), lambda s: s[1] % 2 == 0)
    if x is None:
        return
    n, c, *rest = b.shapes[x]
    left, right = b.add_many("Split", [x], [(n, c // 2, *rest)] * 2, axis=1, num_outputs=2)
    b.add("Mul", [left, b.add("Sigmoid", [right], (n, c // 2, *rest))], (n, c // 2, *rest))


def squeeze(b: Builder) -> None:
    x = b.pick((3, 4), lambda s: 1 in s[1:])
    if x is None:
        return
    shape = b.shapes[x]
    axis = b.choose([k for k, size in enumerate(shape) if size == 1 and k])
    b.add("Squeeze", [x, b.integers(axis)], (*shape[:axis], *shape[axis + 1 :]))


def unsqueeze(b: Builder) -> None:
    x = b.pick((2, 3))
    if x is None:
        return
    shape = b.shapes[x]
    axis = b.number(1, len(shape))
    b.add("Unsqueeze", [x, b.integers(axis)], (*shape[:axis], 1, *shape[axis:]))


def depth_to_space(b: Builder) -> None:
    if b.coin():
        x = b.pick((4,), lambda s: s[1] % 4 == 0)
        if x is not None:
            n, c, h, w = b.shapes[x]
            b.add("DepthToSpace", [x], (n, c // 4, h * 2, w * 2), blocksize=2, mode=b.choose(["DCR", "CRD"]))
    else:
        x = b.pick((4,), lambda s: s[2] % 2 == 0 and s[3] % 2 == 0 and s[1] <= 6)
        if x is not None:
            n, c, h, w = b.shapes[x]
            b.add("SpaceToDepth", [x], (n, c * 4, h // 2, w // 2), blocksize=2)


# ---- over an axis -------------------------------------------------------------------------------


def pool(b: Builder) -> None:
    x = b.pick((4,), lambda s: min(s[2:]) >= 2)
    if x is None:
        return
    n, c, h, w = b.shapes[x]
    b.add(b.choose(["MaxPool", "AveragePool"]), [x], (n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])


def resize(b: Builder) -> None:
    x = b.pick((4,), lambda s: prod(s) * 4 <= LARGEST)
    if x is None:
        return
    n, c, h, w = b.shapes[x]
    if b.dynamic or b.coin():
        name = f"k{len(b.weights)}"
        b.weights[name] = np.array([1, 1, 2, 2], np.float32)
        b.add("Resize", [x, "", name], (n, c, h * 2, w * 2), mode=b.choose(["nearest", "linear"]))
    else:
        b.add("Resize", [x, "", "", b.integers(n, c, h + 1, w)], (n, c, h + 1, w), mode="nearest")


def reduce(b: Builder) -> None:
    x = b.pick((3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    axis, keep = b.number(1, len(shape) - 1), b.coin()
    made = tuple(1 if k == axis else size for k, size in enumerate(shape) if keep or k != axis)
    operator = b.choose(["ReduceSum", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceMax"])
    b.add(operator, [x, b.integers(axis)], made, keepdims=int(keep))
    if operator in ("ReduceSum", "ReduceL1", "ReduceL2"):
        b.summed = True


def softmax(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is not None:
        b.add(b.choose(["Softmax", "LogSoftmax"]), [x], b.shapes[x], axis=b.choose([1, -1]))


def recurrent(b: Builder) -> None:
    """The batch plays the part of time; a projection reads all directions."""
    x = b.pick((3,), lambda shape: shape[2] <= 16)
    if x is None:
        return
    steps, samples, size = b.shapes[x]
    operator, gates, biases = b.choose([("LSTM", 4, 8), ("GRU", 3, 6), ("RNN", 1, 2)])
    hidden, directions = b.channels(6), b.number(1, 2)
    inputs = [x, b.weight(directions, gates * hidden, size), b.weight(directions, gates * hidden, hidden)]
    inputs += [b.weight(directions, biases * hidden, scale=0.5)] if b.coin() else [""]
    if b.coin():
        inputs += ["", b.weight(directions, samples, hidden)]
    direction = "bidirectional" if directions == 2 else b.choose(["forward", "reverse"])
    inputs = inputs if inputs[-1] else inputs[:-1]
    made = (steps, directions, samples, hidden)
    y = b.add(operator, inputs, made, False, hidden_size=hidden, direction=direction)
    y = b.add("Transpose", [y], (steps, samples, directions, hidden), False, perm=[0, 2, 1, 3])
    b.add("Reshape", [y, b.target(steps, samples, directions * hidden)], (steps, samples, directions * hidden))


def gather_nd(b: Builder) -> None:
    x = b.pick((3, 4), lambda shape: shape[1] > 1)
    if x is None or b.dynamic:
        return
    n, positions, *rest = b.shapes[x]
    name = f"k{len(b.weights)}"
    b.weights[name] = b.rng.integers(0, positions, (n, 3, 1))
    b.add("GatherND", [x, name], (n, 3, *rest), batch_dims=1)


def scatter_nd(b: Builder) -> None:
    x = b.pick((3, 4), lambda shape: shape[1] > 1)
    if x is None or b.dynamic:
        return
    n, positions, *rest = b.shapes[x]
    name = f"k{len(b.weights)}"
    b.weights[name] = np.stack([np.arange(n), b.rng.integers(0, positions, n)], axis=1)
    b.add("ScatterND", [x, name, b.weight(n, *rest, scale=0.5)], (n, positions, *rest))


def repeat_heads(b: Builder) -> None:
    """Copies along a new axis that is then joined with the one before it, as grouped-query attention does."""
    x = b.pick((3, 4), lambda shape: prod(shape) * 2 <= LARGEST)
    if x is None or b.dynamic:
        return
    n, heads, *rest = b.shapes[x]
    y = b.add("Unsqueeze", [x, b.integers(2)], (n, heads, 1, *rest), False)
    y = b.add("Expand", [y, b.integers(n, heads, 2, *rest)], (n, heads, 2, *rest), False)
    b.add("Reshape", [y, b.target(n, heads * 2, *rest)], (n, heads * 2, *rest))


def without_rule(b: Builder) -> None:
    """An operator that the table does not know."""
    x = b.pick((2, 3, 4))
    if x is not None:
        b.add("SampleOp", [x], b.shapes[x], domain="com.microsoft")


OFTEN = [conv, conv, conv, depthwise, matmul, residual, combine, concat, split, activation, batch_norm, reshape, reshape]
KINDS = [
    *OFTEN,
    *(shared_conv, transposed_conv, gemm, batched_matmul, einsum, attention, other_norm, prelu, scale, clip),
    *(squeeze_excitation, quantised_weight, broadcast, slice_, gather, shuffle, pad, tile, expand, transpose, flatten),
    *(computed_reshape, resize_to_another, slice_two, gather_grid, where, concat_constant, split_three, gated),
    *(recurrent, gather_nd, scatter_nd, repeat_heads),
    *(squeeze, unsqueeze, depth_to_space, pool, resize, reduce, softmax, without_rule),
]
