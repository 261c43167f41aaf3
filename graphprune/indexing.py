"""Operators that read or write at computed places: the axes that are searched are pinned, the others carried.

Start reading at `gather_nd`; Gather itself, whose indices may be constant, is in `graphprune.movement`.
"""

from __future__ import annotations

from collections.abc import Sequence

from .node_view import normal_axis
from .site import Axes, Axis, Results, Site


def gather_elements(site: Site) -> Results:
    """Takes one element for each index; the axis it searches is pinned (GatherElements, opset 13)."""
    return [_elementwise_index(site, [0, 1])]


def scatter_elements(site: Site) -> Results:
    """Writes one element for each index; the axis it searches is pinned (ScatterElements, opset 18)."""
    axes = _elementwise_index(site, [0, 1, 2])
    return [None if axes is None else list(site.axes(0) or ())]


def _elementwise_index(site: Site, operands: Sequence[int]) -> Axes | None:
    """Unify the axes of all operands but the searched one; the axes of the indices with what is known of them."""
    known = [site.axes(index) for index in operands]
    if any(axes is None for axes in known) or len({len(axes or ()) for axes in known}) != 1:
        return site.settled(site.refuse_unknown()[0])
    tensors: list[Axes] = [axes for axes in known if axes is not None]
    shapes = [site.shape(index) or () for index in operands]
    at = normal_axis(site.attribute("axis", 0), len(tensors[0]))
    result: Axes = []
    for axis in range(len(tensors[0])):
        entries: list[Axis] = [axes[axis] for axes in tensors]
        sizes = {shape[axis] for shape in shapes}
        if axis == at or len(sizes) > 1 or None in sizes:
            text = f"{site.operator} searches this axis"
            if axis == at:
                site.address(1, entries[0], text)
            for entry in entries[axis == at :]:
                site.pin(entry, text)
            result.append(site.pinned(text))
            continue
        for entry in entries[1:]:
            entries[0] = site.unify(entries[0], entry)
        result.append(entries[0])
    for index in operands:
        site.note_carrier(index)
    return result


def gather_nd(site: Site) -> Results:
    """Takes slices at computed places: the axes that an index addresses are pinned, those of a slice carried (opset 13)."""
    data, indices, shape = site.axes(0), site.axes(1), site.shape(1)
    if data is None or indices is None or shape is None or not isinstance(shape[-1], int):
        return site.refuse_unknown()
    batch = site.attribute("batch_dims", 0)
    depth, text = batch + shape[-1], f"{site.operator} searches this axis"
    for axis in data[batch:depth]:
        site.address(1, axis, text)
    site.pin(indices[-1], text)
    lead = [site.unify(a, b) for a, b in zip(indices[:batch], data[:batch], strict=True)]
    for axis, ids in enumerate(data) if site.is_constant(0) else ():
        if not isinstance(ids, int):
            site.note_weight(0, axis, [(ids, "consumer" if batch <= axis < depth else "carrier")])
    return [[*lead, *indices[batch:-1], *data[depth:]]]


def scatter_nd(site: Site) -> Results:
    """Writes slices at computed places: the axes that an index addresses are pinned, those of a slice carried (opset 18)."""
    data, indices, updates, shape = site.axes(0), site.axes(1), site.axes(2), site.shape(1)
    if data is None or indices is None or updates is None or shape is None or not isinstance(shape[-1], int):
        return site.refuse_unknown()
    depth, lead = shape[-1], len(indices) - 1
    text = f"{site.operator} searches this axis"
    site.pin_axes(data[:depth], text)
    site.pin_axes(indices, text)
    site.pin_axes(updates[:lead], text)
    slices = [site.unify(a, b) for a, b in zip(data[depth:], updates[lead:], strict=True)]
    site.note_carrier(0)
    site.note_carrier(2)
    return [[*data[:depth], *slices]]
