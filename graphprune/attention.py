"""Fused attention: ONNX's Attention and RotaryEmbedding (opset 23) and those that ONNX Runtime's optimiser writes.

Four dimensions are free: key/value groups h, queries per group r, size d of query and key, and size e of value and output.
Sequence axes are needed whole, since softmax compares along them.  Start reading at `attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from .edit import Edit, Indices
from .labels import Ids
from .site import Axes, Axis, Contraction, Results, Site

Heads = Callable[[Site | Edit], tuple[int, int] | None]
"""The numbers of query heads and of key/value heads."""


# ---- attention over query, key and value ---------------------------------------------------------


def standard_heads(node: Site | Edit) -> tuple[int, int] | None:
    """Attention (opset 23): attributes where operands have rank 3, else axis 1."""
    shapes = node.shape(0) or (), node.shape(1) or ()
    if len(shapes[0]) == 3:
        return int(node.attribute("q_num_heads", 1)), int(node.attribute("kv_num_heads", 1))
    sizes = [shape[1] for shape in shapes if len(shape) == 4]
    return (sizes[0], sizes[1]) if len(sizes) == 2 and isinstance(sizes[0], int) and isinstance(sizes[1], int) else None


def equal_heads(node: Site | Edit) -> tuple[int, int] | None:
    """MultiHeadAttention: as many key/value heads as query heads."""
    count = int(node.attribute("num_heads", 0))
    return (count, count) if count else None


def grouped_heads(node: Site | Edit) -> tuple[int, int] | None:
    """GroupQueryAttention."""
    return int(node.attribute("num_heads", 1)), int(node.attribute("kv_num_heads", 1))


def attention(heads_of: Heads, mask: int, bias: int = -1, lengths: tuple[int, ...] = ()) -> Callable[[Site], Results]:
    """Heads, queries per group, query/key size and value/output size are free; sequences are pinned.

    `mask` and `bias` are the inputs added to the scores and to the projections, `lengths` those that tell what is padding; with
    any other input, such as a cache of the past, everything is pinned.
    """

    def infer(site: Site) -> Results:
        query, key, value = site.axes(0), site.axes(1), site.axes(2)
        if query is None or key is None or value is None:
            return site.refuse_unknown()
        heads, ranks = heads_of(site), {len(query), len(key), len(value)}
        extra = [index for index in range(3, len(site.inputs)) if site.has(index) and index not in (mask, bias, *lengths)]
        if heads is None or ranks not in ({3}, {4}) or extra or site.attribute("do_rotary", 0) or heads[0] % heads[1]:
            return site.refuse(f"this form of {site.operator} has no rule")
        sizes = {"h": heads[1], "r": heads[0] // heads[1]}
        if ranks == {3}:
            matched = site.match("[b,S,(h r d)] [b,T,(h d)] [b,T,(h e)] -> [b,S,(h r e)]", sizes)[0]
        else:
            matched = site.match("[b,(h r),S,d] [b,h,T,d] [b,h,T,e] -> [b,(h r),S,e]", sizes)[0]
        result = site.settled(matched)
        if result is None:
            return site.refuse_unknown()
        _note_attention_macs(site, result)
        _add_mask(site, mask, result, heads[0])
        _add_projection_bias(site, bias)
        scores = [query[0], _head_axis(site, query, heads[0]), *[site.pinned(f"{site.operator} makes this axis")] * 2]
        return [result, *_caches(site, key, value, heads[1]), scores][: len(site.outputs)]

    return infer


def _note_attention_macs(site: Site, result: Axes) -> None:
    """Every query meets every key, over d and over e."""
    query = site.axes(0) or []
    rank = len(query)
    heads = [1, rank - 1] if rank == 4 else [rank - 1]
    pairs, batch = site.typical(0, rank - 2) * site.typical(1, rank - 2), (query[0], site.typical(0, 0))
    site.note_macs(pairs, [batch, *((query[k], site.typical(0, k)) for k in heads)])
    site.note_macs(pairs, [batch, *((result[k], site.graph.typical_size(site.outputs[0], k)) for k in heads)])


def _add_mask(site: Site, index: int, result: Axes, heads: int) -> None:
    """What is added to the scores: [..., heads or 1, S, T]."""
    axes, shape = site.axes(index), site.shape(index)
    if axes is None or shape is None:
        return
    for back, (axis, dim) in enumerate(zip(reversed(axes), reversed(shape), strict=True)):
        if back != 2 or dim == 1:
            site.pin(axis, f"{site.operator} needs every index of this axis")
        else:
            site.unify(axis, _head_axis(site, result, heads))
    site.note_carrier(index)


def _head_axis(site: Site, axes: Axes, heads: int) -> Axis:
    axis = axes[1] if len(axes) == 4 else axes[2]
    return axis if isinstance(axis, int) or len(axes) == 4 else site.labels.split(axis, heads, len(axis) // heads)[0]


def _add_projection_bias(site: Site, index: int) -> None:
    """One vector for query, key and value side by side; what it adds to query and key is summed over with them."""
    axes = site.axes(index) if index >= 0 else None
    if not axes:
        return
    parts: list[Ids] = []
    for operand in range(3):
        axis, shape = (site.axes(operand) or [0])[-1], site.shape(operand) or (None,)
        size = site.size(axis, shape[-1])
        if size is None:
            site.pin_axes(axes, f"{site.operator} with a projection of unknown size")
            return
        parts.append(site.vector(axis, size))
    site.unify(axes[0], np.concatenate(parts))
    site.note_carrier(index)
    site.contract(index, 0)


def _caches(site: Site, key: Axes, value: Axes, heads: int) -> Results:
    """present_key and present_value are [b, h, sequence, size]."""
    text = f"{site.operator} makes this axis"
    caches: list[Axes] = []
    for axes in (key, value):
        last = axes[-1]
        if len(axes) == 4:
            caches.append([axes[0], axes[1], site.pinned(text), last])
        elif isinstance(last, int):
            caches.append([axes[0], last, site.pinned(text), last])
        else:
            caches.append([axes[0], *_around(site.labels.split(last, heads, len(last) // heads), site.pinned(text))])
    return caches


def _around(pair: tuple[Ids, Ids], middle: int) -> Axes:
    return [pair[0], middle, pair[1]]


def shrink_attention(heads_of: Heads, queries: str, keys: str = "") -> Callable[[Edit], None]:
    """Writes the numbers of heads that are left, and the scale that the original head size gave."""

    def shrink(edit: Edit) -> None:
        heads = heads_of(edit)
        if heads is None:
            return
        rank = len(edit.shape(0) or ())
        size = edit.size(rank - 1) // (heads[0] if rank == 3 else 1)
        if edit.kept(0, rank - 1) is not None:
            _fix_scale(edit, size)
        for name, index, count in ((queries, 0, heads[0]), (keys, 1, heads[1])):
            if name and name in edit.attributes and rank == 3:
                edit.set_attribute(name, _left(edit.kept(index, 2), edit.size(2, index), count))

    return shrink


def _fix_scale(edit: Edit, size: int) -> None:
    """Write the default scale of the original head size, which would follow the new one."""
    if not edit.attribute("scale", 0.0):
        edit.set_attribute("scale", 1.0 / sqrt(size))


def _left(kept: Indices | None, size: int, count: int) -> int:
    """How many of `count` equal parts of an axis are left."""
    return count if kept is None else len(np.unique(kept // (size // count)))


# ---- attention with its projections --------------------------------------------------------------


def packed_attention(site: Site) -> Results:
    """Attention of com.microsoft projects query, key and value by one matrix: heads, d and e are free."""
    weight = site.axes(1)
    sizes, heads = _projections(site), int(site.attribute("num_heads", 1))
    if weight is None or sizes is None or isinstance(weight[1], int) or site.has(4) or site.attribute("do_rotary", 0):
        return site.refuse(f"this form of {site.operator} has no rule")
    makes_cache = len(site.outputs) > 1 and site.outputs[1]
    if not site.is_constant(1) or any(size % heads for size in sizes) or makes_cache:
        return site.refuse(f"this form of {site.operator} has no rule")
    projected = site.settled(site.match("[b,S,i] [i,n] [n]? -> [b,S,n]", macs=1)[0])
    columns = weight[1]
    query, key, value = np.split(columns, np.cumsum(sizes)[:2])
    split = [site.labels.split(part, heads, len(part) // heads) for part in (query, key, value)]
    for part in split[1:]:
        site.unify(split[0][0], part[0])
    site.unify(query, key)
    for index, axis in ((1, 1), (2, 0)):
        if site.has(index):
            site.ledger.contractions.append(Contraction(site.position, index, axis, columns))
    if projected is None:
        return site.refuse_unknown()
    result: Axes = [projected[0], projected[1], value]
    pairs, batch = site.typical(0, 1) ** 2, (projected[0], site.typical(0, 0))
    site.note_macs(pairs, [batch, (query, len(query))])
    site.note_macs(pairs, [batch, (value, len(value))])
    _add_mask(site, 5, result, heads)
    return [result, *[None] * (len(site.outputs) - 1)]


def _projections(node: Site | Edit) -> tuple[int, int, int] | None:
    """The widths of query, key and value in the columns of the weight."""
    sizes = node.attribute("qkv_hidden_sizes")
    if sizes:
        return int(sizes[0]), int(sizes[1]), int(sizes[2])
    width = (node.shape(1) or (None, None))[1]
    return (width // 3,) * 3 if isinstance(width, int) and width % 3 == 0 else None


def shrink_packed_attention(edit: Edit) -> None:
    """Writes the widths and the number of heads that are left, and the scale that the original head size gave."""
    kept, sizes, heads = edit.kept(1, 1), _projections(edit), int(edit.attribute("num_heads", 1))
    if kept is None or sizes is None:
        return
    parts = np.searchsorted(np.cumsum(sizes), kept, side="right")
    edit.set_attribute("qkv_hidden_sizes", np.bincount(parts, minlength=3).tolist())
    edit.set_attribute("num_heads", _left(kept[kept < sizes[0]], sizes[0], heads))
    _fix_scale(edit, sizes[0] // heads)


# ---- rotary embedding ----------------------------------------------------------------------------


def rotary(cosine: int) -> Callable[[Site], Results]:
    """Index i of a head is rotated with i + d/2 (interleaved: with its neighbour), so pairs leave together.

    `cosine` is the input with the cosines; the sines follow it.
    """

    def infer(site: Site) -> Results:
        axes, shape = site.axes(0), site.shape(0)
        if axes is None or shape is None:
            return site.refuse_unknown()
        heads, partial = int(site.attribute("num_heads", 0)), int(site.attribute("rotary_embedding_dim", 0))
        size = shape[-1]
        if len(axes) not in (3, 4) or (len(axes) == 3 and not heads) or not isinstance(size, int) or partial:
            return site.refuse(f"this form of {site.operator} has no rule")
        pair = "p J" if site.attribute("interleaved", 0) else "J p"
        pattern = f"[b,S,(h {pair})]" if len(axes) == 3 else f"[b,h,S,({pair})]"
        sizes = {"J": 2, "p": size // (2 * (heads if len(axes) == 3 else 1))}
        result = site.match(f"{pattern} -> {pattern}", sizes)[0]
        _bind_caches(site, cosine, sizes["p"], pair, axes[-1])
        return [result]

    return infer


def _bind_caches(site: Site, cosine: int, count: int, pair: str, axis: Axis) -> None:
    """Cosines and sines have one column for each pair."""
    for index in (cosine, cosine + 1):
        axes = site.axes(index)
        if axes is None:
            continue
        for other in axes[:-1]:
            site.pin(other, f"{site.operator} needs every index of this axis")
        if not isinstance(axis, int):
            head = site.labels.split(axis, len(axis) // (2 * count), 2 * count)[1]
            site.unify(axes[-1], head[:: 2 if pair == "p J" else 1][:count])
        site.note_carrier(index)


def shrink_rotary(edit: Edit) -> None:
    """Writes the number of heads that are left."""
    heads = int(edit.attribute("num_heads", 0))
    kept = edit.kept(0, 2) if len(edit.shape(0) or ()) == 3 else edit.kept(0, 1)
    if heads and kept is not None:
        size = edit.size(2) if len(edit.shape(0) or ()) == 3 else edit.size(1)
        edit.set_attribute("num_heads", _left(kept, size, heads))
