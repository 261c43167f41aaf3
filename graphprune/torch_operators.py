"""ONNX operators as torch functions: one entry per operator, for gradients.

A function gets the node (`graphprune.torch_functions.Node`) and its inputs as tensors, None where one is left out, and gives a
tensor or a tuple of them.  What has no entry has no gradient route; `graphprune.differentiable` says so by name.  Start reading
at `FUNCTIONS`.
"""

from __future__ import annotations

from functools import reduce

import torch
from onnx import TensorProto
from torch.nn import functional as F

from . import torch_functions as functions
from .torch_functions import Function, Node, Tensor

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _reduced(function: Function) -> Function:
    def apply(n: Node, x: Tensor, axes: Tensor = None) -> Tensor:
        where = n.integers(axes, "axes")
        if not where:
            if n("noop_with_empty_axes", 0):
                return x
            where = list(range(x.dim()))
        return function(x, where, bool(n("keepdims", 1)))

    return apply


def _extreme(function: Function) -> Function:
    return lambda n, *values: reduce(function, values)


def _clip(n: Node, x: Tensor, low: Tensor = None, high: Tensor = None) -> Tensor:
    low, high = (n(name) if given is None else given for given, name in ((low, "min"), (high, "max")))
    x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))


def _cast(n: Node, x: Tensor) -> Tensor:
    if n("to") not in _DTYPES:
        raise NotImplementedError(f"Cast to {TensorProto.DataType.Name(n('to'))}")
    return x.to(_DTYPES[n("to")])


def _divide(n: Node, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _hard_sigmoid(n: Node, x: Tensor) -> Tensor:
    return torch.clamp(n("alpha", 0.2) * x + n("beta", 0.5), 0, 1)


def _selu(n: Node, x: Tensor) -> Tensor:
    alpha, gamma = n("alpha", 1.6732632423543772), n("gamma", 1.0507009873554805)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def _gelu(n: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=n("approximate", "none"))


def _p_relu(n: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _unary(function: Function) -> Function:
    return lambda n, x: function(x)


def _binary(function: Function) -> Function:
    return lambda n, a, b: function(a, b)


FUNCTIONS: dict[str, Function] = {
    "Conv": functions.conv,
    "ConvTranspose": functions.conv_transpose,
    "Gemm": functions.gemm,
    "MatMul": _binary(torch.matmul),
    "Einsum": lambda n, *x: torch.einsum(n("equation").replace(" ", ""), *x),
    "BatchNormalization": functions.batch_norm,
    "InstanceNormalization": lambda n, x, s, b: F.instance_norm(x, weight=s, bias=b, eps=n("epsilon", 1e-5)),
    "LayerNormalization": functions.layer_norm,
    "GroupNormalization": functions.group_norm,
    "RMSNormalization": functions.rms_norm,
    "SimplifiedLayerNormalization": functions.rms_norm,
    "LRN": lambda n, x: F.local_response_norm(x, n("size"), n("alpha", 1e-4), n("beta", 0.75), n("bias", 1.0)),
    "LpNormalization": lambda n, x: F.normalize(x, n("p", 2), n("axis", -1)),
    "Softmax": functions.softmax(torch.softmax),
    "LogSoftmax": functions.softmax(torch.log_softmax),
    "MaxPool": functions.max_pool,
    "AveragePool": functions.average_pool,
    "GlobalAveragePool": lambda n, x: x.mean(list(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda n, x: x.amax(list(range(2, x.dim())), keepdim=True),
    "Resize": functions.resize,
    "Upsample": functions.upsample,
    "GridSample": functions.grid_sample,
    "Reshape": functions.reshape,
    "Flatten": functions.flatten,
    "Transpose": lambda n, x: x.permute(n("perm", list(range(x.dim()))[::-1])),
    "Concat": lambda n, *x: torch.cat(x, n("axis")),
    "Split": functions.split,
    "Slice": functions.slice_,
    "Gather": functions.gather,
    "GatherElements": functions.gather_elements,
    "GatherND": functions.gather_nd,
    "ScatterND": functions.scatter_nd,
    "Expand": lambda n, x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(int(v) for v in shape))),
    "Tile": lambda n, x, times: x.repeat(*(int(v) for v in times)),
    "Pad": functions.pad,
    "Squeeze": functions.squeeze,
    "Unsqueeze": functions.unsqueeze,
    "DepthToSpace": functions.depth_to_space,
    "SpaceToDepth": functions.space_to_depth,
    "Trilu": functions.trilu,
    "Shape": lambda n, x: torch.tensor(x.shape)[n("start", 0) : n("end")],
    "Size": lambda n, x: torch.tensor(x.numel()),
    "Range": lambda n, a, b, step: torch.arange(a.item(), b.item(), step.item(), dtype=a.dtype),
    "ConstantOfShape": functions.constant_of_shape,
    "CumSum": functions.cumsum,
    "TopK": functions.top_k,
    "ArgMax": functions.arg(torch.argmax),
    "ArgMin": functions.arg(torch.argmin),
    "Cast": _cast,
    "QuantizeLinear": functions.quantize,
    "DequantizeLinear": functions.dequantize,
    "CastLike": lambda n, x, like: x.to(like.dtype),
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "ReduceLogSumExp": _reduced(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "Identity": _unary(lambda x: x),
    "Dropout": lambda n, x, *rest: x,
    "Relu": _unary(torch.relu),
    "LeakyRelu": lambda n, x: F.leaky_relu(x, n("alpha", 0.01)),
    "PRelu": _p_relu,
    "Elu": lambda n, x: F.elu(x, n("alpha", 1.0)),
    "Celu": lambda n, x: F.celu(x, n("alpha", 1.0)),
    "Selu": _selu,
    "Gelu": _gelu,
    "Swish": lambda n, x: x * torch.sigmoid(n("alpha", 1.0) * x),
    "Mish": _unary(F.mish),
    "Sigmoid": _unary(torch.sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Tanh": _unary(torch.tanh),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt),
    "Abs": _unary(torch.abs),
    "Neg": _unary(torch.neg),
    "Reciprocal": _unary(torch.reciprocal),
    "Sign": _unary(torch.sign),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Not": _unary(torch.logical_not),
    "IsNaN": _unary(torch.isnan),
    "Clip": _clip,
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _divide,
    "Pow": lambda n, a, b: torch.pow(a, b).to(a.dtype),
    "Mod": lambda n, a, b: torch.fmod(a, b) if n("fmod", 0) else torch.remainder(a, b),
    "Min": _extreme(torch.minimum),
    "Max": _extreme(torch.maximum),
    "Sum": _extreme(torch.add),
    "Mean": lambda n, *x: reduce(torch.add, x) / len(x),
    "Equal": _binary(torch.eq),
    "Less": _binary(torch.lt),
    "Greater": _binary(torch.gt),
    "LessOrEqual": _binary(torch.le),
    "GreaterOrEqual": _binary(torch.ge),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Xor": _binary(torch.logical_xor),
    "Where": lambda n, c, a, b: torch.where(c, a, b),
}
"""By operator name, domain in front where it is not ONNX's own."""
