"""Quantised operators: scales and zero points per channel are carriers, and the graph stays quantised.

Start reading at `quantize`; `convolution` and `product` serve the operators that compute with integers, `packed_product` those
whose weights have less than 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import TensorProto

from .contractions import conv_macs, gemm, group_sizes, matmul
from .edit import Edit
from .graph import FLOATS, Shape
from .node_view import normal_axis
from .real_values import Packed, Scaled
from .site import Axes, Axis, Results, Site

CONV = "[b,(g i),_...] [(g o),i,_...] [(g o)]? -> [b,(g o),_...]"


def quantize(site: Site) -> Results:
    """QuantizeLinear and DequantizeLinear: scales and zero points, per channel or per block of channels, are carriers."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    axis, block = normal_axis(site.attribute("axis", 1), max(1, len(axes))), int(site.attribute("block_size", 0))
    for index in (1, 2):
        scale = None if site.shape(index) == (1,) else site.axes(index)
        if scale and len(scale) == len(axes) and block:
            _bind_blocks(site, index, axes, axis, block)
        elif scale and (len(scale) != 1 or not 0 <= axis < len(axes)):
            return site.refuse(f"this form of {site.operator} has no rule")
        elif scale:
            _bind_scale(site, index, axes[axis])
    if site.is_constant(0):
        site.hand_on(range(len(axes)))
        if site.operator.endswith("DequantizeLinear"):
            _note_scaled(site, 0, 1, 2, axis, block)
    return [list(axes)]


def _bind_blocks(site: Site, index: int, axes: Axes, axis: int, block: int) -> None:
    """Scales or zero points with one for each block along an axis, which stays or leaves as a whole."""
    for k, (own, scale) in enumerate(zip(axes, site.axes(index) or (), strict=True)):
        if k != axis:
            site.unify(own, scale)
            continue
        count = (site.shape(index) or ())[k]
        if isinstance(own, int) or not isinstance(count, int) or len(own) != count * block:
            for each in (own, scale):
                site.pin(each, f"{site.operator} has blocks that do not fit this axis")
            continue
        blocks, inside = site.labels.split(own, count, block)
        site.pin(inside, f"{site.operator} needs every index of a block")
        site.unify(blocks, scale)
    site.note_carrier(index)


def _bind_scale(site: Site, index: int, channels: Axis) -> None:
    """Scales or zero points: one for each channel, or one for all."""
    axes = site.axes(index)
    if axes and (site.shape(index) or (0,))[0] != 1:
        site.unify(channels, axes[0])
        site.note_carrier(index)


def dynamic(site: Site) -> Results:
    """DynamicQuantizeLinear: the scale is a statistic of all values, so every axis is pinned (or see --normalization)."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    for axis in axes:
        site.take_statistic(axis, f"{site.operator} takes its scale from all of this axis")
    return [list(axes), [], []]


def convolution(operands: tuple[int, ...], zero_points: Mapping[int, int], scales: tuple[int, ...]) -> Callable[[Site], Results]:
    """A convolution of integers: `operands` are data, weight and bias, `scales` the inputs with one value for each channel."""

    def infer(site: Site) -> Results:
        site.zero_points = zero_points
        rule = CONV if len(operands) == 3 else CONV.replace(" [(g o)]?", "")
        result = site.match(rule, group_sizes(site), conv_macs(site, operands[1]), operands)
        weight = site.axes(operands[1])
        for index in scales if weight is not None else ():
            _bind_scale(site, index, (weight or [])[0])
        _note_integers(site, operands[1], scales, 0)
        return result

    return infer


def product(operands: tuple[int, int], zero_points: Mapping[int, int], scales: tuple[int, ...]) -> Callable[[Site], Results]:
    """A matrix product of integers: `scales` are the inputs that may have one value for each column."""

    def infer(site: Site) -> Results:
        site.zero_points = zero_points
        result = matmul(site, operands)
        weight = site.axes(operands[1])
        for index in scales if weight else ():
            _bind_scale(site, index, (weight or [])[-1])
        if weight:
            _note_integers(site, operands[1], scales, len(weight) - 1)
        return result

    return infer


def quantized_gemm(site: Site) -> Results:
    """QGemm of com.microsoft: A, B and C, with scales and zero points."""
    site.zero_points = {0: 2, 3: 5}
    result = gemm(site, (0, 3, 6))
    weight = site.axes(3)
    columns = 0 if site.attribute("transB", 0) else 1
    for index in (4, 5) if weight else ():
        _bind_scale(site, index, (weight or [])[columns])
    if weight:
        _note_scaled(site, 3, 4, 5, columns)
    return result


def pooling(site: Site) -> Results:
    """Positions are pinned, channels carried; one scale for all."""
    if site.attribute("channels_last", 0):
        return site.refuse(f"{site.operator} with channels last has no rule")
    return site.match("[b,c,_...] -> [b,c,_...]")


def _note_integers(site: Site, weight: int, scales: tuple[int, ...], axis: int) -> None:
    """As `_note_scaled`: the first of `scales` that is no zero point is that of the weight."""
    scale = next((index for index in scales if index not in site.zero_points.values()), -1)
    _note_scaled(site, weight, scale, site.zero_points[weight], axis)


def _note_scaled(site: Site, weight: int, scale: int, zero: int, axis: int, block: int = 0) -> None:
    """Note what the weight in input `weight` stands for; -1 for an operand that the operator lacks.

    Scales and zero points that are vectors lie along `axis`, one for each `block` of indices.
    """
    axes = site.loose_axes(weight)
    if not axes or not site.is_constant(weight):
        return
    tensor, order = site.origin(weight, len(axes))
    axis = axis if 0 <= axis < len(axes) else 0  # of a scalar scale
    real = site.graph.initializers[tensor].data_type in FLOATS  # such a one is quantised when the network runs
    if not real and all(_fits(site, at, site.shape(weight) or (), axis, block) for at in (scale, zero) if site.has(at)):
        first, second = (site.inputs[at] if site.has(at) else "" for at in (scale, zero))
        site.ledger.numbers[tensor] = Scaled(first, second, order[axis], block)


def _fits(site: Site, index: int, shape: Shape, axis: int, block: int) -> bool:
    """Whether scales or zero points are one, or one for each index of an axis, or for each block of it."""
    size, found = shape[axis], site.shape(index)
    if not isinstance(size, int) or found in ((), (1,)):
        return found in ((), (1,))
    if block > 0 and found is not None and len(found) == len(shape):
        return found == (*shape[:axis], -(-size // block), *shape[axis + 1 :])
    return found == (size,)


# ---- weights of less than 8 bits -----------------------------------------------------------------


def packed_product(site: Site) -> Results:
    """MatMulNBits of com.microsoft: a block of inputs stays or leaves as a whole, with those whose zero points share its byte."""
    weight, bits, size = site.shape(1) or (), int(site.attribute("bits", 4)), int(site.attribute("block_size", 0))
    rows, blocks = weight[:2] if len(weight) == 3 and 0 not in weight else (None, None)
    if not isinstance(rows, int) or not isinstance(blocks, int) or bits not in (2, 4, 8) or site.attribute("weight_prepacked", 0):
        return site.refuse(f"this form of {site.operator} has no rule")
    packed = site.has(3) and site.graph.element_type(site.inputs[3]) == TensorProto.UINT8
    share = 8 // bits if packed else 1
    for index, count in ((2, blocks), (3, -(-blocks // share))):
        if site.has(index) and site.shape(index) not in ((rows, count), (rows * count,)):
            return site.refuse(f"this form of {site.operator} has no rule")
    width = int(site.attribute("K", 0))
    whole = blocks * size != width or blocks % share or size < 1 or site.has(4)
    sizes = {"z": blocks // share, "P": share, "W": size}
    rule = "[...,_] [n,_,_] [n]? -> [...,n]" if whole else "[...,(z P W)] [n,(z P),_] [n]? -> [...,n]"
    result = site.match(rule, {} if whole else sizes, width if whole else 1, (0, 1, 5))
    for index, count in ((2, blocks), (3, -(-blocks // share))):
        _bind_rows(site, index, (rows, count), bool(whole))
    if site.inputs[1] in site.graph.initializers:
        site.ledger.numbers[site.inputs[1]] = Packed(site.inputs[2], site.inputs[3] if site.has(3) else "", bits)
    return result


def _bind_rows(site: Site, index: int, shape: tuple[int, int], whole: bool) -> None:
    """Scales or zero points [rows, columns], or as one axis as older files have them; some blocks may share a column."""
    (rows, blocks, _), own = site.axes(1) or [], site.axes(index)
    if not own:
        return
    if len(own) == 1 and not isinstance(own[0], int):
        own = list(site.labels.split(own[0], *shape))
    site.unify(rows, own[0])
    if whole or isinstance(blocks, int):
        site.pin_axes(own[1:], f"{site.operator} needs every block")
    elif len(blocks) != shape[1]:
        site.unify(site.labels.split(blocks, shape[1], len(blocks) // shape[1])[0], own[1])
    else:
        site.unify(blocks, own[1])
    site.note_carrier(index)


def shrink_packed_product(edit: Edit) -> None:
    """Writes the sizes of the weight that are left."""
    rows, width = edit.kept_count(1, 0), edit.kept_count(0, len(edit.shape(0) or ()) - 1)
    if rows is not None:
        edit.set_attribute("N", rows)
    if width is not None:
        edit.set_attribute("K", width)
