"""The loops of contractions: activations are NHWC, weights are packed for register tiles; what does not fill a tile is padded.

Start reading at `convolution`; `tvm_operators` says which operators become what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx, topi

from .tvm_pairs import PAIR
from .tvm_tiles import Tile

Expr = Any
"""A te tensor, or a relax expression: tvm ships no types."""

TILE = "graphprune.tile"
"""The block annotation that `tvm_schedule` goes by: positions, lanes."""

PAIRS = "graphprune.pairs"
"""The same for contractions that take two inputs at a time: positions, outputs."""


def pack(weight: NDArray[Any], lanes: int) -> NDArray[Any]:
    """[..., outputs] as [outputs / lanes, ..., lanes], with zeros for what does not fill the last block."""
    padded = padded_to(weight, lanes, axis=weight.ndim - 1)
    blocks = padded.reshape(*padded.shape[:-1], -1, lanes)
    return np.moveaxis(blocks, -2, 0)


def pack_pairs(weight: NDArray[Any], outputs: int) -> NDArray[Any]:
    """[..., inputs, channels] as [..., inputs / 2, outputs, 2], with zeros for what does not fill the outputs."""
    padded = padded_to(weight, outputs, axis=weight.ndim - 1)
    return np.moveaxis(padded.reshape(*padded.shape[:-2], -1, PAIR, outputs), -2, -1)


def padded_to(weight: NDArray[Any], step: int, axis: int) -> NDArray[Any]:
    """A weight with zeros at the end of an axis, whose size becomes a multiple of `step`."""
    widths = [(0, 0)] * weight.ndim
    widths[axis] = (0, -weight.shape[axis] % step)
    return np.pad(weight, widths)


def _ceil_to(size: int, step: int) -> int:
    return -(-size // step) * step


# ---- loops ----------------------------------------------------------------------------------------

Geometry = tuple[list[int], list[int], list[int]]
"""Strides, pads (top, left, bottom, right) and dilations."""


def convolution(data: Expr, weight: Expr, geometry: Geometry, sizes: list[int], groups: int, tile: Tile) -> Expr:
    """NHWC convolution; `weight` is [blocks, KH, KW, inputs of a group, lanes], `sizes` are height, width and channels."""
    height, width, channels = sizes
    blocks, *kernel, depth, lanes = (int(size) for size in weight.shape)
    columns = _ceil_to(width, tile.positions)
    window, r, s = _windows(data, geometry, kernel, columns, int(data.shape[3]))
    i = te.reduce_axis((0, depth), "i")
    per_group = channels // groups

    def element(n: Any, h: Any, w: Any, c: Any) -> Any:
        first = 0 if groups == 1 else c // lanes * lanes // per_group * depth
        return te.sum(window(n, h, w, first + i) * weight[c // lanes, r, s, i, c % lanes], axis=[r, s, i])

    shape = (data.shape[0], height, columns, blocks * lanes)
    full = te.compute(shape, element, name="contraction", attrs={TILE: [tile.positions, lanes]})
    return _cut(full, [data.shape[0], height, width, channels])


def paired_convolution(data: Expr, weight: Expr, geometry: Geometry, sizes: list[int], positions: int) -> Expr:
    """NHWC convolution, two inputs at a time; `weight` is [KH, KW, pairs of inputs, outputs, 2], sizes are as above."""
    height, width, channels = sizes
    *kernel, depth, outputs, _ = (int(size) for size in weight.shape)
    columns = _ceil_to(width, positions)
    window, r, s = _windows(data, geometry, kernel, columns, depth * PAIR)
    i, j = te.reduce_axis((0, depth), "i"), te.reduce_axis((0, PAIR), "j")

    def element(n: Any, h: Any, w: Any, c: Any, half: Any) -> Any:
        return te.sum(window(n, h, w, i * PAIR + half) * weight[r, s, i, c, half], axis=[r, s, i])

    shape = (data.shape[0], height, columns, outputs)
    halves = te.compute((*shape, PAIR), element, name="contraction", attrs={PAIRS: [positions, outputs]})
    full = te.compute(shape, lambda *index: te.sum(halves[(*index, j)], axis=j), name="joined")
    return _cut(full, [data.shape[0], height, width, channels])


def depthwise_convolution(data: Expr, weight: Expr, geometry: Geometry, sizes: list[int], tile: Tile) -> Expr:
    """NHWC depthwise convolution with one filter a channel; `weight` is [KH, KW, channels, padded to lanes]."""
    height, width, channels = sizes
    *kernel, filled = (int(size) for size in weight.shape)
    columns = _ceil_to(width, tile.positions)
    window, r, s = _windows(data, geometry, kernel, columns, filled)

    def element(n: Any, h: Any, w: Any, c: Any) -> Any:
        return te.sum(window(n, h, w, c) * weight[r, s, c], axis=[r, s])

    full = te.compute(
        (data.shape[0], height, columns, filled), element, name="contraction", attrs={TILE: [tile.positions, tile.lanes]}
    )
    return _cut(full, [data.shape[0], height, width, channels])


def product(data: Expr, weight: Expr, shape: list[Any], tile: Tile, axis: int) -> Expr:
    """Product of [..., rows, depth] with packed [..., blocks, depth, lanes]; rows lie along `axis`, behind it is only 1."""
    blocks, depth, lanes = (int(size) for size in list(weight.shape)[-3:])
    outer, rows = [*shape[:axis], *shape[axis + 1 : -1]], shape[axis]
    if isinstance(rows, tirx.IntImm) and int(rows) % tile.positions:
        filled = _ceil_to(int(rows), tile.positions)
        after = [0] * len(shape)
        after[axis] = filled - int(rows)
        data = topi.nn.pad(data, [0] * len(shape), after, name="padded")
        rows = filled
    k = te.reduce_axis((0, depth), "k")
    shared = len(weight.shape) == 3

    def element(*index: Any) -> Any:
        *first, row, c = index
        place = (*first[:axis], row, *first[axis:], k)
        return te.sum(data[place] * weight[(*(() if shared else first), c // lanes, k, c % lanes)], axis=k)

    full = te.compute([*outer, rows, blocks * lanes], element, name="contraction", attrs={TILE: [tile.positions, lanes]})
    if axis == len(shape) - 2:
        return _cut(full, shape)

    def moved(*index: Any) -> Any:
        *first, c = index
        return full[(*first[:axis], *first[axis + 1 :], first[axis], c)]

    return te.compute(shape, moved, name="cut")


def packed_as_it_runs(data: Expr, lanes: int) -> Expr:
    """[..., depth, outputs] as [..., outputs / lanes, depth, lanes], with zeros for what does not fill the last block."""
    *outer, depth, outputs = (int(size) for size in data.shape)

    def element(*index: Any) -> Any:
        *first, block, k, lane = index
        column = block * lanes + lane
        value = data[(*first, k, column)]
        return value if outputs % lanes == 0 else tirx.if_then_else(column < outputs, value, tirx.const(0, data.dtype))

    return te.compute([*outer, _ceil_to(outputs, lanes) // lanes, depth, lanes], element, name="packed")


def softmax(data: Expr) -> Expr:
    """Along the last axis; the exponentials are kept, since they are read twice."""
    *outer, length = data.shape
    k, j = te.reduce_axis((0, length), "k"), te.reduce_axis((0, length), "j")
    largest = te.compute(outer, lambda *row: te.max(data[(*row, k)], axis=k), name="largest")
    below = te.compute(data.shape, lambda *index: data[index] - largest[index[:-1]], name="below")
    powers = topi.fast_exp(below)
    kept = te.compute(data.shape, lambda *index: powers[index], name="exponentials")
    total = te.compute(outer, lambda *row: te.sum(kept[(*row, j)], axis=j), name="total")
    return te.compute(data.shape, lambda *index: kept[index] / total[index[:-1]], name="softmax")


def _windows(
    data: Expr, geometry: Geometry, kernel: list[int], columns: int, channels: int
) -> tuple[Callable[..., Expr], Any, Any]:
    """What an output's place reads of a channel, and the axes of the kernel that it goes by."""
    strides, _, dilations = geometry
    source = _padded(data, geometry, kernel, columns, channels)
    r, s = te.reduce_axis((0, kernel[0]), "r"), te.reduce_axis((0, kernel[1]), "s")

    def window(n: Any, h: Any, w: Any, c: Any) -> Expr:
        return source[n, h * strides[0] + r * dilations[0], w * strides[1] + s * dilations[1], c]

    return window, r, s


def _padded(data: Expr, geometry: Geometry, kernel: list[int], columns: int, channels: int) -> Expr:
    """The input with its border of zeros, wide enough for `columns` outputs; itself where nothing has to be added."""
    strides, (top, left, bottom, right), dilations = geometry
    needed = (columns - 1) * strides[1] + (kernel[1] - 1) * dilations[1] + 1
    right = max(right, needed - left - int(data.shape[2]))
    more = channels - int(data.shape[3])
    if not any((top, left, bottom, right, more)):
        return data
    return topi.nn.pad(data, [0, top, left, 0], [0, bottom, right, more], name="padded")


def _cut(full: Expr, shape: list[Any]) -> Expr:
    """The outputs that were asked for; the schedule inlines this."""
    if all(str(a) == str(b) for a, b in zip(full.shape, shape, strict=True)):
        return full
    return te.compute(shape, lambda *index: full[index], name="cut")
