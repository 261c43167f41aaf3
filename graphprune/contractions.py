"""Operators that multiply and add over channels: convolutions, matrix products, Einsum.

Start reading at `matmul`; the convolutions' rules stand in `graphprune.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from .edit import Edit
from .graph import Shape
from .site import Results, Site


def positions(site: Site, name: str) -> int:
    """The number of spatial positions of a value of shape [N, C, ...]."""
    rank = len(site.graph.shape(name) or ())
    return prod(site.graph.typical_size(name, axis) for axis in range(2, rank))


def group_sizes(site: Site) -> Mapping[str, int]:
    """The size of g in the rules of convolutions."""
    return {"g": int(site.attribute("group", 1))}


def conv_macs(site: Site, weight: int = 1) -> int:
    """Kernel size times output positions."""
    return positions(site, site.outputs[0]) * positions(site, site.inputs[weight])


def transposed_conv_macs(site: Site) -> int:
    """Kernel size times input positions."""
    return positions(site, site.inputs[0]) * positions(site, site.inputs[1])


def shrink_conv(edit: Edit, weight: int = 1) -> None:
    """Writes the number of groups that are left."""
    groups = int(edit.attribute("group", 1))
    if groups == 1:
        return
    data, filters, inner = edit.kept(0, 1), edit.kept(weight, 0), edit.kept(weight, 1)
    if data is None and filters is None:
        return
    transposed = edit.operator.endswith("ConvTranspose")
    per_group = edit.size(0, weight) // groups if transposed else edit.size(1, weight)
    size = per_group * groups if data is None else len(data)
    if inner is not None and not transposed:
        per_group = len(inner)
    if transposed and data is not None:
        per_group = int((data < per_group * (data[0] // per_group + 1)).sum())
    edit.set_attribute("group", size // per_group)


def deformable_conv(site: Site) -> Results:
    """DeformConv: channels in groups for offsets leave alike from each; with groups of both kinds it has no rule."""
    offsets = int(site.attribute("offset_group", 1))
    if offsets == 1:
        rule = "[b,(g i),_...] [(g o),i,_...] [b,_...] [(g o)]? [b,_...]? -> [b,(g o),_...]"
        return site.match(rule, group_sizes(site), conv_macs(site))
    if site.attribute("group", 1) != 1:
        return site.refuse(f"this form of {site.operator} has no rule")
    rule = "[b,(D i),_...] [o,(D i),_...] [b,_...] [o]? [b,_...]? -> [b,o,_...]"
    return site.match(rule, {"D": offsets}, conv_macs(site))


def gemm(site: Site, inputs: tuple[int, int, int] = (0, 1, 2)) -> Results:
    """[m,k] [k,n] -> [m,n], either operand transposed; the third is broadcast."""
    left = "k,m" if site.attribute("transA", 0) else "m,k"
    right = "n,k" if site.attribute("transB", 0) else "k,n"
    result = site.match(f"[{left}] [{right}] -> [m,n]", macs=1, inputs=inputs[:2])
    if result[0] is not None and site.has(inputs[2]):
        site.align_right(inputs[2], result[0])
    return result


def matmul(site: Site, inputs: tuple[int, int] = (0, 1)) -> Results:
    """[...,m,k] [...,k,n] -> [...,m,n] with leading axes broadcast; an operand of rank 1 lacks m or n."""
    left, right = site.loose_axes(inputs[0]), site.loose_axes(inputs[1])
    if left is None or right is None or not left or not right:
        return site.refuse_unknown()
    a = ["m", "k"] if len(left) > 1 else ["k"]
    b = ["k", "n"] if len(right) > 1 else ["k"]
    shapes = site.shape(inputs[0]) or (), site.shape(inputs[1]) or ()
    if len(shapes[0]) != len(left) or len(shapes[1]) != len(right):
        return site.refuse_unknown()
    depth = max(len(left) - len(a), len(right) - len(b))
    batch = [f"b{k}" for k in range(depth)]
    lead_a, lead_b = _lead(batch, shapes[0], len(a), "l"), _lead(batch, shapes[1], len(b), "r")
    out = [name if name in lead_a or name in lead_b else "one" for name in batch]
    out += [name for name in ("m", "n") if name in a or name in b]
    first = [*lead_a, *(reversed(a) if site.attribute("transA", 0) and len(a) > 1 else a)]
    second = [*lead_b, *(reversed(b) if site.attribute("transB", 0) and len(b) > 1 else b)]
    return site.match(f"[{','.join(first)}] [{','.join(second)}] -> [{','.join(out)}]", macs=1, inputs=inputs)


def fused_matmul(site: Site) -> Results:
    """FusedMatMul of com.microsoft: MatMul with either operand transposed."""
    if site.attribute("transBatchA", 0) or site.attribute("transBatchB", 0):
        return site.refuse(f"{site.operator} that transposes its leading axes has no rule")
    return matmul(site)


def _lead(batch: list[str], shape: tuple[int | str | None, ...], own: int, side: str) -> list[str]:
    """Names of the leading axes of one operand of MatMul; those of size 1 get a name of their own."""
    lead = shape[: len(shape) - own]
    names = batch[len(batch) - len(lead) :]
    return [f"{side}{name}" if dim == 1 else name for name, dim in zip(names, lead, strict=True)]


def einsum(site: Site) -> Results:
    """The equation is the rule; an ellipsis stands for axes that are broadcast, a missing result for ONNX's default."""
    equation = site.attribute("equation", b"").decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    shapes = [site.shape(index) for index in range(len(terms))]
    if len(terms) != len(site.inputs) or any(shape is None for shape in shapes):
        return site.refuse_unknown()
    if not arrow:
        letters = sorted(letter for letter in set(left) if letter.isalpha() and left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(letters)
    known = [shape for shape in shapes if shape is not None]
    depth = max(len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, known, strict=True))
    batch = [f"b{k}" for k in range(depth)]
    operands = [_einsum_names(term, batch, shape) for term, shape in zip(terms, known, strict=True)]
    present = {name for names in operands for name in names}
    result = _einsum_names(right, [name if name in present else "one" for name in batch], None)
    rule = " ".join(f"[{','.join(names)}]" for names in operands)
    return site.match(f"{rule} -> [{','.join(result)}]", macs=1)


def _einsum_names(term: str, batch: list[str], shape: Shape | None) -> list[str]:
    """The rule's names for one term: letters get a small prefix, leading axes of size 1 a name of their own."""
    before, ellipsis, after = term.partition("...")
    first, last = [f"x{letter}" for letter in before], [f"x{letter}" for letter in after]
    if not ellipsis:
        return first
    if shape is None:
        return [*first, *batch, *last]
    middle = shape[len(first) : len(shape) - len(last)]
    names = batch[len(batch) - len(middle) :]
    return [*first, *(f"l{name}" if dim == 1 else name for name, dim in zip(names, middle, strict=True)), *last]
