"""Nodes for random networks that move what is there to other places.  Start reading at `MOVEMENTS`."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import strategies as st
from network_builder import BATCH, LARGEST, Builder


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


MOVEMENTS = (
    *(slice_, gather, shuffle, pad, tile, expand, transpose, flatten, computed_reshape, resize_to_another, slice_two),
    *(gather_grid, where, concat_constant, split_three, gated),
)
"""Those that are drawn as often as any other kind."""

AXES = (squeeze, unsqueeze, depth_to_space)
"""Those that make and join axes."""
