"""Contractions for TVM: convolutions and products with constant weights, packed so that a register tile reads them in order.

relax's own lowering reads weights with large strides and leaves no room for register tiles.  Here the activations are NHWC, the
weights of `width` neighbouring outputs lie together, and what does not fill a tile is padded, so that the hot loops carry no
conditions (the scheme of Georganas et al. 2018, "Anatomy of high-performance deep learning convolutions on SIMD architectures").
Start reading at `lowerings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx, topi
from tvm.ir import GenericConst

from .tvm_tiles import Machine, Tile, depthwise_tile, product_tile

Expr = Any
"""A relax expression, or a te tensor: tvm ships no types."""

TILE = "graphprune.tile"
"""The block annotation that `tvm_schedule` goes by: positions, lanes."""

OUT_EWISE_FUSABLE = 4
"""TVM's kind of operator whose elementwise consumers may join it."""


def lowerings(machine: Machine) -> dict[str, Callable[[Any, Any], Any]]:
    """For `relax.transform.LegalizeOps`: how convolutions and products become loops on this machine."""
    found = {
        "relax.nn.conv2d": _convolution,
        "relax.nn.conv2d_transpose": _transposed,
        "relax.matmul": _product,
        "relax.sigmoid": _elementwise("sigmoid", _sigmoid),
        "relax.nn.silu": _elementwise("silu", lambda x: topi.multiply(x, _sigmoid(x))),
        "relax.tanh": _elementwise("tanh", topi.fast_tanh),
    }
    return {name: _or_usual(lower, machine) for name, lower in found.items()}


def _or_usual(lower: Callable[[Machine, Any, Any], Expr | None], machine: Machine) -> Callable[[Any, Any], Expr]:
    def lowering(builder: Any, call: Any) -> Expr:
        lowered = lower(machine, builder, call)
        return call.op.get_attr("FLegalize")(builder, call) if lowered is None else lowered

    return lowering


def _elementwise(name: str, compute: Callable[[Any], Any]) -> Callable[[Machine, Any, Any], Expr | None]:
    """Functions by polynomials, which make vectors; TVM's own call the C library for each element."""

    def lower(machine: Machine, builder: Any, call: Any) -> Expr | None:
        return builder.call_te(compute, call.args[0], primfunc_name_hint=name) if _is_float(call) else None

    return lower


def _sigmoid(x: Expr) -> Expr:
    return topi.divide(1.0, topi.add(1.0, topi.fast_exp(topi.negative(x))))


def _convolution(machine: Machine, builder: Any, call: Any) -> Expr | None:
    """A convolution in NHWC with constant OHWI weights and static sizes; None where it is not one."""
    attrs = call.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    sizes = _static(call.ty.shape, skip=1)
    if layouts != ("NHWC", "OHWI", "NHWC") or sizes is None or not _is_float(call) or not isinstance(call.args[1], GenericConst):
        return None
    weight = call.args[1].value.numpy()
    groups = int(attrs.groups)
    geometry = [int(size) for size in attrs.strides], [int(pad) for pad in attrs.padding], [int(d) for d in attrs.dilation]
    _, out_width, channels = sizes
    if weight.shape[3] == 1 and groups == channels and _static(call.args[0].ty.shape, skip=1) is not None:
        if int(call.args[0].ty.shape[3]) != channels:
            return None
        tile = depthwise_tile(machine, out_width, channels)
        packed = _padded_to(weight[..., 0].transpose(1, 2, 0), tile.lanes, axis=2)
        return _call(builder, "depthwise", lambda x, w: depthwise_convolution(x, w, geometry, sizes, tile), call.args[0], packed)
    tile = product_tile(machine, out_width, channels // groups)
    if groups > 1 and (channels // groups) % tile.lanes:
        return None
    packed = pack(weight.transpose(1, 2, 3, 0), tile.lanes)
    return _call(builder, "convolution", lambda x, w: convolution(x, w, geometry, sizes, groups, tile), call.args[0], packed)


def _transposed(machine: Machine, builder: Any, call: Any) -> Expr | None:
    """A transposed convolution that layouts made NHWC: a convolution of the input with zeros in between, kernels flipped.

    With groups, or pads beyond the kernel, it goes through NCHW, which is all that TVM has.
    """
    attrs, (data, weight) = call.attrs, call.args
    if attrs.data_layout != "NHWC":
        return None
    strides, pads, dilations = ([int(n) for n in sizes] for sizes in (attrs.strides, attrs.padding, attrs.dilation))
    more, groups = [int(n) for n in attrs.output_padding], int(attrs.groups)
    sizes = _static(call.ty.shape, skip=1)
    reach = [dilation * (int(size) - 1) for dilation, size in zip(dilations, list(weight.ty.shape)[2:], strict=True)]
    border = [reach[k % 2] - pads[k] + (more[k - 2] if k > 1 else 0) for k in range(4)]
    packable = groups == 1 and min(border) >= 0 and isinstance(weight, GenericConst) and _is_float(call)
    if sizes is None or not packable:
        return builder.call_te(
            lambda x, w: _transposed_in_nchw(x, w, (strides, pads, dilations), more, groups),
            data,
            weight,
            primfunc_name_hint="transposed",
        )
    tile = product_tile(machine, sizes[1], sizes[2])
    packed = pack(np.flip(weight.value.numpy(), (2, 3)).transpose(2, 3, 0, 1), tile.lanes)
    geometry = [1, 1], border, dilations

    def compute(x: Any, w: Any) -> Any:
        spread = topi.nn.dilate(x, [1, *strides, 1], name="spread")
        return convolution(spread, w, geometry, sizes, 1, tile)

    return _call(builder, "transposed", compute, data, packed)


def _transposed_in_nchw(data: Expr, weight: Expr, geometry: Geometry, more: list[int], groups: int) -> Expr:
    strides, pads, dilations = geometry
    kernel = topi.nn.dilate(weight, [1, 1, *dilations], name="spread") if max(dilations) > 1 else weight
    source = topi.transpose(data, [0, 3, 1, 2])
    result = topi.nn.group_conv2d_transpose_nchw(source, kernel, strides, pads, data.dtype, more, groups)
    return topi.transpose(result, [0, 2, 3, 1])


def _product(machine: Machine, builder: Any, call: Any) -> Expr | None:
    """A product with a constant matrix on the right; None where it is not one."""
    left, right = call.args
    if not isinstance(right, GenericConst) or right.value.numpy().ndim != 2 or not _is_float(call) or len(call.ty.shape) < 2:
        return None
    matrix = right.value.numpy()
    rows = call.ty.shape[-2]
    tile = product_tile(machine, int(rows) if isinstance(rows, tirx.IntImm) else 1, matrix.shape[1])
    packed = pack(matrix, tile.lanes)
    return _call(builder, "product", lambda x, w: product(x, w, list(call.ty.shape), tile), left, packed)


def _call(builder: Any, name: str, compute: Callable[[Any, Any], Any], data: Expr, packed: NDArray[Any]) -> Expr:
    constant = relax.const(np.ascontiguousarray(packed))
    return builder.call_te(compute, data, constant, primfunc_name_hint=name, primfunc_attrs={"op_pattern": OUT_EWISE_FUSABLE})


def _static(shape: Any, skip: int) -> list[int] | None:
    """The sizes behind the first `skip`; None where one is dynamic."""
    sizes = list(shape)[skip:]
    return [int(size) for size in sizes] if all(isinstance(size, tirx.IntImm) for size in sizes) else None


def _is_float(call: Any) -> bool:
    return str(call.ty.dtype) == "float32" and all(str(argument.ty.dtype) == "float32" for argument in call.args)


# ---- weights --------------------------------------------------------------------------------------


def pack(weight: NDArray[Any], lanes: int) -> NDArray[Any]:
    """[..., outputs] as [outputs / lanes, ..., lanes], with zeros for what does not fill the last block."""
    padded = _padded_to(weight, lanes, axis=weight.ndim - 1)
    blocks = padded.reshape(*padded.shape[:-1], -1, lanes)
    return np.moveaxis(blocks, -2, 0)


def _padded_to(weight: NDArray[Any], step: int, axis: int) -> NDArray[Any]:
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
    strides, _, dilations = geometry
    height, width, channels = sizes
    blocks, kernel_height, kernel_width, depth, lanes = (int(size) for size in weight.shape)
    columns = _ceil_to(width, tile.positions)
    source = _padded(data, geometry, (kernel_height, kernel_width), columns, int(data.shape[3]))
    r, s, i = (te.reduce_axis((0, n), name) for n, name in ((kernel_height, "r"), (kernel_width, "s"), (depth, "i")))
    per_group = channels // groups

    def element(n: Any, h: Any, w: Any, c: Any) -> Any:
        first = 0 if groups == 1 else c // lanes * lanes // per_group * depth
        read = source[n, h * strides[0] + r * dilations[0], w * strides[1] + s * dilations[1], first + i]
        return te.sum(read * weight[c // lanes, r, s, i, c % lanes], axis=[r, s, i])

    shape = (data.shape[0], height, columns, blocks * lanes)
    full = te.compute(shape, element, name="contraction", attrs={TILE: [tile.positions, lanes]})
    return _cut(full, [data.shape[0], height, width, channels])


def depthwise_convolution(data: Expr, weight: Expr, geometry: Geometry, sizes: list[int], tile: Tile) -> Expr:
    """NHWC depthwise convolution with one filter a channel; `weight` is [KH, KW, channels, padded to lanes]."""
    strides, _, dilations = geometry
    height, width, channels = sizes
    kernel_height, kernel_width, filled = (int(size) for size in weight.shape)
    columns = _ceil_to(width, tile.positions)
    source = _padded(data, geometry, (kernel_height, kernel_width), columns, filled)
    r, s = (te.reduce_axis((0, n), name) for n, name in ((kernel_height, "r"), (kernel_width, "s")))

    def element(n: Any, h: Any, w: Any, c: Any) -> Any:
        read = source[n, h * strides[0] + r * dilations[0], w * strides[1] + s * dilations[1], c]
        return te.sum(read * weight[r, s, c], axis=[r, s])

    full = te.compute(
        (data.shape[0], height, columns, filled), element, name="contraction", attrs={TILE: [tile.positions, tile.lanes]}
    )
    return _cut(full, [data.shape[0], height, width, channels])


def product(data: Expr, weight: Expr, shape: list[Any], tile: Tile) -> Expr:
    """Product of [..., rows, depth] with packed [blocks, depth, lanes]."""
    blocks, depth, lanes = (int(size) for size in weight.shape)
    k = te.reduce_axis((0, depth), "k")
    rows = shape[-2]
    if isinstance(rows, tirx.IntImm) and int(rows) % tile.positions:
        filled = _ceil_to(int(rows), tile.positions)
        before = [0] * len(shape)
        after = [*[0] * (len(shape) - 2), filled - int(rows), 0]
        data = topi.nn.pad(data, before, after, name="padded")
        rows = filled

    def element(*index: Any) -> Any:
        *row, c = index
        return te.sum(data[(*row, k)] * weight[c // lanes, k, c % lanes], axis=k)

    full = te.compute([*shape[:-2], rows, blocks * lanes], element, name="contraction", attrs={TILE: [tile.positions, lanes]})
    return _cut(full, shape)


def _padded(data: Expr, geometry: Geometry, kernel: tuple[int, int], columns: int, channels: int) -> Expr:
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
