"""Fused attention: ONNX's Attention and RotaryEmbedding (opset 23) and those that ONNX Runtime's optimiser writes.

Four dimensions are free: key/value groups h, queries per group r, size d of query and key, and size e of value and output.
Sequence axes are needed whole, since softmax compares along them.  Start reading at `attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from .edit import Edit, Indices
from .labels import Ids
from .site import Axes, Axis, Contraction, Results, Site

HeadCount = Callable[[Site | Edit], tuple[int, int] | None]
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


def grouped_heads(node: Site | Edit) -> tuple[int, int]:
    """GroupQueryAttention."""
    return int(node.attribute("num_heads", 1)), int(node.attribute("kv_num_heads", 1))


class Operands(NamedTuple):
    """Which input is what, beside query, key and value; -1 where an operator has no such input."""

    mask: int
    """Added to the scores."""
    bias: int = -1
    """Added to the projections."""
    past: int = -1
    """The keys of the past; its values follow."""
    sink: int = -1
    """One score for each head, which takes part in the softmax."""
    whole: tuple[int, ...] = ()
    """Needed as they are: lengths, positions, cosines and sines."""

    def are_all(self, site: Site) -> bool:
        """Whether a node has no other input, such as the scales of a quantised cache."""
        past = () if self.past < 0 else (self.past, self.past + 1)
        known = {0, 1, 2, self.mask, self.bias, self.sink, *past, *self.whole}
        return all(index in known or not site.has(index) for index in range(len(site.inputs)))


class Heads(NamedTuple):
    """The axes that an attention has of its own, and of its query: heads, and sizes of one head."""

    queries: Axis
    groups: Axis
    size: Axis
    value_size: Axis


_FORMS = {
    (3, 3, 3): "[b,S,(h r d)] [b,T,(h d)] [b,T,(h e)] -> [b,S,(h r e)]",
    (4, 4, 4): "[b,(h r),S,d] [b,h,T,d] [b,h,T,e] -> [b,(h r),S,e]",
    (3, 4, 4): "[b,S,(h r d)] [b,h,T,d] [b,h,T,e] -> [b,S,(h r e)]",
}
"""By the ranks of query, key and value; keys of another sequence that are made once for all steps have rank 4."""


def attention(count: HeadCount, operands: Operands) -> Callable[[Site], Results]:
    """Heads, queries per group, query/key size and value/output size are free; sequences are pinned.

    Past keys and values have the same heads and sizes.  Where they are inputs of the network, queries per group are free still.
    """

    def infer(site: Site) -> Results:
        query, key, value = site.axes(0), site.axes(1), site.axes(2)
        if query is None or key is None or value is None:
            return site.refuse_unknown()
        counts, form = count(site), _FORMS.get((len(query), len(key), len(value)))
        if counts is None or form is None or not _are_counts(*counts) or not operands.are_all(site):
            return site.refuse(f"this form of {site.operator} has no rule")
        result = site.settled(site.match(form, {"h": counts[1], "r": counts[0] // counts[1]})[0])
        if result is None:
            return site.refuse_unknown()
        queries, _ = _split_heads(site, query, counts[0])
        heads = Heads(queries, *_split_heads(site, key, counts[1]), _split_heads(site, value, counts[1])[1])
        if len(query) != len(key):  # ONNX Runtime has one size for both then
            site.unify(heads.size, heads.value_size)
        where = [1, 3] if len(query) == 4 else [2]
        sizes = (site.inputs[0], query), (site.outputs[0], result)
        factors = [[(axes[k], site.graph.typical_size(name, k)) for k in where] for name, axes in sizes]
        _note_attention_macs(site, operands, (len(query) - 2, 1, len(key) - 2), factors)
        return _results(site, operands, heads, result, query[0])

    return infer


def grouped_attention(operands: Operands) -> Callable[[Site], Results]:
    """As Attention, but that the sizes of a head stay; query, key and value may lie side by side in one input."""
    apart = attention(grouped_heads, operands)

    def infer(site: Site) -> Results:
        text = f"{site.operator} has kernels for heads of some sizes only"
        if not _are_counts(*grouped_heads(site)):
            return site.refuse(f"this form of {site.operator} has no rule")
        for axes in (site.axes(1), site.axes(2)):
            if axes is not None and len(axes) in (3, 4):
                site.pin(_split_heads(site, axes, grouped_heads(site)[1])[1], text)
        return apart(site) if site.has(1) or site.has(2) else _side_by_side(site, operands, text)

    return infer


def _side_by_side(site: Site, operands: Operands, text: str) -> Results:
    axes, (queries, groups) = site.axes(0), grouped_heads(site)
    if axes is None:
        return site.refuse_unknown()
    parts = queries + 2 * groups
    if len(axes) != 3 or not operands.are_all(site):
        return site.refuse(f"this form of {site.operator} has no rule")
    every, size = _split_heads(site, axes, parts)
    site.contract(0, 2)
    site.pin(size, text)
    width = site.size(axes[2], site.typical(0, 2)) or 0
    head, result = width // parts, every
    if isinstance(every, int):
        heads = Heads(every, every, size, size)
    else:
        query, key, value = np.split(every, [queries, queries + groups])
        group, _ = site.labels.split(query, groups, queries // groups)
        site.unify(group, key)
        site.unify(group, value)
        heads, result = Heads(query, group, size, size), np.repeat(query, head)
    _note_attention_macs(site, operands, (1, 0, 1), [[(result, queries * head)]] * 2)
    return _results(site, operands, heads, [axes[0], axes[1], result], axes[0])


def _results(site: Site, operands: Operands, heads: Heads, result: Axes, batch: Axis) -> Results:
    """Unify what else has heads, and return the axes of the result, of what is present, and of the scores."""
    made = f"{site.operator} makes this axis"
    _add_mask(site, operands.mask, heads.queries)
    _add_projection_bias(site, operands.bias)
    _add_sink(site, operands.sink, heads.queries)
    _add_past(site, operands.past, heads)
    for index in operands.whole:
        site.pin_axes(site.loose_axes(index), f"{site.operator} needs every index of this axis")
    present = [[batch, heads.groups, site.pinned(made), size] for size in (heads.size, heads.value_size)]
    scores = [batch, heads.queries, site.pinned(made), site.pinned(made)]
    return [result, *present, scores][: len(site.outputs)]


def _are_counts(queries: int, groups: int) -> bool:
    """Whether every key/value head can have as many query heads."""
    return queries > 0 and groups > 0 and queries % groups == 0


def _split_heads(site: Site, axes: Axes, count: int) -> tuple[Axis, Axis]:
    """The heads of an operand, and the size of each."""
    if len(axes) == 4:
        return axes[1], axes[3]
    last = axes[2]
    if not isinstance(last, int) and len(last) % count == 0:
        return site.labels.split(last, count, len(last) // count)
    return (site.pin(last, f"{site.operator} has axes whose sizes do not fit its attributes"),) * 2


def _note_attention_macs(
    site: Site, operands: Operands, sequences: tuple[int, int, int], factors: Sequence[Sequence[tuple[Axis, int]]]
) -> None:
    """Every query meets every key, those of the past too, over each of these products of axes.

    `sequences` are the axis of the queries in input 0, the input of the keys, and the axis there.
    """
    axis, keys, place = sequences
    past = site.typical(operands.past, 2) if operands.past >= 0 and site.has(operands.past) else 0
    pairs = site.typical(0, axis) * (site.typical(keys, place) + past)
    batch = (site.axes(0) or [0])[0], site.typical(0, 0)
    for product in factors:
        site.note_macs(pairs, [batch, *product])


def _add_mask(site: Site, index: int, heads: Axis) -> None:
    """What is added to the scores: [..., heads or 1, S, T]."""
    axes, shape = site.axes(index), site.shape(index)
    if axes is None or shape is None:
        return
    for back, (axis, dim) in enumerate(zip(reversed(axes), reversed(shape), strict=True)):
        if back != 2 or dim == 1:
            site.pin(axis, f"{site.operator} needs every index of this axis")
        else:
            site.unify(axis, heads)
    site.note_carrier(index)


def _add_projection_bias(site: Site, index: int) -> None:
    """One vector for query, key and value side by side; what it adds to query and key is summed over with them."""
    axes = site.axes(index) if index >= 0 else None
    if not axes:
        return
    parts: list[Ids] = []
    for operand in range(3):
        axis, shape = (site.axes(operand) or [0])[-1], site.shape(operand) or (None,)
        size = site.size(axis, shape[-1])
        if size is None or len(shape) != 3:
            site.pin_axes(axes, f"{site.operator} with a projection of unknown size")
            return
        parts.append(site.vector(axis, size))
    site.unify(axes[0], np.concatenate(parts))
    site.note_carrier(index)
    site.contract(index, 0)


def _add_past(site: Site, index: int, heads: Heads) -> None:
    """Past keys and values are [b, h, sequence, size]."""
    for operand, size in ((index, heads.size), (index + 1, heads.value_size)):
        axes = site.axes(operand) if index >= 0 else None
        if axes is None:
            continue
        site.unify(axes[1], heads.groups)
        site.unify(axes[3], size)
        site.pin_axes([axes[0], axes[2]], f"{site.operator} needs every index of this axis")
        site.note_carrier(operand)


def _add_sink(site: Site, index: int, heads: Axis) -> None:
    axes = site.axes(index) if index >= 0 else None
    if axes:
        site.unify(axes[0], heads)
        site.note_carrier(index)


def shrink_attention(heads_of: HeadCount, queries: str, keys: str = "") -> Callable[[Edit], None]:
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


def shrink_grouped_attention(edit: Edit) -> None:
    """Writes the numbers of heads that are left."""
    if edit.has(1):
        shrink_attention(grouped_heads, "num_heads", "kv_num_heads")(edit)
        return
    kept, (queries, groups) = edit.kept(0, 2), grouped_heads(edit)
    if kept is None:
        return
    left = np.unique(kept // (edit.size(2) // (queries + 2 * groups)))
    edit.set_attribute("num_heads", int((left < queries).sum()))
    edit.set_attribute("kv_num_heads", int((left < queries + groups).sum() - (left < queries).sum()))


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
    _add_mask(site, 5, _split_heads(site, result, heads)[0])
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
