"""One function for each kind of node that a random network may have; each appends nodes that fit what is there, or nothing.

Start reading at `KINDS`.
"""

from __future__ import annotations

from math import prod

import numpy as np
from network_builder import LARGEST, Builder
from random_layers import LAYERS, activation, batch_norm, conv, depthwise, matmul
from random_movement import AXES, MOVEMENTS, reshape

# ---- combination ----------------------------------------------------------------------------------


def combine(b: Builder) -> None:
    x = b.pick((2, 3, 4))
    if x is None:
        return
    shape = b.shapes[x]
    others = [name for name, other in b.shapes.items() if other == shape]
    b.add(b.choose(["Add", "Mul", "Sub", "Max", "Sum"]), [x, b.choose(others[::-1])], shape)


def residual(b: Builder) -> None:
    """A block of two or three layers; others may read what is inside, or nobody, so that the block can leave as a whole."""
    x = b.pick((4,))
    if x is None:
        return
    n, c, *space = b.shapes[x]
    inner, read = b.channels(), b.coin()
    y = b.add("Conv", [x, b.weight(inner, c, 1, 1)], (n, inner, *space), read)
    y = b.add("Relu", [y], (n, inner, *space), read)
    if b.coin():
        deeper = b.channels()
        y = b.add("Conv", [y, b.weight(deeper, inner, 3, 3)], (n, deeper, *space), read, pads=[1] * 4)
        y, inner = b.add("Sigmoid", [y], (n, deeper, *space), read), deeper
    bias = [b.weight(c, scale=0.5)] if b.coin() else []
    y = b.add("Conv", [y, b.weight(c, inner, 1, 1), *bias], (n, c, *space), read)
    if b.coin():
        y = b.add("BatchNormalization", [y, *(b.weight(c, positive=k in (0, 3)) for k in range(4))], (n, c, *space), False)
    b.add("Add", [x, y] if b.coin() else [y, x], (n, c, *space))


def mlp(b: Builder) -> None:
    """Two products on the last axis and what they are added to, perhaps by way of another layout."""
    x = b.pick((3, 4))
    if x is None:
        return
    *lead, c = b.shapes[x]
    hidden = b.channels()
    y = b.add("MatMul", [x, b.weight(c, hidden)], (*lead, hidden), False)
    y = b.add("Tanh", [y], (*lead, hidden), False)
    y = b.add("MatMul", [y, b.weight(hidden, c)], (*lead, c), False)
    if b.coin():
        y = b.add("Add", [y, b.weight(c, scale=0.5)], (*lead, c), False)
    if b.coin() and len(lead) > 1:
        back = [*range(len(lead) - 1), len(lead), len(lead) - 1]
        x = b.add("Transpose", [x], (*lead[:-1], c, lead[-1]), perm=back)
        y = b.add("Transpose", [y], (*lead[:-1], c, lead[-1]), False, perm=back)
    b.add("Add", [x, y] if b.coin() else [y, x], b.shapes[x])


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


# ---- over an axis ---------------------------------------------------------------------------------


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


OFTEN = [conv, conv, conv, depthwise, matmul, residual, mlp, combine, concat, split, activation, batch_norm, reshape, reshape]
KINDS = [
    *(*OFTEN, *LAYERS, broadcast, *MOVEMENTS, recurrent, gather_nd, scatter_nd, repeat_heads),
    *(*AXES, pool, resize, reduce, softmax, without_rule),
]
