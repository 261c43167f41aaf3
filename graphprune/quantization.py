"""Quantised operators: scales and zero points per channel are carriers, and the graph stays quantised.

Start reading at `quantize`; `convolution` and `product` serve the operators that compute with integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .contractions import conv_macs, gemm, group_sizes, matmul
from .node_view import normal_axis
from .site import Axis, Results, Site

CONV = "[b,(g i),_...] [(g o),i,_...] [(g o)]? -> [b,(g o),_...]"


def quantize(site: Site) -> Results:
    """QuantizeLinear and DequantizeLinear: per-channel scales and zero points are carriers."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    for index in (1, 2):
        scale = site.axes(index)
        if scale is None or not scale:
            continue
        if len(scale) != 1:
            return site.refuse(f"blocked {site.operator} has no rule")
        if (site.shape(index) or (0,))[0] != 1:
            _bind_scale(site, index, axes[normal_axis(site.attribute("axis", 1), len(axes))])
    if site.is_constant(0):
        site.hand_on(range(len(axes)))
    return [list(axes)]


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
        return result

    return infer


def quantized_gemm(site: Site) -> Results:
    """QGemm of com.microsoft: A, B and C, with scales and zero points."""
    site.zero_points = {0: 2, 3: 5}
    result = gemm(site, (0, 3, 6))
    weight = site.axes(3)
    for index in (4, 5) if weight else ():
        _bind_scale(site, index, (weight or [])[0 if site.attribute("transB", 0) else 1])
    return result


def pooling(site: Site) -> Results:
    """Positions are pinned, channels carried; one scale for all."""
    if site.attribute("channels_last", 0):
        return site.refuse(f"{site.operator} with channels last has no rule")
    return site.match("[b,c,_...] -> [b,c,_...]")
