"""The operator table: everything graphprune knows about an operator, one entry each.

An entry is a typing rule (the notation is in `graphprune.rules`) or a small function, and where sizes are written into the
node also how to bring them back in line after pruning.  An operator without an entry pins every axis it touches.

To add an operator, add an entry here (docs/adding-an-operator.md).  Start reading at `TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from . import movement
from .edit import Edit
from .movement import Results
from .node_view import normal_axis
from .shape_flow import computed_dimensions, copied_dimensions
from .site import Axes, Axis, MacTerm, Site


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


def pins(attribute: str, default: int, index: int = -1, everything_after: bool = False) -> Callable[[Site], Results]:
    """Carries all axes but the one named by an attribute (or by constant input `index`), which is needed whole."""

    def infer(site: Site) -> Results:
        axes = site.axes(0)
        at = site.integers(index, attribute) if index >= 0 else [site.attribute(attribute, default)]
        if axes is None or at is None:
            return site.refuse(f"{site.operator} along an axis that is not known")
        if not axes:
            return [[] for _ in site.outputs]
        first = normal_axis(at[0], len(axes))
        for axis in axes[first:] if everything_after else axes[first : first + 1]:
            site.pin(axis, f"{site.operator} compares or normalises over this axis")
        return [list(axes) for _ in site.outputs]

    return infer


def reduction(site: Site) -> Results:
    """Reduce*: a statistic of activations, so the reduced axes are pinned.

    Even a sum is: no weight could be zeroed to mask an index, and what follows (a mean, a norm) counts all of them.
    """
    axes = site.axes(0)
    at = site.integers(1, "axes", default=[])
    if axes is None or at is None:
        return site.refuse(f"{site.operator} over axes that are not known")
    if not at and not site.attribute("noop_with_empty_axes", 0):
        at = list(range(len(axes)))
    return [reduced_axes(site, axes, [normal_axis(k, len(axes)) for k in at])]


def reduced_axes(site: Site, axes: Axes, at: list[int]) -> Axes:
    """The axes that are left after reducing over `at`."""
    for k in at:
        site.pin(axes[k], f"{site.operator} reduces over this axis")
    if site.attribute("keepdims", 1):
        unit = site.pinned("an axis of size 1")
        return [unit if k in at else axis for k, axis in enumerate(axes)]
    return [axis for k, axis in enumerate(axes) if k not in at]


def pooling(site: Site) -> Results:
    """Positions are pinned, channels carried; indices of maxima count through all channels, so who reads them pins those."""
    if len(site.outputs) > 1 and site.outputs[1]:
        return site.refuse(f"{site.operator} gives indices that count through all channels")
    return site.match(SPATIAL)


def arg_reduction(site: Site) -> Results:
    """ArgMax and ArgMin: the positions along `axis` are the result, so it is pinned."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    return [reduced_axes(site, axes, [normal_axis(site.attribute("axis", 0), len(axes))])]


def independent(site: Site) -> Results:
    """Results depend on shapes or values of the input only: every axis of the result is pinned."""
    for index in range(len(site.inputs)):
        site.pin_axes(site.axes(index), f"{site.operator} reads this")
    return [site.pinned_result(k, f"made by {site.operator}") for k in range(len(site.outputs))]


# ---- contractions -------------------------------------------------------------------------------


def positions(site: Site, name: str) -> int:
    """The number of spatial positions of a value of shape [N, C, ...]."""
    rank = len(site.graph.shape(name) or ())
    return prod(site.graph.typical_size(name, axis) for axis in range(2, rank))


def group_sizes(site: Site) -> Mapping[str, int]:
    """The size of g in the rules of convolutions."""
    return {"g": int(site.attribute("group", 1))}


def conv_macs(site: Site) -> int:
    """Kernel size times output positions."""
    return positions(site, site.outputs[0]) * positions(site, site.inputs[1])


def transposed_conv_macs(site: Site) -> int:
    """Kernel size times input positions."""
    return positions(site, site.inputs[0]) * positions(site, site.inputs[1])


def shrink_conv(edit: Edit) -> None:
    """Writes the number of groups that are left."""
    groups = int(edit.attribute("group", 1))
    if groups == 1:
        return
    data, weight, inner = edit.kept(0, 1), edit.kept(1, 0), edit.kept(1, 1)
    if data is None and weight is None:
        return
    transposed = edit.operator.endswith("ConvTranspose")
    size = edit.size(1) if data is None else len(data)
    per_group = edit.size(1) // groups if transposed else edit.size(1, 1)
    if inner is not None and not transposed:
        per_group = len(inner)
    if transposed and data is not None:
        per_group = int((data < per_group * (data[0] // per_group + 1)).sum())
    edit.set_attribute("group", size // per_group)


def gemm(site: Site) -> Results:
    """[m,k] [k,n] -> [m,n], either operand transposed; the third is broadcast."""
    left = "k,m" if site.attribute("transA", 0) else "m,k"
    right = "n,k" if site.attribute("transB", 0) else "k,n"
    result = site.match(f"[{left}] [{right}] -> [m,n]", macs=1)
    bias, axes = site.axes(2), result[0]
    if bias is None or axes is None:
        return result
    for axis, dim, wanted in zip(reversed(bias), reversed(site.shape(2) or ()), reversed(axes), strict=False):
        if dim != 1:
            site.unify(axis, wanted)
    site.note_carrier(2)
    return result


def matmul(site: Site) -> Results:
    """[...,m,k] [...,k,n] -> [...,m,n] with leading axes broadcast; an operand of rank 1 lacks m or n."""
    left, right = site.axes(0), site.axes(1)
    if left is None or right is None or not left or not right:
        return site.refuse_unknown()
    a = ["m", "k"] if len(left) > 1 else ["k"]
    b = ["k", "n"] if len(right) > 1 else ["k"]
    shapes = site.shape(0) or (), site.shape(1) or ()
    if len(shapes[0]) != len(left) or len(shapes[1]) != len(right):
        return site.refuse_unknown()
    depth = max(len(left) - len(a), len(right) - len(b))
    batch = [f"b{k}" for k in range(depth)]
    lead_a, lead_b = _lead(batch, shapes[0], len(a), "l"), _lead(batch, shapes[1], len(b), "r")
    out = [name if name in lead_a or name in lead_b else "one" for name in batch]
    out += [name for name in ("m", "n") if name in a or name in b]
    rule = f"[{','.join(lead_a + a)}] [{','.join(lead_b + b)}] -> [{','.join(out)}]"
    return site.match(rule, macs=1)


def _lead(batch: list[str], shape: tuple[int | str | None, ...], own: int, side: str) -> list[str]:
    """Names of the leading axes of one operand of MatMul; those of size 1 get a name of their own."""
    lead = shape[: len(shape) - own]
    names = batch[len(batch) - len(lead) :]
    return [f"{side}{name}" if dim == 1 else name for name, dim in zip(names, lead, strict=True)]


def einsum(site: Site) -> Results:
    """The equation is the rule."""
    equation = site.attribute("equation", b"").decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    if "." in equation or not arrow or any(letter.isupper() for letter in equation):
        return site.refuse(f"Einsum {equation!r}: only explicit equations in lower-case letters have a rule")
    operands = " ".join(f"[{','.join(term)}]" for term in left.split(","))
    return site.match(f"{operands} -> [{','.join(right)}]", macs=1)


def recurrent(gates: int) -> Callable[[Site], Results]:
    """LSTM, GRU and RNN: the hidden size is pinned; its MACs are counted."""

    def infer(site: Site) -> Results:
        length, batch, size = (site.graph.typical_size(site.inputs[0], axis) for axis in range(3))
        directions, hidden = (site.graph.typical_size(site.inputs[2], axis) for axis in (0, 2))
        macs = length * batch * directions * gates * hidden * (size + hidden)
        site.ledger.mac_terms.append(MacTerm(site.position, macs, ()))
        return site.refuse(f"{site.operator} has no rule that shrinks it yet")

    return infer


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


def layer_norm(site: Site) -> Results:
    """Statistics over `axis` and all that follow: those axes are pinned, with scale and bias."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    first = normal_axis(site.attribute("axis", -1), len(axes))
    text = f"{site.operator} takes its statistics over this axis: removing channels would change them"
    for axis in axes[first:]:
        site.pin(axis, text)
    for index in range(1, len(site.inputs)):
        site.pin_axes(site.axes(index), text)
        site.note_carrier(index)
    return [list(axes), *(site.pinned_result(k, text) for k in range(1, len(site.outputs)))]


def group_norm(site: Site) -> Results:
    """Statistics within each group: whole groups can leave, channels of a group cannot."""
    scale = "(g C)" if (site.shape(1) or (0,))[0] == (site.shape(0) or (0, 1))[1] else "g"
    rule = f"[b,(g C),_...] [{scale}] [{scale}] -> [b,(g C),_...]"
    return site.match(rule, {"g": int(site.attribute("num_groups"))})


def shrink_group_norm(edit: Edit) -> None:
    """Writes the number of groups that are left."""
    count = edit.kept_count(0, 1)
    if count is not None:
        per_group = edit.size(1) // int(edit.attribute("num_groups"))
        edit.set_attribute("num_groups", count // per_group)


def quantize(site: Site) -> Results:
    """QuantizeLinear and DequantizeLinear: per-channel scales and zero points are carriers."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    for index in (1, 2):
        scale = site.axes(index)
        if scale is None or not scale:
            continue
        at = normal_axis(site.attribute("axis", 1), len(axes))
        if len(scale) != 1:
            return site.refuse(f"blocked {site.operator} has no rule")
        if (site.shape(index) or (0,))[0] != 1:
            site.unify(axes[at], scale[0])
            site.note_carrier(index)
    if site.is_constant(0):
        site.ledger.origins[site.outputs[0]] = site.ledger.origins.get(site.inputs[0], site.inputs[0])
    return [list(axes)]


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
SPATIAL = "[b,c,_...] -> [b,c,_...]"

_ENTRIES: list[Operator] = [
    # contractions
    typed("Conv", CONV, group_sizes, conv_macs, shrink_conv, WEIGHT),
    typed(
        "com.microsoft::FusedConv",
        CONV.replace("? ->", "? [b,(g o),_...]? ->"),
        group_sizes,
        conv_macs,
        shrink_conv,
        WEIGHT,
        shape_like="Conv",
    ),
    typed(
        "ConvTranspose",
        "[b,(g i),_...] [(g i),o,_...] [(g o)]? -> [b,(g o),_...]",
        group_sizes,
        transposed_conv_macs,
        shrink_conv,
        WEIGHT,
    ),
    Operator("Gemm", gemm, "[m,k] [k,n] [n]? -> [m,n] (transA, transB)", parameters=WEIGHT),
    Operator("MatMul", matmul, "[...,m,k] [...,k,n] -> [...,m,n]", parameters=("", "weight")),
    Operator("Einsum", einsum, "its equation"),
    *(Operator(name, recurrent(gates), "pinned") for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))),
    # per channel
    typed("BatchNormalization", "[b,c,...] [c] [c] [c] [c] -> [b,c,...] [c] [c] [c] [c]", parameters=BATCH_NORM),
    typed("InstanceNormalization", "[b,c,_...] [c] [c] -> [b,c,_...]", parameters=("", "scale", "bias")),
    Operator(
        "GroupNormalization",
        group_norm,
        "[b,(g C),_...] [(g C)] [(g C)] -> [b,(g C),_...]",
        shrink_group_norm,
        shape_like="Identity",
    ),
    Operator("LayerNormalization", layer_norm, "[...,_...] [_...] [_...]? -> [...,_...] (from axis on)"),
    Operator("LpNormalization", pins("axis", -1), "pins axis, carries the others"),
    typed("LRN", "[b,_,_...] -> [b,_,_...]"),
    *each(
        "AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool",
        SPATIAL,
        pooling,
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
    *each("QuantizeLinear DequantizeLinear", "[...,c,...] [c] [c]? -> [...,c,...]", quantize),
    # over an axis
    *each("Softmax LogSoftmax Hardmax", "pins axis, carries the others", pins("axis", -1)),
    Operator("TopK", pins("axis", -1), "pins axis, carries the others"),
    Operator("CumSum", pins("", 0, index=1), "pins axis, carries the others"),
    *each("ArgMax ArgMin", "pins axis, carries the others", arg_reduction),
    *each(
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp",
        "pins axes, carries the others",
        reduction,
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
    Operator("Reshape", movement.reshape, "[(a b)] <-> [a,b] in memory order", movement.shrink_reshape),
    Operator("Flatten", movement.reshape, "[a,b,c] -> [a,(b c)]"),
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

