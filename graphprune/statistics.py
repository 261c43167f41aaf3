"""Operators that compute one value from many: normalisations, reductions, pooling, and what compares along an axis.

What a statistic is taken over is needed whole, so it is pinned (docs/decisions/0007-statistics-pin.md).  Start reading at
`reduction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .edit import Edit
from .elementwise import broadcast
from .node_view import normal_axis
from .site import Axes, Axis, Chosen, Results, Site

SPATIAL = "[b,c,_...] -> [b,c,_...]"


_WHOLE = "{} compares or normalises over this axis"


def pins(attribute: str, default: int, index: int = -1) -> Callable[[Site], Results]:
    """Carries all axes but the one named by an attribute (or by constant input `index`), which is needed whole."""

    def infer(site: Site) -> Results:
        axes = site.axes(0)
        at = site.integers(index, attribute) if index >= 0 else [site.attribute(attribute, default)]
        if axes is None or at is None:
            return site.refuse(f"{site.operator} along an axis that is not known")
        if not axes:
            return [[] for _ in site.outputs]
        site.compare(axes[normal_axis(at[0], len(axes))], _WHOLE.format(site.operator))
        return [list(axes) for _ in site.outputs]

    return infer


def along(site: Site, at: Iterable[int], text: str) -> Results:
    """Carries all axes but those at `at`, which are needed whole and may get another size."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    for k in at:
        site.pin(axes[k], text)
        axes[k] = site.pinned(text)
    return [list(axes) for _ in site.outputs]


def fourier(site: Site) -> Results:
    """DFT mixes all places along an axis, and has real and imaginary parts along the last (opset 20; an attribute before)."""
    rank = len(site.shape(0) or ())
    at = site.integers(2, default=[-2]) if site.graph.opsets.get("", 0) >= 20 else [site.attribute("axis", 1)]
    if not rank or at is None:
        return site.refuse("DFT along an axis that is not known")
    return along(site, [normal_axis(at[0], rank), rank - 1], "DFT mixes all places along this axis")


def center_crop(site: Site) -> Results:
    """CenterCropPad cuts or pads the axes that it names (opset 18)."""
    rank = len(site.shape(0) or ())
    at = [normal_axis(k, rank) for k in site.attribute("axes", range(rank))]
    return along(site, at, "CenterCropPad cuts this axis")


def compress(site: Site) -> Results:
    """Compress chooses along one axis; without one, among all elements (opset 9)."""
    rank, axis = len(site.shape(0) or ()), site.attribute("axis")
    if axis is None:
        return site.refuse("Compress chooses among all elements")
    site.pin_axes(site.loose_axes(1), "Compress chooses by place")
    return along(site, [normal_axis(axis, rank)], "Compress chooses along this axis")


def quantised_softmax(site: Site) -> Results:
    """QLinearSoftmax of com.microsoft names an opset: before 13, all axes from `axis` on are normalised over."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    first = normal_axis(site.attribute("axis", -1), len(axes))
    for axis in axes[first:] if site.attribute("opset", 0) < 13 else axes[first : first + 1]:
        site.compare(axis, _WHOLE.format(site.operator))
    return [list(axes)]


def top_k(site: Site) -> Results:
    """The numbers of the largest along `axis` are a result, so it is pinned, unless they are those of experts (see --experts)."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    at = normal_axis(site.attribute("axis", -1), len(axes))
    text = f"{site.operator} compares or normalises over this axis"
    chosen, choice = axes[at], site.ledger.choices.get(site.position)
    if site.compare(chosen, text) and choice and not isinstance(chosen, int):
        site.ledger.chosen.append(Chosen(site.position, chosen, choice.count, site.outputs[1]))
    if choice:
        site.ledger.numbered |= dict.fromkeys(choice.numbers, chosen)
    axes[at] = site.pinned(text)
    return [list(axes) for _ in site.outputs]


def reduction(site: Site) -> Results:
    """Reduce*: a statistic of activations, so the reduced axes are pinned.

    Even a sum is: no weight could be zeroed to mask an index, and what follows (a mean, a norm) counts all of them.
    """
    return _reduction(site, site.pin)


def total(site: Site) -> Results:
    """ReduceSum: of a product of two values a contraction, as Einsum would write it; of squares or sizes a norm."""
    axes, at = site.axes(0), site.integers(1, "axes", default=[])
    if _is_never_negative(site):
        return norm(site)
    if not axes or not at or not _multiplies(site, [normal_axis(k, len(axes)) - len(axes) for k in at]):
        return reduction(site)
    for k in at:
        site.contract(0, normal_axis(k, len(axes)))
    return _reduction(site, lambda axis, text: None)


def _multiplies(site: Site, at: list[int]) -> bool:
    """Whether the sum is of a product, with two factors that both have the axes at `at`, counted from the last."""
    position = site.graph.producers.get(site.inputs[0])
    node = None if position is None else site.graph.nodes[position]
    if node is None or node.op_type != "Mul" or node.input[0] == node.input[1]:
        return False
    whole, factors = site.shape(0) or (), [site.graph.shape(name) or () for name in node.input]
    return all(len(shape) >= -k and shape[k] == whole[k] not in (1, None) for shape in factors for k in at)


def norm(site: Site) -> Results:
    """A sum of squares or sizes means the same over fewer channels, unless a constant makes a mean of it."""
    readers = [site.graph.nodes[use.node] for use in site.graph.uses.get(site.outputs[0], ())]
    constants = [name in site.graph.initializers for node in readers if node.op_type in ("Mul", "Div") for name in node.input]
    return (reduction if any(constants) else normalizer)(site)


def _is_never_negative(site: Site) -> bool:
    """Whether what is summed is a square or an absolute value."""
    position = site.graph.producers.get(site.inputs[0])
    node = None if position is None else site.graph.nodes[position]
    if node is None or node.op_type != "Pow":
        return node is not None and (node.op_type == "Abs" or (node.op_type == "Mul" and node.input[0] == node.input[1]))
    power = site.graph.constant(node.input[1])
    return power is not None and power.size == 1 and power.item() == 2


def normalizer(site: Site) -> Results:
    """ReduceMean, ReduceMax, ReduceMin and ReduceL2: statistics of activations that mean the same over fewer channels."""
    return _reduction(site, site.take_statistic)


def _reduction(site: Site, treat: Callable[[Axis, str], object]) -> Results:
    axes = site.axes(0)
    at = site.integers(1, "axes", default=[])
    if axes is None or at is None:
        return site.refuse(f"{site.operator} over axes that are not known")
    if not at and not site.attribute("noop_with_empty_axes", 0):
        at = list(range(len(axes)))
    return [reduced_axes(site, axes, [normal_axis(k, len(axes)) for k in at], treat)]


def reduced_axes(site: Site, axes: Axes, at: list[int], treat: Callable[[Axis, str], object]) -> Axes:
    """The axes that are left after reducing over `at`."""
    for k in at:
        treat(axes[k], f"{site.operator} reduces over this axis")
    if site.attribute("keepdims", 1):
        unit = site.pinned("an axis of size 1")
        return [unit if k in at else axis for k, axis in enumerate(axes)]
    return [axis for k, axis in enumerate(axes) if k not in at]


def pooling(site: Site) -> Results:
    """Positions are pinned, channels carried; indices of maxima count through all channels, so who reads them pins those."""
    if len(site.outputs) > 1 and site.outputs[1]:
        return site.refuse(f"{site.operator} gives indices that count through all channels")
    return site.match(SPATIAL)


def global_pooling(site: Site) -> Results:
    """Carries channels; positions are a statistic, and pinned unless they are normalised channels (see --normalization)."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    for axis in axes[2:]:
        site.take_statistic(axis, f"{site.operator} takes a statistic over this axis")
    return [[*axes[:2], *(site.pinned("an axis of size 1") for _ in axes[2:])]]


def arg_reduction(site: Site) -> Results:
    """ArgMax and ArgMin: the positions along `axis` are the result, so it is pinned."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    return [reduced_axes(site, axes, [normal_axis(site.attribute("axis", 0), len(axes))], site.pin)]


def layer_norm(site: Site) -> Results:
    """Statistics over `axis` and all that follow: those axes are pinned, with scale and bias (or see --normalization)."""
    axes = site.loose_axes(0)
    if axes is None:
        return site.refuse_unknown()
    first = normal_axis(site.attribute("axis", -1), len(axes))
    text = f"{site.operator} takes its statistics over this axis"
    for index in range(1, len(site.inputs)):
        site.align_right(index, axes)
    for axis in axes[first:]:
        site.take_statistic(axis, text)
    statistics = [*axes[:first], *(site.pinned("an axis of size 1") for _ in axes[first:])]
    return [list(axes), statistics, statistics][: len(site.outputs)]


def instance_norm(site: Site) -> Results:
    """Statistics over all positions of a channel; those may be channels, too, where a group normalisation is written so."""
    axes = site.loose_axes(0)
    if axes is None:
        return site.refuse_unknown()
    for axis in axes[2:]:
        site.take_statistic(axis, f"{site.operator} takes its statistics over this axis")
    return site.match("[b,c,...] [c] [c] -> [b,c,...]")


def mean_variance_norm(site: Site) -> Results:
    """MeanVarianceNormalization takes its statistics over `axes` (opset 13)."""
    axes = site.loose_axes(0)
    if axes is None:
        return site.refuse_unknown()
    at = [normal_axis(k, len(axes)) for k in site.attribute("axes", [0, 2, 3])]
    if not all(0 <= k < len(axes) for k in at):
        return site.refuse(f"{site.operator} over an axis that its input does not have")
    for k in at:
        site.take_statistic(axes[k], f"{site.operator} takes its statistics over this axis")
    return [axes]


def lp_norm(site: Site) -> Results:
    """LpNormalization divides by the norm over `axis`, which is pinned (or see --normalization)."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    at = normal_axis(site.attribute("axis", -1), len(axes))
    site.take_statistic(axes[at], f"{site.operator} takes the norm over this axis")
    return [list(axes)]


def skip_layer_norm(site: Site) -> Results:
    """SkipLayerNormalization of com.microsoft: the sum of input, skip and bias, normalised over the last axis."""
    total = site.settled(broadcast(site, [0, 1])[0])
    if total is None:
        return site.refuse_unknown()
    text = f"{site.operator} takes its statistics over this axis"
    for index in range(2, len(site.inputs)):
        if site.has(index):
            site.unify((site.axes(index) or [total[-1]])[-1], total[-1])
            site.note_carrier(index)
    site.take_statistic(total[-1], text)
    statistics = [*total[:-1], site.pinned("an axis of size 1")]
    results: Results = [list(total), statistics, statistics, list(total)]
    return results[: len(site.outputs)]


def group_norm(site: Site) -> Results:
    """Statistics within each group: whole groups can leave, channels of a group cannot (of a single one, see --normalization)."""
    if int(site.attribute("num_groups")) == 1 and site.shape(1) != (1,):
        for axis in (site.loose_axes(0) or [])[1:2]:
            site.take_statistic(axis, f"{site.operator} takes its statistics over this axis")
        return site.match("[b,c,_...] [c] [c] -> [b,c,_...]")
    scale = "(g C)" if (site.shape(1) or (0,))[0] == (site.shape(0) or (0, 1))[1] else "g"
    rule = f"[b,(g C),_...] [{scale}] [{scale}] -> [b,(g C),_...]"
    return site.match(rule, {"g": int(site.attribute("num_groups"))})


def shrink_group_norm(edit: Edit) -> None:
    """Writes the number of groups that are left."""
    count = edit.kept_count(0, 1)
    if count is not None and int(edit.attribute("num_groups")) > 1:
        per_group = edit.size(1) // int(edit.attribute("num_groups"))
        edit.set_attribute("num_groups", count // per_group)
