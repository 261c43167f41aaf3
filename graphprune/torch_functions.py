"""ONNX operators that take more than a line in torch: linear maps, normalisations, pooling, movement.

Each function computes the operator of its name as the ONNX specification defines it; NotImplementedError says what it leaves out.
Start reading at `Node`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .node_view import normal_axis

Tensor = Any
Function = Callable[..., Any]


@dataclass(frozen=True)
class Node:
    """What a function may know of its node."""

    attributes: dict[str, Any]
    opset: int
    outputs: int

    def __call__(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default`."""
        return self.attributes.get(name, default)

    def integers(self, given: Tensor, name: str) -> list[int] | None:
        """Integers that are an input or, in older opsets, an attribute."""
        return [int(v) for v in given.reshape(-1)] if given is not None else self.attributes.get(name)


# ---- linear maps --------------------------------------------------------------------------------


def _begin_end(n: Node, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> list[tuple[int, int]]:
    """What is added in front of and behind each spatial axis."""
    auto = n("auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * len(kernel)
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        found = []
        for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            found.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
        return found
    pads = n("pads") or [0] * 2 * len(kernel)
    return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))


def _padded(x: Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input with what the function itself cannot pad, and what is left to the function."""
    if all(begin == end for begin, end in pads):
        return x, [begin for begin, _ in pads]
    return F.pad(x, [v for pair in reversed(pads) for v in pair], value=value), [0] * len(pads)


def conv(n: Node, x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
    spatial = w.dim() - 2
    strides, dilations = n("strides", [1] * spatial), n("dilations", [1] * spatial)
    x, pads = _padded(x, _begin_end(n, x, list(w.shape[2:]), strides, dilations))
    return (F.conv1d, F.conv2d, F.conv3d)[spatial - 1](x, w, b, strides, pads, dilations, n("group", 1))


def conv_transpose(n: Node, x: Tensor, w: Tensor, b: Tensor = None) -> Tensor:
    spatial = w.dim() - 2
    strides, dilations = n("strides", [1] * spatial), n("dilations", [1] * spatial)
    extra, pads = n("output_padding", [0] * spatial), n("pads", [0] * 2 * spatial)
    if n("output_shape") or n("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        raise NotImplementedError("ConvTranspose with output_shape or auto_pad")
    full = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1](
        x, w, b, strides, 0, extra, n("group", 1), dilations
    )
    crops = zip(pads[:spatial], pads[spatial:], full.shape[2:], strict=True)
    return full[(..., *(slice(begin, size - end) for begin, end, size in crops))]


def gemm(n: Node, a: Tensor, b: Tensor, c: Tensor = None) -> Tensor:
    product = n("alpha", 1.0) * ((a.T if n("transA", 0) else a) @ (b.T if n("transB", 0) else b))
    return product if c is None else product + n("beta", 1.0) * c


# ---- normalisations -----------------------------------------------------------------------------


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (x.dim() - 2))


def batch_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    factor = scale / torch.sqrt(variance + n("epsilon", 1e-5))
    return (x - _channels(mean, x)) * _channels(factor, x) + _channels(bias, x)


def layer_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor = None) -> Tensor:
    shape = x.shape[normal_axis(n("axis", -1), x.dim()) :]
    normal = F.layer_norm(x, shape, eps=n("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


def rms_norm(n: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(normal_axis(n("axis", -1), x.dim()), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + n("epsilon", 1e-5)) * scale


def group_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    normal = F.group_norm(x, n("num_groups"), eps=n("epsilon", 1e-5))
    if scale.numel() != x.shape[1]:
        scale, bias = (v.repeat_interleave(x.shape[1] // v.numel()) for v in (scale, bias))
    return normal * _channels(scale, x) + _channels(bias, x)


def softmax(function: Function) -> Function:
    def apply(n: Node, x: Tensor) -> Tensor:
        if n.opset >= 13:
            return function(x, n("axis", -1))
        axis = normal_axis(n("axis", 1), x.dim())
        return function(x.flatten(axis), -1).reshape(x.shape)

    return apply


# ---- pooling and resizing -----------------------------------------------------------------------


def max_pool(n: Node, x: Tensor) -> Tensor:
    kernel = n("kernel_shape")
    if n.outputs > 1:
        raise NotImplementedError("MaxPool with indices")
    strides, dilations = n("strides", [1] * len(kernel)), n("dilations", [1] * len(kernel))
    pads = _begin_end(n, x, kernel, strides, dilations)
    padded = F.pad(x, [v for pair in reversed(pads) for v in pair], value=-torch.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    found = pool(padded, kernel, strides, 0, dilations, bool(n("ceil_mode", 0)))
    for axis, ((begin, _), stride) in enumerate(zip(pads, strides, strict=True), start=2):
        starting_inside = -(-(x.shape[axis] + begin) // stride)
        found = found.narrow(axis, 0, min(found.shape[axis], starting_inside))
    return found


def average_pool(n: Node, x: Tensor) -> Tensor:
    kernel = n("kernel_shape")
    strides = n("strides", [1] * len(kernel))
    if n("ceil_mode", 0) or set(n("dilations", [1])) != {1}:
        raise NotImplementedError("AveragePool with ceil_mode or dilations")
    pads = [v for pair in reversed(_begin_end(n, x, kernel, strides, [1] * len(kernel))) for v in pair]
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    mean = pool(F.pad(x, pads), kernel, strides)
    if n("count_include_pad", 0) or not any(pads):
        return mean
    return mean / pool(F.pad(torch.ones_like(x), pads), kernel, strides)


def resize(n: Node, x: Tensor, roi: Tensor = None, scales: Tensor = None, sizes: Tensor = None) -> Tensor:
    exact = torch.tensor(x.shape) * scales.double().cpu() if scales is not None and scales.numel() == x.dim() else sizes
    chosen = n("axes") or n("antialias", 0) or n("exclude_outside", 0) or n("keep_aspect_ratio_policy", "stretch") != "stretch"
    if chosen or exact is None or x.dim() < 3 or not torch.equal(exact, exact.floor()):
        raise NotImplementedError("Resize with other than plain sizes or scales")
    target = [int(v) for v in exact]
    name = _interpolation(n, list(x.shape), target)
    if list(x.shape[:2]) != target[:2] or name is None:
        raise NotImplementedError(f"Resize with mode {n('mode', 'nearest')} as it is used here")
    corners = n("coordinate_transformation_mode") == "align_corners" if name != "nearest" else None
    return F.interpolate(x, target[2:], mode=name, align_corners=corners)


def _interpolation(n: Node, old: list[int], new: list[int]) -> str | None:
    """What torch calls the mode, where it computes the same."""
    mode, place = n("mode", "nearest"), n("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        whole = all(b % a == 0 for a, b in zip(old, new, strict=True))
        rounding = n("nearest_mode", "round_prefer_floor")
        centred = place in {"half_pixel", "pytorch_half_pixel"} and rounding.startswith("round")
        return "nearest" if whole and (centred or (place, rounding) == ("asymmetric", "floor")) else None
    known = place in {"half_pixel", "pytorch_half_pixel", "align_corners"} and min(new[2:]) > 1
    names = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    return names.get((mode, len(old))) if known and n("cubic_coeff_a", -0.75) == -0.75 else None


def upsample(n: Node, x: Tensor, scales: Tensor) -> Tensor:
    placed = n.attributes | {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return resize(Node(placed, n.opset, n.outputs), x, scales=scales)


def grid_sample(n: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(n("mode", "linear"), n("mode", "linear"))  # as opset 16 has them
    if mode == "bicubic" and x.dim() != 4:
        raise NotImplementedError("GridSample with mode cubic of other than images")
    return F.grid_sample(x, grid, mode, n("padding_mode", "zeros"), bool(n("align_corners", 0)))


# ---- movement -----------------------------------------------------------------------------------


def reshape(n: Node, x: Tensor, shape: Tensor = None) -> Tensor:
    target = n.integers(shape, "shape") or []
    if not n("allowzero", 0):
        target = [x.shape[k] if v == 0 else v for k, v in enumerate(target)]
    return x.reshape(tuple(target))


def split(n: Node, x: Tensor, split: Tensor = None) -> Any:
    axis, sizes = n("axis", 0), n.integers(split, "split")
    if sizes is None:
        size = -(-x.shape[axis] // n.outputs)
        return torch.split(x, size, axis)
    return torch.split(x, sizes, axis)


def slice_(n: Node, x: Tensor, starts: Tensor = None, ends: Tensor = None, axes: Tensor = None, steps: Tensor = None) -> Tensor:
    first, last = n.integers(starts, "starts") or [], n.integers(ends, "ends") or []
    where = n.integers(axes, "axes") or list(range(len(first)))
    for start, end, axis, step in zip(first, last, where, n.integers(steps, "steps") or [1] * len(first), strict=True):
        places = torch.arange(x.shape[axis])[slice(start, end, step)] if step > 0 else _backwards(x.shape[axis], start, end, step)
        x = x.index_select(axis, places.to(x.device))
    return x


def _backwards(size: int, start: int, end: int, step: int) -> Tensor:
    return torch.tensor(range(size)[slice(start, None if end < -size else end, step)], dtype=torch.int64)


def gather(n: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = normal_axis(n("axis", 0), x.dim())
    places = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_elements(n: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = n("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def gather_nd(n: Node, x: Tensor, indices: Tensor) -> Tensor:
    if n("batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    return x[tuple(indices.unbind(-1))]


def scatter_nd(n: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    if n("reduction", "none") != "none":
        raise NotImplementedError("ScatterND with a reduction")
    return x.index_put(tuple(indices.unbind(-1)), updates)


def pad(n: Node, x: Tensor, pads: Tensor = None, value: Tensor = None, axes: Tensor = None) -> Tensor:
    given = n.integers(pads, "pads") or []
    where = [normal_axis(int(v), x.dim()) for v in axes] if axes is not None else list(range(x.dim()))
    both = {axis: (given[k], given[k + len(where)]) for k, axis in enumerate(where)}
    flat = [v for axis in reversed(range(x.dim())) for v in both.get(axis, (0, 0))]
    mode = n("mode", "constant")
    if mode == "constant":
        return F.pad(x, flat, value=n("value", 0.0) if value is None else value.item())
    while len(flat) > 2 and not any(flat[-2:]):
        flat = flat[:-2]
    return F.pad(x, flat, mode={"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def squeeze(n: Node, x: Tensor, axes: Tensor = None) -> Tensor:
    where = n.integers(axes, "axes")
    return x.squeeze() if where is None else x.squeeze(where)


def unsqueeze(n: Node, x: Tensor, axes: Tensor = None) -> Tensor:
    where = n.integers(axes, "axes") or []
    for axis in sorted(normal_axis(v, x.dim() + len(where)) for v in where):
        x = x.unsqueeze(axis)
    return x


def depth_to_space(n: Node, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    s = n("blocksize")
    if n("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, s)
    return x.reshape(b, s, s, c // s**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // s**2, h * s, w * s)


def space_to_depth(n: Node, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    s = n("blocksize")
    if n("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, s)
    return x.reshape(b, c, h // s, s, w // s, s).permute(0, 3, 5, 1, 2, 4).reshape(b, c * s * s, h // s, w // s)


def flatten(n: Node, x: Tensor) -> Tensor:
    axis = normal_axis(n("axis", 1), x.dim())
    return x.reshape(x.shape[:axis].numel(), -1)


def trilu(n: Node, x: Tensor, k: Tensor = None) -> Tensor:
    offset = 0 if k is None else int(k)
    return torch.triu(x, offset) if n("upper", 1) else torch.tril(x, offset)


def constant_of_shape(n: Node, shape: Tensor) -> Tensor:
    value = torch.from_numpy(n("value").copy()) if n("value") is not None else torch.zeros(1)
    return value.reshape(()).expand([int(v) for v in shape]).clone()


def cumsum(n: Node, x: Tensor, axis: Tensor) -> Tensor:
    """CumSum (opset 14)."""
    at = int(axis)
    row = x.flip(at) if n("reverse", 0) else x
    total = row.cumsum(at) - (row if n("exclusive", 0) else 0)
    return total.flip(at) if n("reverse", 0) else total


def top_k(n: Node, x: Tensor, k: Tensor) -> Any:
    return torch.topk(x, int(k), n("axis", -1), bool(n("largest", 1)), bool(n("sorted", 1)))


def arg(function: Function) -> Function:
    def apply(n: Node, x: Tensor) -> Tensor:
        if n("select_last_index", 0):
            raise NotImplementedError("the last of equal indices")
        return function(x, n("axis", 0), keepdim=bool(n("keepdims", 1)))

    return apply


# ---- quantisation --------------------------------------------------------------------------------

_KINDS = {0: torch.uint8, 2: torch.uint8, 3: torch.int8}
"""What QuantizeLinear rounds to without a zero point, by its `output_dtype`."""


def quantize(n: Node, x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
    """The steps as floating-point numbers; rounding has the derivative of what is rounded (Bengio et al. 2013)."""
    kind = zero.dtype if zero is not None else _KINDS.get(n("output_dtype", 0))
    if kind is None or kind.is_floating_point:
        raise NotImplementedError("QuantizeLinear to this type")
    ends = torch.iinfo(kind)
    exact = x / _along(n, scale, x)
    steps = exact + (torch.round(exact) - exact).detach()
    return torch.clamp(steps if zero is None else steps + _along(n, zero, x), ends.min, ends.max)


def dequantize(n: Node, x: Tensor, scale: Tensor, zero: Tensor = None) -> Tensor:
    steps = x.to(scale.dtype)
    return (steps if zero is None else steps - _along(n, zero, x).to(scale.dtype)) * _along(n, scale, x)


def _along(n: Node, values: Tensor, x: Tensor) -> Tensor:
    """Scales or zero points, in a shape that is broadcast to that of the numbers."""
    if values.dim() > 1:
        raise NotImplementedError("scales of blocks")
    if values.numel() == 1:
        return values.reshape(())
    axis = normal_axis(n("axis", 1), x.dim())
    return values.reshape([-1 if k == axis else 1 for k in range(x.dim())])
