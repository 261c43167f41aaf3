"""Operators that work index by index: results have the axes of their operands.  Start reading at `broadcast`."""

from __future__ import annotations

from collections.abc import Sequence

from .graph import Dim
from .site import LooseAxis, Results, Site


def elementwise(site: Site) -> Results:
    """Results have the axes of the first input."""
    axes = site.loose_axes(0)
    if axes is not None and site.is_constant(0) and len(site.inputs) == 1:
        site.hand_on(range(len(axes)))
    return [None if axes is None else list(axes) for _ in site.outputs]


def broadcast(site: Site, operands: Sequence[int] | None = None) -> Results:
    """Axes are aligned from the right (ONNX multidirectional broadcasting) and unified where no size is 1."""
    indices = [index for index in (operands or range(len(site.inputs))) if site.has(index)]
    entries = [_sized_axes(site, index) for index in indices]
    if any(pairs is None for pairs in entries):
        return site.refuse_unknown()
    known = [pairs for pairs in entries if pairs is not None]
    result: list[LooseAxis] = []
    for back in range(max(map(len, known)), 0, -1):
        result.append(_broadcast_axis(site, [pairs[-back] for pairs in known if len(pairs) >= back]))
    for index in indices:
        site.note_carrier(index)
    return [list(result) for _ in site.outputs]


def _sized_axes(site: Site, index: int) -> list[tuple[LooseAxis, Dim]] | None:
    axes, shape = site.loose_axes(index), site.shape(index)
    if axes is None:
        return None
    return list(zip(axes, shape or (None,) * len(axes), strict=True))


def _broadcast_axis(site: Site, entries: list[tuple[LooseAxis, Dim]]) -> LooseAxis:
    wide = [axis for axis, dim in entries if site.size(axis, dim) != 1]
    if not wide:
        return entries[0][0]
    result = wide[0]
    for axis in wide[1:]:
        result = site.unify(result, axis)
    return result
