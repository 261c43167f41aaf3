"""Operators that move indices without computing: their typing rules and what the rewrite does to them.

Each pair `x(site)` and `shrink_x(edit)` belongs to one entry of `graphprune.operators`.  A typing rule does to the label
vectors exactly what the operator does to the data: concatenate, cut, take.  Start reading at `concat`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .edit import Edit, Indices, positions_in
from .graph import Dim
from .joined_targets import joined_constants
from .labels import Ids
from .node_view import NodeView, normal_axis
from .shape_flow import copied_axes, copied_dimensions
from .site import Axes, Axis, LooseAxis, Results, Site

# ---- Concat, Split, Slice, Gather, Pad, Tile -----------------------------------------------------


def concat(site: Site, first: int = 0, step: int = 1) -> Results:
    """Sum of the operands along `axis`; all other axes are unified."""
    operands = range(first, len(site.inputs), step)
    parts = [site.axes(index) for index in operands]
    if any(axes is None for axes in parts):
        return site.refuse_unknown()
    known: list[Axes] = [axes for axes in parts if axes is not None]
    at = normal_axis(site.attribute("axis", 1), len(known[0]))
    result = list(known[0])
    for axes in known[1:]:
        result = [site.unify(a, b) if k != at else a for k, (a, b) in enumerate(zip(result, axes, strict=True))]
    result[at] = _join(site, [axes[at] for axes in known], [_dim(site, index, at) for index in operands])
    for index in operands:
        site.note_carrier(index)
    return [result]


def _join(site: Site, axes: Sequence[Axis], dims: Sequence[Dim]) -> Axis:
    if all(isinstance(axis, int) for axis in axes):
        return axes[0]
    sizes = [site.size(axis, dim) for axis, dim in zip(axes, dims, strict=True)]
    if any(size is None for size in sizes):
        for axis in axes:
            site.pin(axis, "joined with an axis of dynamic size")
        return site.pinned("joined with an axis of dynamic size")
    return np.concatenate([site.vector(axis, size or 0) for axis, size in zip(axes, sizes, strict=True)])


def _dim(site: Site, index: int, axis: int) -> Dim:
    shape = site.shape(index)
    return shape[axis] if shape is not None and axis < len(shape) else None


def split(site: Site) -> Results:
    """Cuts the axis into consecutive parts."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    at = normal_axis(site.attribute("axis", 0), len(axes))
    axis = axes[at]
    if isinstance(axis, int):
        return [list(axes) for _ in site.outputs]
    sizes = _split_sizes(site, len(axis))
    if sizes is None:
        text = "the sizes of Split are computed at run time"
        site.pin(axis, text)
        return [[*axes[:at], site.pinned(text), *axes[at + 1 :]] for _ in site.outputs]
    bounds = np.cumsum([0, *sizes])
    return [[*axes[:at], axis[bounds[k] : bounds[k + 1]], *axes[at + 1 :]] for k in range(len(sizes))]


def _split_sizes(node: NodeView, size: int) -> list[int] | None:
    if node.has(1) or node.attribute("split") is not None:
        return node.integers(1, "split")
    parts = len(node.outputs)
    chunk = -(-size // parts)
    return [min(chunk, size - k * chunk) for k in range(parts)]


def shrink_split(edit: Edit) -> None:
    """Writes the new sizes of the parts."""
    at = normal_axis(edit.attribute("axis", 0), len(edit.shape(0) or ()))
    if edit.kept(0, at) is None:
        return
    old = _split_sizes(edit, edit.size(at)) or []
    sizes = []
    for index in range(len(edit.outputs)):
        kept = edit.kept_output(index, at)
        sizes.append(old[index] if kept is None else len(kept))
    edit.set_integers(1, sizes, "split")
    edit.drop_attribute("num_outputs")


def slice_(site: Site) -> Results:
    """Takes start:end:step of some axes; with bounds that are not constant those axes are pinned."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    sliced = _sliced_axes(site, len(axes))
    if sliced is None:
        return site.refuse("the axes of Slice are computed at run time")
    bounds = _slice_bounds(site, len(axes))
    result = list(axes)
    for at in sliced:
        axis = axes[at]
        if bounds is None:
            text = "the bounds of Slice are computed at run time"
            site.pin(axis, text)
            result[at] = site.pinned(text)
        elif not isinstance(axis, int):
            start, end, step = bounds[at]
            result[at] = axis[np.arange(len(axis))[_python_slice(start, end, step)]]
    site.note_carrier(0)
    return [result]


def _sliced_axes(node: NodeView, rank: int) -> list[int] | None:
    """The axes that a Slice takes some of; None where they are computed at run time."""
    starts, count = node.integers(1, "starts"), node.shape(1)
    size = len(starts) if starts is not None else (count or (None,))[0]
    axes = node.integers(3, "axes", list(range(size)) if isinstance(size, int) else None)
    return None if axes is None else [normal_axis(axis, rank) for axis in axes]


def _slice_bounds(node: NodeView, rank: int) -> dict[int, tuple[int, int, int]] | None:
    axes, starts, ends = _sliced_axes(node, rank), node.integers(1, "starts"), node.integers(2, "ends")
    steps = node.integers(4, "steps", [1] * len(starts or ()))
    if axes is None or starts is None or ends is None or steps is None:
        return None
    return dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))


def _python_slice(start: int, end: int, step: int) -> slice:
    """ONNX clamps bounds as Python does, but spells 'before the first' as a very negative end."""
    return slice(start, None if step < 0 and end < -(2**31) + 2 else end, step)


def shrink_slice(edit: Edit) -> None:
    """Writes the new bounds; where the kept indices are no longer a range, a Gather takes them."""
    rank = len(edit.shape(0) or ())
    bounds = _slice_bounds(edit, rank)
    if bounds is None:
        return
    changed = {at: edit.kept(0, at) for at in bounds if edit.kept(0, at) is not None}
    gathers: list[tuple[int, Indices]] = []
    for at, kept in changed.items():
        assert kept is not None
        size = edit.size(at)
        taken = np.arange(size)[_python_slice(*bounds[at])]
        positions = positions_in(kept, taken[np.isin(taken, kept)])
        if len(positions) and np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions))):
            bounds[at] = (int(positions[0]), int(positions[-1]) + 1, 1)
        else:
            bounds[at] = (0, len(kept), 1)
            gathers.append((at, positions))
    if changed:
        edit.set_integers(1, [bound[0] for bound in bounds.values()], "starts")
        edit.set_integers(2, [bound[1] for bound in bounds.values()], "ends")
        if len(edit.node.input) > 3 or not edit.attributes:
            edit.set_integers(3, list(bounds), "axes")
            edit.set_integers(4, [bound[2] for bound in bounds.values()], "steps")
    for at, positions in gathers:
        edit.gather_output(0, at, positions)


def gather(site: Site) -> Results:
    """Takes constant indices of one axis; with indices from the data that axis is pinned."""
    axes = site.axes(0)
    index_axes = site.axes(1)
    if axes is None:
        return site.refuse_unknown()
    at = normal_axis(site.attribute("axis", 0), len(axes))
    indices = site.constant(1)
    axis = axes[at]
    text = "Gather selects from this axis"
    if indices is None or isinstance(axis, int):
        site.address(1, axis, text)
        middle: Axes | None = index_axes if indices is None else [site.pinned(text)] * indices.ndim
        result = None if middle is None else [*axes[:at], *middle, *axes[at + 1 :]]
    else:
        taken = axis[indices.ravel()]
        result = [*axes[:at], *_as_axes(site, taken, indices.shape), *axes[at + 1 :]]
    contracts = indices is None and site.is_constant(0)
    for k, ids in enumerate(axes):
        if site.is_constant(0) and not isinstance(ids, int):
            site.note_weight(0, k, [(ids, "consumer" if k == at else "producer" if contracts else "carrier")])
    return [result]


def _as_axes(site: Site, ids: Ids, shape: Sequence[int]) -> Axes:
    """Labels of a flat vector as axes of the given sizes."""
    if not shape:
        site.pin(ids, "Gather selects one index of this axis")
        return []
    axes: Axes = []
    for k, size in enumerate(shape[:-1]):
        outer, ids = site.labels.split(ids, size, int(np.prod(shape[k + 1 :])))
        axes.append(outer)
    return [*axes, ids]


def shrink_gather(edit: Edit) -> None:
    """Renumbers constant indices."""
    indices = edit.constant(1)
    at = normal_axis(edit.attribute("axis", 0), len(edit.shape(0) or ()))
    kept = edit.kept(0, at)
    if indices is None or kept is None:
        return
    size = edit.size(at)
    for k in range(indices.ndim):
        selected = edit.kept_output(0, at + k)
        if selected is not None:
            indices = np.take(indices, selected, axis=k)
    positions = positions_in(kept, np.where(indices < 0, indices + size, indices).ravel())
    edit.set_constant(1, positions.reshape(indices.shape))


def pad(site: Site) -> Results:
    """Zero padding of a channel axis is a sum with parts that nobody writes; negative padding cuts."""
    axes, bounds = site.axes(0), _pad_bounds(site)
    if axes is None or bounds is None:
        return site.refuse("the padding is computed at run time")
    constant_mode = site.attribute("mode", b"constant") == b"constant"
    result = list(axes)
    for at, (before, after) in bounds.items():
        axis = axes[at]
        if isinstance(axis, int) or not (before or after):
            continue
        if not constant_mode:
            result[at] = site.pinned("Pad repeats indices of this axis")
            site.pin(axis, "Pad repeats indices of this axis")
            continue
        inside = axis[max(0, -before) : len(axis) - max(0, -after)]
        parts = [site.labels.fresh(max(0, before)), inside, site.labels.fresh(max(0, after))]
        result[at] = np.concatenate(parts)
    return [result]


def _pad_bounds(node: NodeView) -> dict[int, tuple[int, int]] | None:
    pads, shape = node.integers(1, "pads"), node.shape(0)
    axes = None if shape is None else node.integers(3, default=list(range(len(shape))))
    if pads is None or shape is None or axes is None:
        return None
    half = len(axes)
    return {normal_axis(a, len(shape)): (pads[k], pads[k + half]) for k, a in enumerate(axes)}


def shrink_pad(edit: Edit) -> None:
    """Counts what is left of the padding on either side."""
    bounds = _pad_bounds(edit)
    if bounds is None:
        return
    for at, (before, after) in bounds.items():
        kept_in, kept_out = edit.kept(0, at), edit.kept_output(0, at)
        if (kept_in is None and kept_out is None) or not (before or after):
            continue
        size = edit.size(at)
        inputs = np.arange(size) if kept_in is None else kept_in
        outputs = np.arange(size + before + after) if kept_out is None else kept_out
        bounds[at] = (
            int((outputs < before).sum()) if before >= 0 else -int((inputs < -before).sum()),
            int((outputs >= before + size).sum()) if after >= 0 else -int((inputs >= size + after).sum()),
        )
    values = [bound[0] for bound in bounds.values()] + [bound[1] for bound in bounds.values()]
    edit.set_integers(1, values, "pads")


def tile(site: Site) -> Results:
    """Repeats the whole axis."""
    axes, repeats = site.axes(0), site.integers(1)
    if axes is None or repeats is None:
        return site.refuse("the repeats of Tile are computed at run time")
    return [[axis if isinstance(axis, int) else np.tile(axis, r) for axis, r in zip(axes, repeats, strict=True)]]


# ---- Transpose, Squeeze, Unsqueeze, Expand ------------------------------------------------------


def transpose(site: Site) -> Results:
    """Permutes the axes."""
    axes = site.loose_axes(0)
    if axes is None:
        return site.refuse_unknown()
    order = site.attribute("perm") or list(reversed(range(len(axes))))
    if site.is_constant(0):
        site.hand_on(order)
    site.note_carrier(0)
    return [[axes[k] for k in order]]


def squeeze(site: Site) -> Results:
    """Drops axes of size 1."""
    axes, shape = site.loose_axes(0), site.shape(0)
    if axes is None or shape is None:
        return site.refuse_unknown()
    at = site.integers(1, "axes")
    if at is None:
        return site.refuse("the axes of Squeeze hang on sizes that are known at run time")
    drop = {normal_axis(k, len(axes)) for k in at}
    return [[axis for k, axis in enumerate(axes) if k not in drop]]


def unsqueeze(site: Site) -> Results:
    """Inserts axes of size 1."""
    axes, at = site.loose_axes(0), site.integers(1, "axes")
    if axes is None or at is None:
        return site.refuse("the axes of Unsqueeze are computed at run time")
    rank = len(axes) + len(at)
    new = {normal_axis(k, rank) for k in at}
    rest = iter(axes)
    return [[site.pinned("an axis of size 1") if k in new else next(rest) for k in range(rank)]]


def expand(site: Site) -> Results:
    """Broadcasts to a shape: axes that were there before are carried; of copies along a new axis any may leave.

    An axis whose size is copied from another value is that value's.
    """
    axes, shape, target = site.axes(0), site.shape(0), site.output_shape()
    copied = copied_axes(site, 1)
    if axes is None or shape is None or target is None or copied is None:
        return site.refuse("the shape of Expand is computed at run time")
    rank, constant = len(target), site.constant(1) is not None
    entries = copied_dimensions(site.graph, site.inputs[1]) or []
    own = {start + k for _, _, start, sizes in joined_constants(site.graph, site.position) for k in range(len(sizes))}
    fixed = [constant or axis in own or entry == 1 for axis, entry in enumerate(entries, rank - len(entries))]
    kept = [*[True] * (rank - len(entries)), *fixed]
    before: list[LooseAxis] = [*[site.pinned("an axis of size 1")] * (rank - len(axes)), *axes]
    sizes = [*[1] * (rank - len(shape)), *shape]
    sources = [*[None] * (rank - len(copied)), *copied]
    return [[_expanded(site, *parts) for parts in zip(before, sizes, sources, target, kept, strict=True)]]


def _expanded(site: Site, axis: LooseAxis, size: Dim, source: LooseAxis | None, wanted: Dim, fixed: bool) -> LooseAxis:
    """An axis of the result: of one of this size, to what `source` has or, where that is nothing, to a number."""
    text = "Expand to a shape that is computed at run time"
    if source is not None:
        return source if size == 1 else site.unify(axis, source)
    if size == wanted and fixed:
        return axis
    site.pin(axis, text)
    return site.labels.fresh(wanted) if fixed and size == 1 and isinstance(wanted, int) else site.pinned(text)


def shrink_expand(edit: Edit) -> None:
    """Writes the new sizes into the constant target shape, or into the constant parts of one that is joined."""
    target = edit.integers(1)
    if target is not None:
        edit.set_integers(1, _shrunk_target(edit, target, len(edit.output_shape() or ()) - len(target)))
        return
    for concat, index, start, sizes in joined_constants(edit.graph, edit.position):
        edit.at(concat).set_integers(index, _shrunk_target(edit, sizes, start))


def _shrunk_target(edit: Edit, sizes: list[int], start: int) -> list[int]:
    """The sizes from axis `start` on of what is left; 1 leaves an axis as it is."""
    kept = [edit.kept_output(0, axis) for axis in range(start, start + len(sizes))]
    return [size if size == 1 or left is None else len(left) for size, left in zip(sizes, kept, strict=True)]
