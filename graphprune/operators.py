"""The operator table: everything graphprune knows about an operator, one entry each.

An entry is a typing rule (the notation is in `graphprune.rules`) or a small function, and where sizes are written into the
node also how to bring them back in line after pruning.  An operator without an entry pins every axis it touches.

To add an operator, add an entry here (docs/adding-an-operator.md).  A plugin adds entries by an
entry point (docs/plugins.md).  Start reading at `TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType

from . import (
    attention,
    contractions,
    indexing,
    linear,
    movement,
    quantization,
    recurrent,
    registry,
    regroup,
    resizing,
    statistics,
    taking,
)
from .attention import Operands
from .edit import Edit
from .elementwise import broadcast, elementwise
from .errors import UsageError
from .linear import Linear
from .node_view import NodeView
from .quantization import CONV
from .site import Results, Site
from .statistics import SPATIAL, pins


@dataclass(frozen=True)
class Operator:
    """One entry: `infer` types the results, `shrink` mends sizes written into the node.

    `rule` is what the documentation shows; `parameters` names the operands; `shape_like` names a standard operator with
    the same output shape, for operators that ONNX's shape inference does not know; `linear` shows a node as a linear map, for
    second-order criteria and repair.
    """

    name: str
    infer: Callable[[Site], Results]
    rule: str
    shrink: Callable[[Edit], None] | None = None
    parameters: tuple[str, ...] = ()
    shape_like: str = ""
    linear: Callable[[NodeView], Linear | None] | None = None


# ---- kinds of entries ---------------------------------------------------------------------------

Sizes = Callable[[Site], Mapping[str, int]]


def typed(
    name: str,
    rule: str,
    sizes: Sizes | None = None,
    macs: Callable[[Site], int] | None = None,
    shrink: Callable[[Edit], None] | None = None,
    parameters: tuple[str, ...] = (),
    shape_like: str = "",
    linear: Callable[[NodeView], Linear | None] | None = None,
) -> Operator:
    """An operator with one typing rule.

    `sizes` reads the sizes of dimensions from attributes; `macs` gives the multiply-accumulates for each combination of
    the rule's dimensions (kernel and output positions).
    """

    def infer(site: Site) -> Results:
        return site.match(rule, sizes(site) if sizes else None, macs(site) if macs else None)

    return Operator(name, infer, rule, shrink, parameters, shape_like, linear)


def each(names: str, rule: str, make: Callable[[Site], Results], shape_like: str = "") -> Iterable[Operator]:
    """Several operators with the same entry."""
    return [Operator(name, make, rule, shape_like=shape_like) for name in names.split()]


# ---- the table ----------------------------------------------------------------------------------

WEIGHT = ("", "weight", "bias")
QLINEAR = ("", "", "", "weight", "", "", "", "", "bias")
MATMUL = "[...,m,k] [...,k,n] -> [...,m,n]"
ATTENTION = "[b,S,(h r d)] [b,T,(h d)] [b,T,(h e)] -> [b,S,(h r e)]"
ROTARY = "[b,h,S,(J p)] -> [b,h,S,(J p)] (interleaved: (p J))"
BATCH_NORM = ("", "scale", "bias", "mean", "variance")

_ENTRIES: list[Operator] = [
    # contractions
    typed(
        "Conv",
        CONV,
        contractions.group_sizes,
        contractions.conv_macs,
        contractions.shrink_conv,
        WEIGHT,
        linear=linear.convolution,
    ),
    typed(
        "com.microsoft::FusedConv",
        CONV.replace("? ->", "? [b,(g o),_...]? ->"),
        contractions.group_sizes,
        contractions.conv_macs,
        contractions.shrink_conv,
        WEIGHT,
        shape_like="Conv",
    ),
    typed(
        "ConvTranspose",
        "[b,(g i),_...] [(g i),o,_...] [(g o)]? -> [b,(g o),_...]",
        contractions.group_sizes,
        contractions.transposed_conv_macs,
        contractions.shrink_conv,
        WEIGHT,
        linear=linear.transposed_convolution,
    ),
    Operator(
        "DeformConv",
        contractions.deformable_conv,
        "[b,(g i),_...] [(g o),i,_...] [b,_...] [(g o)]? [b,_...]? -> [b,(g o),_...]",
        contractions.shrink_conv,
        ("", "weight", "", "bias"),
    ),
    Operator("Gemm", contractions.gemm, "[m,k] [k,n] [n]? -> [m,n] (transA, transB)", parameters=WEIGHT, linear=linear.product),
    Operator("MatMul", contractions.matmul, MATMUL, parameters=("", "weight"), linear=linear.product),
    Operator("Einsum", contractions.einsum, "its equation"),
    *(
        Operator(name, recurrent.recurrent(*counts), recurrent.rule(), recurrent.shrink_recurrent, recurrent.PARAMETERS)
        for name, counts in {"LSTM": (4, 8), "GRU": (3, 6), "RNN": (1, 2)}.items()
    ),
    Operator(
        "com.microsoft::FusedMatMul",
        contractions.fused_matmul,
        "MatMul (transA, transB)",
        parameters=("", "weight"),
        shape_like="MatMul",
    ),
    Operator("com.microsoft::FusedGemm", contractions.gemm, "[m,k] [k,n] [n]? -> [m,n] (transA, transB)", parameters=WEIGHT),
    # attention
    Operator(
        "Attention",
        attention.attention(attention.standard_heads, Operands(mask=3, past=4, whole=(6,))),
        ATTENTION,
        attention.shrink_attention(attention.standard_heads, "q_num_heads", "kv_num_heads"),
    ),
    Operator(
        "com.microsoft::MultiHeadAttention",
        attention.attention(attention.equal_heads, Operands(mask=5, bias=3, past=6, whole=(4, 8))),
        ATTENTION,
        attention.shrink_attention(attention.equal_heads, "num_heads"),
    ),
    Operator(
        "com.microsoft::GroupQueryAttention",
        attention.grouped_attention(Operands(mask=10, past=3, sink=11, whole=(5, 6, 7, 8, 9))),
        ATTENTION,
        attention.shrink_grouped_attention,
    ),
    Operator(
        "com.microsoft::Attention",
        attention.packed_attention,
        "[b,S,i] [i,(h d)+(h d)+(h e)] [(h d)+(h d)+(h e)]? -> [b,S,(h e)]",
        attention.shrink_packed_attention,
        WEIGHT,
    ),
    Operator("RotaryEmbedding", attention.rotary(1), ROTARY, attention.shrink_rotary),
    Operator("com.microsoft::RotaryEmbedding", attention.rotary(2), ROTARY, attention.shrink_rotary),
    # per channel
    typed("BatchNormalization", "[b,c,...] [c] [c] [c] [c] -> [b,c,...] [c] [c] [c] [c]", parameters=BATCH_NORM),
    Operator(
        "InstanceNormalization",
        statistics.instance_norm,
        "[b,c,_...] [c] [c] -> [b,c,_...]",
        parameters=("", "scale", "bias"),
    ),
    Operator("MeanVarianceNormalization", statistics.mean_variance_norm, "pins axes, carries the others", shape_like="Identity"),
    Operator(
        "GroupNormalization",
        statistics.group_norm,
        "[b,(g C),_...] [(g C)] [(g C)] -> [b,(g C),_...]",
        statistics.shrink_group_norm,
        shape_like="Identity",
    ),
    Operator(
        "LayerNormalization",
        statistics.layer_norm,
        "[...,_...] [_...] [_...]? -> [...,_...] (from axis on)",
        shape_like="Identity",  # ONNX Runtime writes it into older opsets, too
    ),
    Operator("RMSNormalization", statistics.layer_norm, "[...,_...] [_...] -> [...,_...] (from axis on)"),
    Operator(
        "SimplifiedLayerNormalization",
        statistics.layer_norm,
        "[...,_...] [_...] -> [...,_...] (from axis on)",
        shape_like="Identity",
    ),
    *each(
        "com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization",
        "[...,_] [...,_] [_] -> [...,_]",
        statistics.skip_layer_norm,
    ),
    Operator("graphprune::Take", taking.take, "[...] -> [...] (channels of its own)", taking.mend_take, shape_like="Identity"),
    Operator("LpNormalization", statistics.lp_norm, "pins axis, carries the others"),
    typed("LRN", "[b,_,_...] -> [b,_,_...]"),
    *each("AveragePool MaxPool LpPool", SPATIAL, statistics.pooling),
    *each("GlobalAveragePool GlobalMaxPool GlobalLpPool", SPATIAL, statistics.global_pooling),
    Operator("Resize", resizing.resize, "carries axes that keep their size, pins the others", resizing.shrink_resize),
    Operator("Upsample", resizing.resize, "carries axes that keep their size, pins the others"),
    Operator("DepthToSpace", resizing.depth_to_space, "[b,(R S c),_,_] -> [b,c,_,_] (CRD: (c R S))"),
    typed("SpaceToDepth", "[b,c,_,_] -> [b,(R S c),_,_]", resizing.block_sizes),
    # elementwise
    *each(
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Dropout Elu Erf Exp Floor Gelu "
        "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
        "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu com.microsoft::QLinearSigmoid "
        "com.microsoft::QLinearLeakyRelu",
        "[...] -> [...]",
        elementwise,
    ),
    *each("com.microsoft::Gelu com.microsoft::QuickGelu", "[...] -> [...]", elementwise, "Identity"),
    Operator("CastLike", elementwise, "[...] [_...] -> [...]"),
    *each(
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less "
        "LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor com.microsoft::BiasAdd",
        "[...] [...] -> [...] (broadcast)",
        broadcast,
    ),
    *each("com.microsoft::BiasGelu com.microsoft::FastGelu", "[...] [...] -> [...] (broadcast)", broadcast, "Identity"),
    # quantised
    *each(
        "QuantizeLinear DequantizeLinear com.microsoft::QuantizeLinear com.microsoft::DequantizeLinear",
        "[...,c,...] [c] [c]? -> [...,c,...]",
        quantization.quantize,
    ),
    Operator("DynamicQuantizeLinear", quantization.dynamic, "[_...] -> [_...] [] []"),
    Operator(
        "QLinearConv",
        quantization.convolution((0, 3, 8), {0: 2, 3: 5}, scales=(4, 5)),
        CONV,
        partial(contractions.shrink_conv, weight=3),
        QLINEAR,
    ),
    Operator("ConvInteger", quantization.convolution((0, 1), {0: 2, 1: 3}, scales=(3,)), CONV, contractions.shrink_conv, WEIGHT),
    Operator(
        "QLinearMatMul", quantization.product((0, 3), {0: 2, 3: 5}, scales=(4, 5)), MATMUL, parameters=("", "", "", "weight")
    ),
    Operator("MatMulInteger", quantization.product((0, 1), {0: 2, 1: 3}, scales=(3,)), MATMUL, parameters=("", "weight")),
    Operator(
        "com.microsoft::MatMulIntegerToFloat",
        quantization.product((0, 1), {0: 4, 1: 5}, scales=(3, 5, 6)),
        MATMUL,
        parameters=("", "weight"),
    ),
    Operator(
        "com.microsoft::QGemm",
        quantization.quantized_gemm,
        "[m,k] [k,n] [n]? -> [m,n] (transA, transB)",
        parameters=("", "", "", "weight", "", "", "bias"),
    ),
    Operator(
        "com.microsoft::MatMulNBits",
        quantization.packed_product,
        "[...,(z P W)] [n,(z P),_] [n,(z P)] [n,z]? _? [n]? -> [...,n]",
        quantization.shrink_packed_product,
        ("", "weight", "", "", "", "bias"),
    ),
    *each(
        "com.microsoft::QLinearAdd com.microsoft::QLinearMul",
        "[...] [...] -> [...] (broadcast)",
        partial(broadcast, operands=(0, 3)),
    ),
    *each("com.microsoft::QLinearGlobalAveragePool com.microsoft::QLinearAveragePool", SPATIAL, quantization.pooling),
    Operator(
        "com.microsoft::QLinearConcat", partial(movement.concat, first=2, step=3), "[a,...] [b,...] -> [a+b,...] (along axis)"
    ),
    # over an axis
    *each("Softmax LogSoftmax Hardmax", "pins axis, carries the others", pins("axis", -1)),
    Operator("com.microsoft::QLinearSoftmax", statistics.quantised_softmax, "pins axis, carries the others"),
    Operator("TopK", statistics.top_k, "pins axis, carries the others"),
    *each("CumSum CumProd", "pins axis, carries the others", pins("", 0, index=1)),
    Operator("DFT", statistics.fourier, "pins axis and the last, carries the others"),
    Operator("Compress", statistics.compress, "pins axis, carries the others"),
    Operator("CenterCropPad", statistics.center_crop, "pins axes, carries the others"),
    typed("Det", "[...,_,_] -> [...]"),
    *each("ArgMax ArgMin", "pins axis, carries the others", statistics.arg_reduction),
    *each("ReduceProd ReduceLogSum ReduceLogSumExp", "pins axes, carries the others", statistics.reduction),
    *each("ReduceL1 ReduceSumSquare", "pins axes, carries the others", statistics.norm),
    Operator("ReduceSum", statistics.total, "contracts axes of a product; else pins axes, carries the others"),
    *each("ReduceMean ReduceMax ReduceMin ReduceL2", "pins axes, carries the others", statistics.normalizer),
    # movement
    Operator("Concat", movement.concat, "[a,...] [b,...] -> [a+b,...] (along axis)"),
    Operator("Split", movement.split, "[a+b,...] -> [a,...] [b,...] (along axis)", movement.shrink_split),
    Operator("Slice", movement.slice_, "start:end:step of axes", movement.shrink_slice),
    Operator("Gather", movement.gather, "constant indices of axis; else pins axis", movement.shrink_gather),
    Operator("Pad", movement.pad, "[a] -> [new+a+new]", movement.shrink_pad),
    Operator("Tile", movement.tile, "repeats axes"),
    Operator("Transpose", movement.transpose, "permutes axes"),
    Operator("Squeeze", movement.squeeze, "drops axes of size 1"),
    Operator("Unsqueeze", movement.unsqueeze, "inserts axes of size 1"),
    Operator("Reshape", regroup.reshape, "[(a b)] <-> [a,b] in memory order", regroup.shrink_reshape),
    Operator("Flatten", regroup.reshape, "[a,b,c] -> [a,(b c)]"),
    Operator("Expand", movement.expand, "carries axes that keep their size", movement.shrink_expand),
    Operator("GatherElements", indexing.gather_elements, "pins axis, unifies the others"),
    Operator("ScatterElements", indexing.scatter_elements, "pins axis, unifies the others"),
    Operator("GatherND", indexing.gather_nd, "pins the addressed axes, carries the others"),
    Operator("ScatterND", indexing.scatter_nd, "pins the addressed axes, carries the others"),
    typed("Trilu", "[...,_,_] [_...]? -> [...,_,_]"),
    typed("RoiAlign", "[_,c,_,_] [_,_] [_] -> [_,c,_,_]"),
    typed("GridSample", "[b,c,_...] [b,_...] -> [b,c,_...]"),
    typed("Col2Im", "[b,(c K),_] [_] [_] -> [b,c,_...]", resizing.block_positions),
    typed("ReverseSequence", "[_,_,...] [_] -> [_,_,...]"),
    Operator("graphprune::If", resizing.branch, "[...] [...] -> [...] (both branches)"),
    *each("Shape Size", "pins the sizes that are read", resizing.shape_of),
    Operator("ConstantOfShape", resizing.constant_of_shape, "carries axes whose sizes are copied"),
    *each(
        "EyeLike NonZero OneHot RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range",
        "pinned",
        resizing.independent,
    ),
]

TABLE: dict[str, Operator] = {entry.name: entry for entry in _ENTRIES}
"""The built-in operators by name, domain first (`com.microsoft::FusedConv`)."""


@cache
def operator_table() -> Mapping[str, Operator]:
    """All operators by name: the built-in ones and those of plugins (entry points `graphprune.operators`), read on first use.

    Raises UsageError where a plugin cannot be loaded, is no Operator or list of such, or names an operator that is there already.
    """
    found, owners = dict(TABLE), dict.fromkeys(TABLE, "graphprune itself")
    for name, entry in registry.registered("operators").items():
        owner, rows = registry.described(entry), registry.load("operators", name)
        rows = [rows] if isinstance(rows, Operator) else rows
        if not isinstance(rows, list | tuple) or not all(isinstance(row, Operator) for row in rows):
            raise UsageError(f"operators {name!r} ({owner}) must be an Operator or a list of them; it is {rows!r:.80}")
        for row in rows:
            if row.name in found:
                raise UsageError(
                    f"{owner} defines the operator {row.name!r}, which is there from {owners[row.name]}; uninstall one"
                )
            found[row.name], owners[row.name] = row, owner
    return MappingProxyType(found)
