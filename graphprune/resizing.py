"""Operators whose results have sizes of their own: blocks of positions, resizing, branches, shapes as values.

Start reading at `resize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from math import prod

from .edit import Edit
from .node_view import normal_axis
from .shape_flow import computed_dimensions, copied_axes
from .site import Axis, LooseAxis, Results, Site


def independent(site: Site) -> Results:
    """Results depend on shapes or values of the input only: every axis of the result is pinned."""
    for index in range(len(site.inputs)):
        site.pin_axes(site.axes(index), f"{site.operator} reads this")
    return [site.pinned_result(k, f"made by {site.operator}") for k in range(len(site.outputs))]


def block_sizes(site: Site) -> Mapping[str, int]:
    """The two sides of a block of DepthToSpace and SpaceToDepth."""
    return {"R": int(site.attribute("blocksize")), "S": int(site.attribute("blocksize"))}


def block_positions(site: Site) -> Mapping[str, int]:
    """The positions in a block of Col2Im."""
    block = site.integers(2)
    return {} if block is None else {"K": prod(block)}


def depth_to_space(site: Site) -> Results:
    """Mode DCR (depth outermost) or CRD."""
    crd = site.attribute("mode", b"DCR") == b"CRD"
    return site.match("[b,(c R S),_,_] -> [b,c,_,_]" if crd else "[b,(R S c),_,_] -> [b,c,_,_]", block_sizes(site))


def resize(site: Site) -> Results:
    """Axes whose size stays are carried, the others pinned; sizes computed at run time must be copies of the right axes."""
    axes, before, after = site.axes(0), site.shape(0), site.output_shape()
    if axes is None or before is None or after is None:
        return site.refuse("Resize with an unknown rank")
    result: list[Axis] = list(axes)
    for k, (a, b) in enumerate(zip(before, after, strict=True)):
        if a != b or a is None:
            text = "Resize interpolates along this axis"
            site.pin(axes[k], text)
            result[k] = site.pinned(text)  # of another size
    if site.has(3) and site.constant(3) is None:
        at = [normal_axis(int(k), len(axes)) for k in site.attribute("axes", range(len(axes)))]
        sources = copied_axes(site, 3) or []
        for k, source in zip_longest(at, sources[: len(at)]):
            if source is None:
                site.pin(result[k], "Resize to a size that is computed at run time")
            else:
                site.unify(result[k], source)
    return [result]


def shrink_resize(edit: Edit) -> None:
    """Writes the new sizes of carried axes into a constant `sizes` operand."""
    sizes = edit.integers(3)
    if sizes is None:
        return
    rank = len(edit.shape(0) or ())
    at = [normal_axis(int(k), rank) for k in edit.attribute("axes", range(rank))]
    edit.set_integers(3, [edit.kept_count(0, axis) or size for axis, size in zip(at, sizes, strict=True)])


def branch(site: Site) -> Results:
    """If: each result is one of two, so their axes are unified; what both branches cost is counted."""
    half = len(site.outputs)
    results: list[list[LooseAxis] | None] = []
    for k in range(half):
        one, other = site.loose_axes(1 + k), site.loose_axes(1 + half + k)
        if one is None or other is None or len(one) != len(other):
            return site.refuse("the branches of If have results of different ranks")
        results.append([site.unify(a, b) for a, b in zip(one, other, strict=True)])
        site.note_carrier(1 + k)
        site.note_carrier(1 + half + k)
    return results


def constant_of_shape(site: Site) -> Results:
    """Axes whose sizes are copied from another value are those of that value; all others are pinned."""
    shape, text = site.output_shape(), "made by ConstantOfShape"
    sources = copied_axes(site, 0)
    if shape is None or sources is None:
        return [site.pinned_result(0, text)]
    return [[site.pinned(text) if axis is None else axis for axis in sources]]


def shape_of(site: Site) -> Results:
    """Shape and Size: a size that is computed with must not change; one that is only copied into a shape may."""
    axes = site.axes(0) or []
    for k in computed_dimensions(site.graph, site.position, len(axes)):
        site.pin(axes[k], "its size is computed with at run time")
    return [site.pinned_result(0, "a shape")]
