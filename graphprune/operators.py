"""The operator table: everything graphprune knows about an operator, one entry each.

An entry is a typing rule (the notation is in `graphprune.rules`) or a small function, and where sizes are written into the
node also how to bring them back in line after pruning.  An operator without an entry pins every axis it touches.

To add an operator, add an entry here (docs/adding-an-operator.md).  Start reading at `TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from . import contractions, movement, quantization, recurrent, regroup, statistics
from .edit import Edit
from .node_view import normal_axis
from .shape_flow import computed_dimensions, copied_dimensions
from .site import Axes, Axis, Results, Site
from .statistics import SPATIAL, pins


@dataclass(frozen=True)
class Operator:
    """One entry: `infer` types the results, `shrink` mends sizes written into the node.

    `rule` is what the documentation shows; `parameters` names the operands; `shape_like` names a standard operator with
    the same output shape, for operators that ONNX's shape inference does not know.
    """

    name: str
    infer: Callable[[Site], Results]
    rule: str
    shrink: Callable[[Edit], None] | None = None
    parameters: tuple[str, ...] = ()
    shape_like: str = ""


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
) -> Operator:
    """An operator with one typing rule.

    `sizes` reads the sizes of dimensions from attributes; `macs` gives the multiply-accumulates for each combination of
    the rule's dimensions (kernel and output positions).
    """

    def infer(site: Site) -> Results:
        return site.match(rule, sizes(site) if sizes else None, macs(site) if macs else None)

    return Operator(name, infer, rule, shrink, parameters, shape_like)


def each(names: str, rule: str, make: Callable[[Site], Results]) -> Iterable[Operator]:
    """Several operators with the same entry."""
    return [Operator(name, make, rule) for name in names.split()]


def elementwise(site: Site) -> Results:
    """Results have the axes of the first input."""
    axes = site.axes(0)
    if site.is_constant(0) and len(site.inputs) == 1:
        site.ledger.origins[site.outputs[0]] = site.ledger.origins.get(site.inputs[0], site.inputs[0])
    return [None if axes is None else list(axes) for _ in site.outputs]


def broadcast(site: Site) -> Results:
    """Axes are aligned from the right (ONNX multidirectional broadcasting) and unified where no size is 1."""
    indices = [index for index in range(len(site.inputs)) if site.has(index)]
    operands = [site.axes(index) for index in indices]
    if any(axes is None for axes in operands):
        return site.refuse_unknown()
    shapes = [site.shape(index) or (None,) * len(axes or ()) for index, axes in zip(indices, operands, strict=True)]
    known = [list(zip(axes or (), shape, strict=True)) for axes, shape in zip(operands, shapes, strict=True)]
    rank = max(len(axes) for axes in known)
    result: Axes = []
    for back in range(rank, 0, -1):
        result.append(_broadcast_axis(site, [axes[-back] for axes in known if len(axes) >= back]))
    for index in indices:
        site.note_carrier(index)
    return [list(result) for _ in site.outputs]


def _broadcast_axis(site: Site, entries: list[tuple[Axis, int | str | None]]) -> Axis:
    wide = [axis for axis, dim in entries if site.size(axis, dim) != 1]
    if not wide:
        return entries[0][0]
    result = wide[0]
    for axis in wide[1:]:
        result = site.unify(result, axis)
    return result


def independent(site: Site) -> Results:
    """Results depend on shapes or values of the input only: every axis of the result is pinned."""
    for index in range(len(site.inputs)):
        site.pin_axes(site.axes(index), f"{site.operator} reads this")
    return [site.pinned_result(k, f"made by {site.operator}") for k in range(len(site.outputs))]


# ---- others that need a few lines ---------------------------------------------------------------


def block_sizes(site: Site) -> Mapping[str, int]:
    """The two sides of a block of DepthToSpace and SpaceToDepth."""
    return {"R": int(site.attribute("blocksize")), "S": int(site.attribute("blocksize"))}


def depth_to_space(site: Site) -> Results:
    """Mode DCR (depth outermost) or CRD."""
    crd = site.attribute("mode", b"DCR") == b"CRD"
    return site.match("[b,(c R S),_,_] -> [b,c,_,_]" if crd else "[b,(R S c),_,_] -> [b,c,_,_]", block_sizes(site))


def resize(site: Site) -> Results:
    """Axes whose size stays are carried, the others pinned; sizes computed at run time must be copies of the right axes."""
    axes, before, after = site.axes(0), site.shape(0), site.output_shape()
    if axes is None or before is None or after is None:
        return site.refuse("Resize with an unknown rank")
    text = "Resize interpolates along this axis"
    result = [axis if a == b and a is not None else site.pin(axis, text) for axis, a, b in zip(axes, before, after, strict=True)]
    if site.has(3) and site.constant(3) is None:
        sources = copied_dimensions(site.graph, site.inputs[3]) or []
        at = site.attribute("axes", list(range(len(axes))))
        entries = dict(zip(at, sources, strict=False))
        for axis, ids in enumerate(result):
            source = entries.get(axis)
            known = site.ledger.values.get(source[0]) if isinstance(source, tuple) else None
            if isinstance(source, tuple) and known is not None:
                site.unify(ids, known[source[1]])
            elif axis in entries or not sources:
                site.pin(ids, "Resize to a size that is computed at run time")
    return [result]


def shrink_resize(edit: Edit) -> None:
    """Writes the new sizes of carried axes into a constant `sizes` operand."""
    sizes = edit.integers(3)
    if sizes is None:
        return
    rank = len(edit.shape(0) or ())
    at = [normal_axis(int(k), rank) for k in edit.attribute("axes", range(rank))]
    edit.set_integers(3, [edit.kept_count(0, axis) or size for axis, size in zip(at, sizes, strict=True)])


def shape_of(site: Site) -> Results:
    """Shape and Size: a size that is computed with must not change; one that is only copied into a shape may."""
    axes = site.axes(0) or []
    for k in computed_dimensions(site.graph, site.position, len(axes)):
        site.pin(axes[k], "its size is computed with at run time")
    return [site.pinned_result(0, "a shape")]


# ---- the table ----------------------------------------------------------------------------------

CONV = "[b,(g i),_...] [(g o),i,_...] [(g o)]? -> [b,(g o),_...]"
WEIGHT = ("", "weight", "bias")
BATCH_NORM = ("", "scale", "bias", "mean", "variance")

_ENTRIES: list[Operator] = [
    # contractions
    typed("Conv", CONV, contractions.group_sizes, contractions.conv_macs, contractions.shrink_conv, WEIGHT),
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
    ),
    Operator("Gemm", contractions.gemm, "[m,k] [k,n] [n]? -> [m,n] (transA, transB)", parameters=WEIGHT),
    Operator("MatMul", contractions.matmul, "[...,m,k] [...,k,n] -> [...,m,n]", parameters=("", "weight")),
    Operator("Einsum", contractions.einsum, "its equation"),
    *(
        Operator(name, recurrent.recurrent(*counts), recurrent.rule(), recurrent.shrink_recurrent, recurrent.PARAMETERS)
        for name, counts in {"LSTM": (4, 8), "GRU": (3, 6), "RNN": (1, 2)}.items()
    ),
    # per channel
    typed("BatchNormalization", "[b,c,...] [c] [c] [c] [c] -> [b,c,...] [c] [c] [c] [c]", parameters=BATCH_NORM),
    typed("InstanceNormalization", "[b,c,_...] [c] [c] -> [b,c,_...]", parameters=("", "scale", "bias")),
    Operator(
        "GroupNormalization",
        statistics.group_norm,
        "[b,(g C),_...] [(g C)] [(g C)] -> [b,(g C),_...]",
        statistics.shrink_group_norm,
        shape_like="Identity",
    ),
    Operator("LayerNormalization", statistics.layer_norm, "[...,_...] [_...] [_...]? -> [...,_...] (from axis on)"),
    Operator("LpNormalization", pins("axis", -1), "pins axis, carries the others"),
    typed("LRN", "[b,_,_...] -> [b,_,_...]"),
    *each(
        "AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool",
        SPATIAL,
        statistics.pooling,
    ),
    Operator("Resize", resize, "carries axes that keep their size, pins the others", shrink_resize),
    Operator("Upsample", resize, "carries axes that keep their size, pins the others"),
    Operator("DepthToSpace", depth_to_space, "[b,(R S c),_,_] -> [b,c,_,_] (CRD: (c R S))"),
    typed("SpaceToDepth", "[b,c,_,_] -> [b,(R S c),_,_]", block_sizes),
    # elementwise
    *each(
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Dropout Elu Erf Exp Floor Gelu "
        "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
        "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu",
        "[...] -> [...]",
        elementwise,
    ),
    *each(
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike Clip Div Equal Greater GreaterOrEqual Less "
        "LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor",
        "[...] [...] -> [...] (broadcast)",
        broadcast,
    ),
    *each("QuantizeLinear DequantizeLinear", "[...,c,...] [c] [c]? -> [...,c,...]", quantization.quantize),
    # over an axis
    *each("Softmax LogSoftmax Hardmax", "pins axis, carries the others", pins("axis", -1)),
    Operator("TopK", pins("axis", -1), "pins axis, carries the others"),
    Operator("CumSum", pins("", 0, index=1), "pins axis, carries the others"),
    *each("ArgMax ArgMin", "pins axis, carries the others", statistics.arg_reduction),
    *each(
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp",
        "pins axes, carries the others",
        statistics.reduction,
    ),
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
    *each("Shape Size", "pins the sizes that are read", shape_of),
    *each(
        "ConstantOfShape EyeLike NonZero OneHot RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range",
        "pinned",
        independent,
    ),
]

TABLE: dict[str, Operator] = {entry.name: entry for entry in _ENTRIES}
"""All operators by name, domain first (`com.microsoft::FusedConv`)."""
