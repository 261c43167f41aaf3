"""Contractions for TVM: convolutions and products with constant weights, packed so that a register tile reads them in order.

relax's own lowering reads weights with large strides and leaves no room for register tiles.  Here the activations are NHWC, the
weights of `width` neighbouring outputs lie together, and what does not fill a tile is padded, so that the hot loops carry no
conditions (the scheme of Georganas et al. 2018, "Anatomy of high-performance deep learning convolutions on SIMD architectures").
Start reading at `lowerings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, tirx, topi
from tvm.ir import GenericConst

from .tvm_concatenation import concatenation
from .tvm_loops import (
    Expr,
    Geometry,
    convolution,
    depthwise_convolution,
    pack,
    pack_pairs,
    packed_as_it_runs,
    padded_to,
    paired_convolution,
    product,
    softmax,
)
from .tvm_pairs import PAIR
from .tvm_tiles import Machine, depthwise_tile, product_tile, within

OUT_EWISE_FUSABLE = 4
"""TVM's kind of operator whose elementwise consumers may join it."""

OPAQUE = 8
"""TVM's kind of operator that nothing joins."""


def lowerings(machine: Machine) -> dict[str, Callable[[Any, Any], Any]]:
    """For `relax.transform.LegalizeOps`: how convolutions and products become loops on this machine."""
    found = {
        "relax.nn.conv2d": _convolution,
        "relax.nn.conv2d_transpose": _transposed,
        "relax.matmul": _product,
        "relax.nn.softmax": _softmax,
        "relax.concat": _concatenation,
        "relax.exp": _elementwise("exp", topi.fast_exp),
        "relax.erf": _elementwise("erf", topi.fast_erf),
        "relax.nn.gelu": _elementwise("gelu", _gelu),
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


def _concatenation(machine: Machine, builder: Any, call: Any) -> Expr | None:
    """Parts of static sizes, given one by one; None otherwise."""
    parts, sizes = call.args[0], _static(call.ty.shape, skip=0)
    if not isinstance(parts, relax.Tuple) or sizes is None or call.attrs.axis is None:
        return None
    axis = int(call.attrs.axis) % len(sizes)
    return builder.call_te(
        lambda *each: concatenation(list(each), axis, machine),
        *parts,
        primfunc_name_hint="concatenation",
        primfunc_attrs={"op_pattern": OPAQUE, "tirx.is_scheduled": True},
    )


def _gelu(x: Expr) -> Expr:
    half = topi.multiply(x, 0.5)
    return topi.multiply(half, topi.add(1.0, topi.fast_erf(topi.multiply(x, math.sqrt(0.5)))))


def _softmax(machine: Machine, builder: Any, call: Any) -> Expr | None:
    """Along the last axis, with exponentials that make vectors; None along another."""
    rank = len(call.ty.shape)
    if int(call.attrs.axis) not in (-1, rank - 1) or not _is_float(call):
        return None
    return builder.call_te(softmax, call.args[0], primfunc_name_hint="softmax")


def _convolution(machine: Machine, builder: Any, call: Any) -> Expr | None:
    """A convolution with constant weights and static sizes, in NHWC, or with transposes around it; None where it is not one."""
    attrs, (data, kernel) = call.attrs, call.args
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    if not _is_float(call) or not isinstance(kernel, GenericConst):
        return None
    if layouts == ("NHWC", "OHWI", "NHWC"):
        return _in_nhwc(machine, builder, attrs, data, kernel.value.numpy(), _static(call.ty.shape, skip=1))
    if layouts != ("NCHW", "OIHW", "NCHW") or (sizes := _static(call.ty.shape, skip=1)) is None:
        return None
    turned = builder.emit_te(topi.transpose, data, [0, 2, 3, 1])
    weight = kernel.value.numpy().transpose(0, 2, 3, 1)
    found = _in_nhwc(machine, builder, attrs, turned, weight, [*sizes[1:], sizes[0]])
    return None if found is None else builder.call_te(topi.transpose, builder.emit(found), [0, 3, 1, 2])


def _in_nhwc(
    machine: Machine, builder: Any, attrs: Any, data: Expr, weight: NDArray[Any], sizes: list[int] | None
) -> Expr | None:
    """A convolution of NHWC data with OHWI weights; `sizes` are height, width and channels of the result."""
    if sizes is None:
        return None
    groups = int(attrs.groups)
    geometry = [int(size) for size in attrs.strides], [int(pad) for pad in attrs.padding], [int(d) for d in attrs.dilation]
    _, out_width, channels = sizes
    if weight.shape[3] == 1 and groups == channels and _static(data.ty.shape, skip=1) is not None:
        if int(data.ty.shape[3]) != channels:
            return None
        tile = depthwise_tile(machine, out_width, channels)
        packed = padded_to(weight[..., 0].transpose(1, 2, 0), tile.lanes, axis=2)
        return _call(builder, "depthwise", lambda x, w: depthwise_convolution(x, w, geometry, sizes, tile), data, packed)
    tile = product_tile(machine if groups == 1 else within(machine, channels // groups), out_width, channels // groups)
    if groups > 1 and (channels // groups) % tile.lanes:
        return None
    if machine.floats > 1 and groups == 1 and channels * PAIR <= tile.lanes and weight.shape[3] % PAIR == 0:
        paired = pack_pairs(weight.transpose(1, 2, 3, 0), tile.lanes // PAIR)
        return _call(builder, "convolution", lambda x, w: paired_convolution(x, w, geometry, sizes, tile.positions), data, paired)
    packed = pack(weight.transpose(1, 2, 3, 0), tile.lanes)
    return _call(builder, "convolution", lambda x, w: convolution(x, w, geometry, sizes, groups, tile), data, packed)


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
    """A product with a constant matrix on the right, or of two tensors of static sizes; None where it is neither."""
    left, right = call.args
    if not _is_float(call) or len(call.ty.shape) < 2:
        return None
    if not isinstance(right, GenericConst):
        return _pairwise(machine, builder, call)
    matrix = right.value.numpy()
    if matrix.ndim != 2:
        return None
    shape = list(call.ty.shape)
    axis = _longest(shape)
    rows = shape[axis]
    tile = product_tile(machine, int(rows) if isinstance(rows, tirx.IntImm) else 1, matrix.shape[1])
    packed = pack(matrix, tile.lanes)
    return _call(builder, "product", lambda x, w: product(x, w, shape, tile, axis), left, packed)


def _longest(shape: list[Any]) -> int:
    """The axis whose positions are the rows of a product: the last but one, or the only one that is longer than 1."""
    long = [k for k, size in enumerate(shape[:-1]) if not isinstance(size, tirx.IntImm) or int(size) > 1]
    return long[0] if len(long) == 1 else len(shape) - 2


def _pairwise(machine: Machine, builder: Any, call: Any) -> Expr | None:
    """A product of two tensors with the same leading sizes; the right one is packed as it runs."""
    left, right = (_static(each.ty.shape, skip=0) for each in call.args)
    if left is None or right is None or left[:-2] != right[:-2]:
        return None
    tile = product_tile(machine, left[-2], right[-1])

    def compute(x: Any, w: Any) -> Any:
        return product(x, packed_as_it_runs(w, tile.lanes), list(call.ty.shape), tile, len(left) - 2)

    return builder.call_te(compute, *call.args, primfunc_name_hint="pairs", primfunc_attrs={"op_pattern": OUT_EWISE_FUSABLE})


def _call(builder: Any, name: str, compute: Callable[[Any, Any], Any], data: Expr, packed: NDArray[Any]) -> Expr:
    constant = relax.const(np.ascontiguousarray(packed))
    return builder.call_te(compute, data, constant, primfunc_name_hint=name, primfunc_attrs={"op_pattern": OUT_EWISE_FUSABLE})


def _static(shape: Any, skip: int) -> list[int] | None:
    """The sizes behind the first `skip`; None where one is dynamic."""
    sizes = list(shape)[skip:]
    return [int(size) for size in sizes] if all(isinstance(size, tirx.IntImm) for size in sizes) else None


def _is_float(call: Any) -> bool:
    return str(call.ty.dtype) == "float32" and all(str(argument.ty.dtype) == "float32" for argument in call.args)
