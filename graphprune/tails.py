"""What happens to a linear node's result on its way into a residual sum.

The result of the last layer of a block passes a bias, a BatchNormalization or a constant factor, channel by channel, and is
then added to the block's input.  A criterion measures errors against that sum, and a repair pass that fits the layer to the *sum*
makes up for errors of the other branch as well.  Start reading at `tail_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from .graph import Graph
from .linear import Linear
from .node_view import NodeView

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """A tensor that moves the result by `factor` for each unit that it grows: where a new intercept goes."""

    tensor: str
    factor: float


@dataclass(frozen=True)
class Tail:
    """total = gain * result + offset (+ other), channel by channel; `other` is "" where nothing is added."""

    total: str
    other: str
    gain: Wide
    offset: Wide
    shift: Shift | None
    straight: str
    """The value before `other` is added."""
    axis: int
    """That of the channels in the total."""
    range: tuple[float, float] = (-inf, inf)
    """All that reads the total sees it clipped to this range."""

    @property
    def alone(self) -> Tail:
        """The same without the sum."""
        return replace(self, total=self.straight, other="", range=(-inf, inf)) if self.other else self


def tail_of(graph: Graph, node: Linear, steps: Mapping[str, Step] | None = None) -> Tail:
    """Follow a linear node's result to the sum that it is added to, if it comes to one by itself.

    `steps` are the operators that it may pass: by default those that leave every number in its place.
    """
    size = int(node.result_channels().max()) + 1
    shift = Shift(node.bias, 1.0) if node.bias and _is_own_vector(graph, node.bias, size) else None
    rank = len(graph.shape(node.result) or ())
    tail = Tail(node.result, "", np.ones(size), np.zeros(size), shift, node.result, node.result_axis % max(1, rank))
    outputs = {value.name for value in graph.outputs}
    while rank and not tail.other and tail.total not in outputs:
        uses = graph.uses.get(tail.total, [])
        step = (steps or IN_PLACE).get(graph.nodes[uses[0].node].op_type) if len(uses) == 1 else None
        longer = step(NodeView(graph, uses[0].node), uses[0].input, tail, node) if step else None
        if longer is None:
            break
        tail = longer
    return replace(tail, range=_seen_range(graph, tail.total)) if tail.total not in outputs else tail


def _seen_range(graph: Graph, value: str) -> tuple[float, float]:
    """What remains visible of a value: ReLU and Clip hide the rest."""
    low, high = inf, -inf
    for use in graph.uses.get(value, []):
        view = NodeView(graph, use.node)
        if view.operator == "Relu":
            low = min(low, 0.0)
            high = inf
        elif view.operator == "Clip" and use.input == 0:
            bounds = [view.constant(k) if len(view.inputs) > k else None for k in (1, 2)]
            low = min(low, -inf if bounds[0] is None else float(bounds[0]))
            high = max(high, inf if bounds[1] is None else float(bounds[1]))
        elif view.operator == "QuantizeLinear" and (ends := _steps(view)) is not None:
            low, high = min(low, ends[0]), max(high, ends[1])
        else:
            return -inf, inf
    return low, high


def _steps(view: NodeView) -> tuple[float, float] | None:
    """What QuantizeLinear clips to, where one scale and zero point of whole numbers serve all."""
    scale, zero = view.constant(1), view.constant(2)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
        return None
    ends = np.iinfo(zero.dtype)
    low, high = ((end - int(zero.item())) * float(scale.item()) for end in (ends.min, ends.max))
    return low, high


def _normalized(view: NodeView, index: int, tail: Tail, node: Linear) -> Tail | None:
    values = [view.constant(k) for k in range(1, 5)]
    if index or tail.axis != 1 or len(view.outputs) != 1 or any(value is None for value in values):
        return None
    scale, bias, mean, variance = (np.asarray(value, np.float64) for value in values)
    factor = scale / np.sqrt(variance + float(view.attribute("epsilon", 1e-5)))
    shift = tail.shift or _first_shift(view, view.inputs[3], -1.0, tail, node)
    offset = (tail.offset - mean) * factor + bias
    return _through(view, replace(tail, gain=tail.gain * factor, offset=offset, shift=shift))


def _added(view: NodeView, index: int, tail: Tail, node: Linear) -> Tail | None:
    other = view.inputs[1 - index]
    if other not in view.graph.initializers:
        same = _same_shape(view.graph, tail.total, other)
        return replace(tail, total=view.outputs[0], other=other) if same and other != tail.total else None
    vector = _per_channel(view, 1 - index, tail, node)
    if vector is None:
        return None
    shift = tail.shift or _first_shift(view, other, 1.0, tail, node)
    return _through(view, replace(tail, offset=tail.offset + vector, shift=shift))


def _scaled(view: NodeView, index: int, tail: Tail, node: Linear) -> Tail | None:
    vector = _per_channel(view, 1 - index, tail, node)
    return None if vector is None else _through(view, replace(tail, gain=tail.gain * vector, offset=tail.offset * vector))


def _unchanged(view: NodeView, index: int, tail: Tail, node: Linear) -> Tail | None:
    return _through(view, tail)


def _rounded(view: NodeView, index: int, tail: Tail, node: Linear) -> Tail | None:
    """QuantizeLinear and DequantizeLinear in a row, unless they clip at zero: so quantisers fold a ReLU, which hides the rest."""
    bounds, uses = _steps(view), view.graph.uses.get(view.outputs[0], [])
    back = NodeView(view.graph, uses[0].node) if len(uses) == 1 else view
    if index or bounds is None or not bounds[0] < 0 < bounds[1] or back.operator != "DequantizeLinear":
        return None
    return _through(back, tail) if back.inputs[1:] == view.inputs[1:] else None


def _transposed(view: NodeView, index: int, tail: Tail, node: Linear) -> Tail | None:
    rank = len(view.shape(0) or ())
    order = list(view.attribute("perm", range(rank - 1, -1, -1)))
    return _through(view, replace(tail, axis=order.index(tail.axis)))


def _reshaped(view: NodeView, index: int, tail: Tail, node: Linear) -> Tail | None:
    """Axes from that of the channels on stay as they are; those before may become others."""
    before, after = (view.graph.sized.get(name) for name in (tail.total, view.outputs[0]))
    if index or before is None or after is None:
        return None
    kept = before[tail.axis :]
    if len(kept) > len(after) or after[-len(kept) :] != kept or not all(isinstance(size, int) for size in kept):
        return None
    return _through(view, replace(tail, axis=len(after) - len(kept)))


Step = Callable[[NodeView, int, Tail, Linear], Tail | None]

IN_PLACE: dict[str, Step] = {
    "BatchNormalization": _normalized,
    "Add": _added,
    "Mul": _scaled,
    "Identity": _unchanged,
    "Dropout": _unchanged,
    "QuantizeLinear": _rounded,
}
"""The operators that a result may pass, channel by channel."""

ANYWHERE: dict[str, Step] = IN_PLACE | {"Transpose": _transposed, "Reshape": _reshaped}
"""With those that move results but keep the channels apart."""


def _through(view: NodeView, tail: Tail) -> Tail:
    return replace(tail, total=view.outputs[0], straight=view.outputs[0])


def _first_shift(view: NodeView, name: str, factor: float, tail: Tail, node: Linear) -> Shift | None:
    """A bias that is added to the very result of the node."""
    own = tail.total == node.result and _is_own_vector(view.graph, name, len(tail.gain))
    return Shift(name, factor) if own else None


def _is_own_vector(graph: Graph, name: str, size: int) -> bool:
    tensor = graph.initializers.get(name)
    return tensor is not None and len(graph.uses[name]) == 1 and int(np.prod(tensor.dims)) == size


def _same_shape(graph: Graph, one: str, other: str) -> bool:
    a, b = graph.sized.get(one), graph.sized.get(other)
    return a is not None and a == b


def _per_channel(view: NodeView, index: int, tail: Tail, node: Linear) -> Wide | None:
    """A constant operand as one number per channel, or None where it varies along other axes."""
    constant = view.constant(index)
    rank = len(view.graph.shape(tail.total) or ())
    if constant is None or constant.dtype.kind != "f" or constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(dim != 1 for k, dim in enumerate(shape) if k != tail.axis) or shape[tail.axis] not in (1, len(tail.gain)):
        return None
    return np.asarray(np.broadcast_to(constant.reshape(-1), (len(tail.gain),)), np.float64)
