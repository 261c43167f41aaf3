"""Random networks out of many operator kinds, for the property test.

A `Builder` keeps a list of values with known shapes and appends nodes that fit them; Hypothesis draws every choice, so a failing
network shrinks to a small one.  Axis 1 is the channel axis of whatever operator wants one, also after a Transpose put another
axis there: the analysis may not rely on layouts.  Start reading at `networks`; the operators are in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

Draw = Callable[[st.SearchStrategy[Any]], Any]
Shape = tuple[int, ...]

BATCH = 2
LARGEST = 4096
"""No value has more elements than this."""


class Builder:
    """A network under construction."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.dynamic = draw(st.booleans())
        self.shapes: dict[str, Shape] = {}
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.silenced = False
        """Whether activations that a weight has just written are summed over without a weight."""
        self.summed = False
        """Whether any activation is summed over: the independent oracle has no weight to zero there."""

    # ---- choices -------------------------------------------------------------------------------

    def choose(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def channels(self, most: int = 8, step: int = 1) -> int:
        """A number of channels, a multiple of `step`; small networks have some that can go."""
        return int(self.choose([k * step for k in (4, 6, 3, 8, 5, 7, 2, 10, 12, 1) if k * step <= most] or [step]))

    def coin(self) -> bool:
        return bool(self.draw(st.booleans()))

    def divisor(self, *sizes: int) -> int:
        return int(self.choose([k for k in range(1, min(sizes) + 1) if all(size % k == 0 for size in sizes)]))

    def pick(self, ranks: tuple[int, ...], fits: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """A value of one of the ranks, mostly a recent one."""
        names = [name for name, shape in self.shapes.items() if len(shape) in ranks and fits(shape)]
        return self.choose(names[::-1][:6]) if names else None

    # ---- parts ---------------------------------------------------------------------------------

    def weight(self, *shape: int, scale: float | None = None, positive: bool = False) -> str:
        name = f"w{len(self.weights)}"
        spread = 1 / np.sqrt(max(1, prod(shape[1:]))) if scale is None else scale
        array = self.rng.standard_normal(shape) * spread + 0.1 * spread
        self.weights[name] = (np.abs(array) + 0.3 if positive else array).astype(np.float32)
        return name

    def integers(self, *values: int) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(values, np.int64)
        return name

    def add(self, operator: str, inputs: list[str], shape: Shape, domain: str = "", **attributes: Any) -> str:
        return self.add_many(operator, inputs, [shape], domain, **attributes)[0]

    def add_many(self, operator: str, inputs: list[str], shapes: list[Shape], domain: str = "", **attributes: Any) -> list[str]:
        names = [f"v{len(self.shapes) + k}" for k in range(len(shapes))]
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, domain=domain, **attributes))
        self.shapes.update(zip(names, shapes, strict=True))
        return names

    def target(self, *sizes: int) -> str:
        """A Reshape target, with the batch as written, copied or left open."""
        shape = list(sizes)
        if self.dynamic or self.coin():
            shape[0] = 0
        elif self.coin():
            shape[self.number(0, len(shape) - 1)] = -1
        return self.integers(*shape)

    def model(self, outputs: list[str]) -> ModelProto:
        batch = "N" if self.dynamic else BATCH
        values = {
            name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *self.shapes[name][1:]])
            for name in [name for name in self.shapes if name.startswith("x")] + outputs
        }
        for name in outputs:
            if self.shapes[name][0] != BATCH:
                values[name].type.tensor_type.ClearField("shape")
        inputs = [value for name, value in values.items() if name.startswith("x")]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "random", inputs, [values[name] for name in outputs], tensors)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


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
    inputs = [x, b.weight(out, c // groups, *kernel)] + ([b.weight(out, scale=0.5)] if b.coin() else [])
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
    vectors = [b.weight(c, scale=0.5), b.weight(c, scale=0.5), b.weight(c, scale=0.5), b.weight(c, scale=0.5, positive=True)]
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
        if len(other) == len(shape) and all(o in (1, s) for o, s in zip(other[1:], shape[1:], strict=True)) and other[0] == shape[0]
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
    end = b.choose([2**40, b.number(start + 1, size + 1)]) if step > 0 else b.choose([-(2**40), -size - 1, b.number(0, start) - 1 - size])
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


def without_rule(b: Builder) -> None:
    """An operator that the table does not know."""
    x = b.pick((2, 3, 4))
    if x is not None:
        b.add("QuickGelu", [x], b.shapes[x], domain="com.microsoft")


OFTEN = [conv, conv, conv, depthwise, matmul, residual, combine, concat, split, activation, batch_norm, reshape, reshape]
KINDS = [
    *OFTEN,
    *(shared_conv, transposed_conv, gemm, batched_matmul, einsum, attention, other_norm, prelu, scale, clip),
    *(squeeze_excitation, quantised_weight, broadcast, slice_, gather, shuffle, pad, tile, expand, transpose, flatten),
    *(squeeze, unsqueeze, depth_to_space, pool, resize, reduce, softmax, without_rule),
]


def _head(b: Builder, name: str) -> str:
    """A layer that reads all of a value, or all of one axis, so that there is something to prune."""
    n, *rest = b.shapes[name]
    if len(rest) == 1 and b.coin():
        name = b.add("Relu", [b.add("Gemm", [name, b.weight(rest[0], 5)], (n, 5))], (n, 5))
        rest = [5]
    kind = b.choose(["all", "all", "channels", "last"])
    if kind == "channels" and len(rest) > 1:
        return b.add("Conv", [name, b.weight(3, rest[0], *[1] * (len(rest) - 1))], (n, 3, *rest[1:]))
    if kind == "last" or prod(rest) > 1024:
        return b.add("MatMul", [name, b.weight(rest[-1], 3)], (n, *rest[:-1], 3))
    flat = b.add("Flatten", [name], (n, prod(rest))) if len(rest) > 1 else name
    return b.add("Gemm", [flat, b.weight(prod(rest), 3), b.weight(3)], (n, 3))


@dataclass
class Network:
    """A random network and how it can be masked."""

    model: ModelProto
    silenced: bool
    summed: bool


@st.composite
def networks(draw: Draw, least: int = 2, most: int = 12) -> Network:
    """A random network."""
    b = Builder(draw)
    b.shapes["x0"] = draw(st.sampled_from([(BATCH, 3, 6, 6), (BATCH, 4, 4, 8), (BATCH, 5, 6), (BATCH, 3, 8, 4)]))
    (conv if len(b.shapes["x0"]) == 4 or b.coin() else matmul)(b)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=least, max_size=most)):
        kind(b)
    read = {name for node in b.nodes for name in node.input}
    leaves = [name for name in b.shapes if name not in read][-3:]
    outputs = [_head(b, name) for name in leaves]
    return Network(b.model(outputs), b.silenced, b.summed)
