"""Quantised weights as real ones, for criteria and repairs that compute with them, and the way back.

A network with QuantizeLinear and DequantizeLinear has its weights as integers behind a DequantizeLinear, or as real numbers
behind both.  Passes that run it on samples see a twin in which such a weight is real and read as it is, under the same name;
Identities that nobody reads stand where those nodes were, so that every node has the same position.  What repairs change is
rounded again.  Start reading at `with_real_weights`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto, numpy_helper

from .cutting import taken
from .edit import KeptOf, kept_axes
from .graph import Array, Graph, attributes, copy_model, item_bits, unused_name
from .inference import Analysis
from .node_view import normal_axis
from .real_values import Scaled


def with_real_weights(analysis: Analysis) -> Analysis:
    """The same analysis of the twin; without weights behind DequantizeLinear it is the analysis itself.

    Weights of less than 8 bits, of 8 bits in floating point, and those that several nodes read stay as they are.
    """
    graph, found = analysis.graph, quantised_weights(analysis)
    if not found:
        return analysis
    real = {each.weight: _real(graph, each) for each in found if each.is_stored}
    model = copy_model(graph.model, without=["initializer"])
    for tensor in graph.model.graph.initializer:
        array = real.get(tensor.name)
        kept = tensor if array is None else numpy_helper.from_array(array, tensor.name)
        model.graph.initializer.append(kept)
    for each in found:
        for position in each.nodes:
            node = model.graph.node[position]
            unread = unused_name(f"{node.output[0]}_unread", graph.names)
            node.CopyFrom(NodeProto(op_type="Identity", name=node.name, input=[node.input[1]], output=[unread]))
    direct = {each.value: each.weight for each in found}
    for node in model.graph.node:
        node.input[:] = [direct.get(name, name) for name in node.input]
    rest = {name: numbers for name, numbers in analysis.ledger.numbers.items() if name not in real}
    return replace(analysis, graph=Graph(model, graph.shapes, graph.sized), ledger=replace(analysis.ledger, numbers=rest))


def _real(graph: Graph, each: Quantised) -> Array:
    """What a weight of whole numbers stands for, in the type that it is computed with: that of the scale."""
    real: Array = each.numbers.real(_known(graph, each.weight), graph.constant)
    return real.astype(_known(graph, each.numbers.scale).dtype)


@dataclass(frozen=True)
class Quantised:
    """A weight or bias that one DequantizeLinear alone reads, perhaps behind a QuantizeLinear with the same constant scales."""

    weight: str
    is_stored: bool
    """As integers; else it is quantised when the network runs."""
    value: str
    """What the last of the nodes gives."""
    nodes: tuple[int, ...]
    scales: tuple[str, ...]
    """The names of the scales that these read, all of the same values."""
    numbers: Scaled
    kind: np.dtype[Any]
    """That of the integers."""


def quantised_weights(analysis: Analysis) -> list[Quantised]:
    """All of a network, in the order of its nodes."""
    graph = analysis.graph
    nodes = [(at, node) for at, node in enumerate(graph.nodes) if node.op_type == "DequantizeLinear"]
    found = [_stored(analysis, at, node) or _made(graph, at, node) for at, node in nodes]
    return [each for each in found if each is not None and each.value not in graph.read_elsewhere]


def _stored(analysis: Analysis, position: int, node: NodeProto) -> Quantised | None:
    """A weight of whole numbers."""
    graph, weight = analysis.graph, node.input[0]
    tensor, numbers = graph.initializers.get(weight), analysis.ledger.numbers.get(weight)
    if tensor is None or not isinstance(numbers, Scaled) or not _is_alone(graph, node) or item_bits(tensor.data_type) < 8:
        return None
    kind = _known(graph, weight).dtype
    scales = (numbers.scale,)
    return Quantised(weight, True, node.output[0], (position,), scales, numbers, kind) if kind.kind in "iu" else None


def _made(graph: Graph, position: int, node: NodeProto) -> Quantised | None:
    """A weight of real numbers behind a QuantizeLinear."""
    at = graph.producers.get(node.input[0], -1)
    before = graph.nodes[at] if at >= 0 else node
    if before.op_type != "QuantizeLinear" or len(before.input) < 3 or len(node.input) < 3:
        return None
    weight, scale, zero = before.input
    rank = len(graph.shape(weight) or ())
    axes = {normal_axis(int(attributes(each).get("axis", 1)), max(1, rank)) for each in (before, node)}
    blocks = any(attributes(each).get("block_size", 0) for each in (before, node))
    alone = _is_alone(graph, before) and _is_alone(graph, node)
    if weight not in graph.initializers or not rank or not alone or len(axes) > 1 or blocks:
        return None
    if not all(np.array_equal(_known(graph, a), _known(graph, b)) for a, b in zip(before.input[1:], node.input[1:], strict=True)):
        return None
    kind, axis = _known(graph, zero).dtype, min(*axes, rank - 1)
    numbers, scales = Scaled(scale, zero, axis), (scale, node.input[1])
    return Quantised(weight, False, node.output[0], (at, position), scales, numbers, kind) if kind.kind in "iu" else None


def _is_alone(graph: Graph, node: NodeProto) -> bool:
    """Whether a node has constant scales, and is the only one to read what it rounds."""
    name = node.input[0]
    constant = all(graph.constant(each) is not None for each in node.input[1:] if each)
    return constant and len(graph.uses[name]) == 1 and name not in graph.read_elsewhere and name not in graph.overridable


def _known(graph: Graph, name: str) -> Array:
    array = graph.constant(name)
    assert array is not None
    return array


def rounded(analysis: Analysis, weights: Mapping[str, Array], kept_of: KeptOf) -> dict[str, Array]:
    """Weights of the pruned twin as the network has them: those of quantised weights as numbers, with scales that fit them.

    A bias counts in steps of its data's scale times the weight's, which kernels take for granted: its scale moves along.
    """
    rounding = _Rounding(analysis, weights, kept_of)
    for weight, bias in _layers(analysis.graph, quantised_weights(analysis)):
        if weight.weight in weights:
            rounding.fit(weight, bias)
    return rounding.stored()


def _layers(graph: Graph, found: Iterable[Quantised]) -> Iterator[tuple[Quantised, Quantised | None]]:
    """The weights that nodes multiply by, with the quantised biases that these add."""
    behind = {each.value: each for each in found}
    for node in graph.nodes:
        _, weight, bias, *_ = *map(behind.get, node.input), None, None, None
        if weight:
            yield weight, bias


class _Rounding:
    """Real weights of the pruned network on their way to numbers."""

    def __init__(self, analysis: Analysis, weights: Mapping[str, Array], kept_of: KeptOf) -> None:
        self.graph = analysis.graph
        self.stored_as = {each.weight: each for each in quantised_weights(analysis) if each.is_stored}
        self.kept_of = kept_of
        self.real = dict(weights)
        self.scales: dict[str, Array] = {}

    def constant(self, name: str) -> Array:
        """What is kept of an initializer, with scales as they are now."""
        array = _known(self.graph, name)
        return self.scales[name] if name in self.scales else taken(array, kept_axes(self.kept_of, name, array.ndim))

    def fit(self, weight: Quantised, bias: Quantised | None) -> None:
        """Give a weight scales of its new range, unless others share them, or they cannot move the bias's."""
        if not self._has_own_scales(weight) or (bias and not self._has_own_scales(bias)):
            return
        own, full = weight.numbers, _known(self.graph, weight.weight)
        range_ = full if weight.is_stored else own.stored(full, weight.kind, self.graph.constant)
        old = self.constant(own.scale)
        new = own.fitted(self.real[weight.weight], range_, self.constant, self.graph.constant)
        if bias is not None:
            steps = self.constant(bias.numbers.scale)
            if steps.size < new.size:
                return
            if bias.is_stored:
                self.real.setdefault(bias.weight, bias.numbers.real(self.constant(bias.weight), self.constant))
            grown = np.divide(new, old, out=np.ones_like(new), where=old != 0)
            wider = steps * grown.reshape(steps.shape if new.size > 1 else ()).astype(steps.dtype)
            self.scales |= dict.fromkeys(bias.scales, wider)
        self.scales |= dict.fromkeys(weight.scales, new)

    def _has_own_scales(self, each: Quantised) -> bool:
        readers = {use.node for name in each.scales for use in self.graph.uses[name]}
        return not each.numbers.block and readers == set(each.nodes)

    def stored(self) -> dict[str, Array]:
        """Numbers for the weights that are stored as such, the others in the type that they had, and the scales that moved."""
        return {name: self._stored(name, array) for name, array in self.real.items()} | self.scales

    def _stored(self, name: str, array: Array) -> Array:
        found = self.stored_as.get(name)
        if found is None:
            return array.astype(_known(self.graph, name).dtype, copy=False)
        return found.numbers.stored(array, found.kind, self.constant)
