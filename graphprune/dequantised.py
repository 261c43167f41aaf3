"""Quantised weights as real ones, for criteria and repairs that compute with them, and the way back.

A network with QuantizeLinear and DequantizeLinear has its weights as integers, each behind a DequantizeLinear.  Passes that run
it on samples see a twin in which such a weight is real and read as it is, under the same name; an Identity that nobody reads
stands where the DequantizeLinear was, so that every node has the same position.  What repairs change is rounded again.  Start
reading at `with_real_weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from onnx import NodeProto, numpy_helper

from .cutting import taken
from .edit import KeptOf, kept_axes
from .graph import Array, Graph, copy_model, item_bits, unused_name
from .inference import Analysis
from .real_values import Scaled


def with_real_weights(analysis: Analysis) -> Analysis:
    """The same analysis of the twin; without weights behind DequantizeLinear it is the analysis itself.

    Weights of less than 8 bits and of floating-point types, and those that several nodes read, stay as they are.
    """
    graph, numbers = analysis.graph, analysis.ledger.numbers
    real = {weight: numbers[weight].real(_known(graph, weight), graph.constant) for weight, _ in _dequantised(analysis)}
    if not real:
        return analysis
    model = copy_model(graph.model, without=["initializer"])
    for tensor in graph.model.graph.initializer:
        array = real.get(tensor.name)
        kept = tensor if array is None else numpy_helper.from_array(array, tensor.name)
        model.graph.initializer.append(kept)
    direct = {graph.nodes[position].output[0]: weight for weight, position in _dequantised(analysis)}
    for node in model.graph.node:
        if node.output and node.output[0] in direct:
            unread = unused_name(f"{node.output[0]}_unread", graph.names)
            node.CopyFrom(NodeProto(op_type="Identity", name=node.name, input=[node.input[1]], output=[unread]))
        node.input[:] = [direct.get(name, name) for name in node.input]
    rest = {name: each for name, each in numbers.items() if name not in real}
    return replace(analysis, graph=Graph(model, graph.shapes, graph.sized), ledger=replace(analysis.ledger, numbers=rest))


def _dequantised(analysis: Analysis) -> Iterator[tuple[str, int]]:
    """Weights of whole numbers that one DequantizeLinear alone reads, with constant scales; and the position of that node."""
    graph = analysis.graph
    for position, node in enumerate(graph.nodes):
        weight = node.input[0] if node.op_type == "DequantizeLinear" else ""
        tensor = graph.initializers.get(weight)
        if tensor is None or weight not in analysis.ledger.numbers or len(graph.uses[weight]) != 1:
            continue
        constant = all(graph.constant(name) is not None for name in node.input if name)
        seen = node.output[0] in graph.read_elsewhere
        if constant and not seen and item_bits(tensor.data_type) >= 8 and _known(graph, weight).dtype.kind in "iu":
            yield weight, position


def _known(graph: Graph, name: str) -> Array:
    array = graph.constant(name)
    assert array is not None
    return array


def rounded(analysis: Analysis, weights: Mapping[str, Array], kept_of: KeptOf) -> dict[str, Array]:
    """Weights of the pruned twin as the network has them: those of quantised weights as numbers, with scales that fit them.

    A bias counts in steps of its data's scale times the weight's, which kernels take for granted: its scale moves along.
    """
    rounding = _Rounding(analysis, weights, kept_of)
    for weight, bias in _layers(analysis):
        if weight in weights:
            rounding.fit(weight, bias)
    return rounding.stored()


def _layers(analysis: Analysis) -> Iterator[tuple[str, str]]:
    """The quantised weights that nodes multiply by, with the quantised biases that these add ("" where there is none)."""
    behind = {analysis.graph.nodes[position].output[0]: weight for weight, position in _dequantised(analysis)}
    for node in analysis.graph.nodes:
        _, weight, bias, *_ = *(behind.get(name, "") for name in node.input), "", "", ""
        if weight:
            yield weight, bias


class _Rounding:
    """Real weights of the pruned network on their way to numbers."""

    def __init__(self, analysis: Analysis, weights: Mapping[str, Array], kept_of: KeptOf) -> None:
        self.graph = analysis.graph
        self.numbers = analysis.ledger.numbers
        self.kept_of = kept_of
        self.real = dict(weights)
        self.scales: dict[str, Array] = {}

    def constant(self, name: str) -> Array:
        """What is kept of an initializer, with scales as they are now."""
        array = _known(self.graph, name)
        return self.scales[name] if name in self.scales else taken(array, kept_axes(self.kept_of, name, array.ndim))

    def fit(self, weight: str, bias: str) -> None:
        """Give a weight scales of its new range, unless others share them, or they cannot move the bias's."""
        own, other = self._own_scales(weight), self._own_scales(bias) if bias else None
        if own is None or (bias and other is None):
            return
        old, full = self.constant(own.scale), _known(self.graph, weight)
        new = own.fitted(self.real[weight], full, self.constant, self.graph.constant)
        if other is not None:
            steps = self.constant(other.scale)
            if steps.size < new.size:
                return
            self.real.setdefault(bias, other.real(self.constant(bias), self.constant))
            self.scales[other.scale] = (steps * (new / old).reshape(steps.shape if new.size > 1 else ())).astype(steps.dtype)
        self.scales[own.scale] = new

    def _own_scales(self, name: str) -> Scaled | None:
        numbers = self.numbers.get(name)
        is_own = isinstance(numbers, Scaled) and not numbers.block and len(self.graph.uses.get(numbers.scale, ())) == 1
        return numbers if isinstance(numbers, Scaled) and is_own else None

    def stored(self) -> dict[str, Array]:
        """Numbers for the quantised weights, the others as they are, and the scales that moved."""
        return {name: self._stored(name, array) for name, array in self.real.items()} | self.scales

    def _stored(self, name: str, array: Array) -> Array:
        numbers, dtype = self.numbers.get(name), _known(self.graph, name).dtype
        return numbers.stored(array, dtype, self.constant) if isinstance(numbers, Scaled) and dtype.kind in "iu" else array
