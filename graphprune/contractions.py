"""Operators that multiply and add over channels: convolutions, matrix products, Einsum.

Start reading at `matmul`; the convolutions' rules stand in `graphprune.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from .edit import Edit
from .site import Results, Site


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
