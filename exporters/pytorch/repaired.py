"""Repaired weights, brought back to the parameters that they came from.

A changed weight of the ONNX model is a parameter whose elements were moved (transposed, reordered, joined), or a
convolution into which a batch normalisation was folded.  The first is undone by following numbered elements through the module's
graph; the second by dividing the convolution by the normalisation's factors.  Start reading at `Repair.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graphprune.edit import KeptOf
from graphprune.errors import UsageError
from graphprune.graph import Array, Graph, attributes, copy_model
from graphprune.runtime import run

MOVEMENTS = frozenset(
    {"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Slice", "Concat", "Split", "Expand", "Gather"}
)

DIGIT = 2**12
"""Places are followed as digits of this base, so that float32 holds them exactly."""

Codes = tuple[NDArray[np.int64], NDArray[np.int64]]
"""For every element of a value: the number of the parameter that it is from, and its place there."""


@dataclass(frozen=True)
class Divided:
    """A normalisation such that it and the layer in front, divided by `factor`, are what both were merged into."""

    factor: Array
    scale: Array
    shift: Array


def divided(bias: Array | None, scale: Array, deviation: Array, mean: Array, own_bias: Array | None) -> Divided:
    """Take a merged layer with this `bias` apart; the layer in front has `own_bias`.  All are vectors of channels, in float64.

    A channel whose scale is nearly zero cannot be divided by it and gets another.
    """
    gone = np.abs(scale) < 1e-3 * deviation.min()
    new = np.where(gone, deviation, np.asarray(scale, np.float64))
    offset = (0.0 if own_bias is None else own_bias) - np.asarray(mean, np.float64)
    return Divided(new / deviation, new, (0.0 if bias is None else bias) - new / deviation * offset)


class Repair:
    """Parameters in their full shapes, changed as the repaired weights have it."""

    def __init__(
        self, original: Graph, weights: Mapping[str, Array], kept_of: KeptOf, graph: Graph, pairs: list[tuple[str, list[str]]]
    ) -> None:
        """`pairs` are values of `graph` (the module's), each with the values of `original` that it equals."""
        self._original, self._graph = original, graph
        self._weights = {name: self._full(name, array, kept_of) for name, array in weights.items()}
        self._equal: dict[str, list[str]] = {}
        for name, others in pairs:
            for other in others:
                self._equal.setdefault(other, []).append(name)
        self._names = [name for name, tensor in graph.initializers.items() if tensor.data_type in (1, 10, 11)]
        self._codes: dict[str, Codes | None] = {}
        self.changed: dict[str, Array] = {}

    def run(self) -> dict[str, Array]:
        """The parameters that change, by name, in full shapes.  Raises UsageError for a weight without a place there."""
        for name, full in self._weights.items():
            place = self._place(name)
            if place is not None:
                self._write(place, full)
            elif not self._unfold(name):
                raise UsageError(
                    f"the repaired weight {name!r} cannot be brought back: it is computed from several parameters of the module; "
                    "prune without repair (--repair none) and fine-tune"
                )
        return self.changed

    def _full(self, name: str, array: Array, kept_of: KeptOf) -> Array:
        full = np.array(self._original.constant(name))
        kept = [kept_of(name, axis) for axis in range(full.ndim)]
        full[np.ix_(*(np.arange(size) if ids is None else ids for ids, size in zip(kept, full.shape, strict=True)))] = array
        return full

    def _place(self, name: str) -> Codes | None:
        """Where the elements of a weight are from, if they were only moved."""
        shape = tuple(self._original.initializers[name].dims)
        old = self._original.constant(name)
        known = self._graph.constant(name) if name in self._names else None
        if known is not None and known.shape == shape and old is not None and np.array_equal(known, old):
            return self._codes_of(name)
        found = {id(codes): codes for each in self._equal.get(name, []) if (codes := self._codes_of(each)) is not None}
        distinct = {codes[0].tobytes() + codes[1].tobytes(): codes for codes in found.values()}
        if len(distinct) == 1:
            return next(iter(distinct.values()))
        return self._operand_like(name, shape)

    def _operand_like(self, name: str, shape: tuple[int, ...]) -> Codes | None:
        """The operand of the same shape at the node of the module that computes what the weight's reader computes."""
        found = []
        for use in self._original.uses.get(name, []):
            for equal in self._equal.get(self._original.nodes[use.node].output[0], []):
                producer = self._graph.producers.get(equal)
                if producer is None or self._graph.nodes[producer].op_type == "BatchNormalization":
                    continue
                found += [
                    codes
                    for each in self._graph.nodes[producer].input
                    if self._graph.shape(each) == shape and (codes := self._codes_of(each)) is not None
                ]
        distinct = {codes[0].tobytes() + codes[1].tobytes(): codes for codes in found}
        return next(iter(distinct.values())) if len(distinct) == 1 else None

    def _write(self, place: Codes, values: Array) -> None:
        owners, positions = place
        for owner in np.unique(owners):
            mask = owners == owner
            target = self._parameter(self._names[int(owner)])
            target.reshape(-1)[positions[mask]] = values[mask]

    def _parameter(self, name: str) -> Array:
        if name not in self.changed:
            self.changed[name] = np.array(self._graph.constant(name), order="C")
        return self.changed[name]

    # ---- numbered elements ---------------------------------------------------------------------

    def _codes_of(self, value: str) -> Codes | None:
        if value not in self._codes:
            self._codes[value] = self._followed(value)
        return self._codes[value]

    def _followed(self, value: str) -> Codes | None:
        if value in self._graph.initializers:
            shape = tuple(self._graph.initializers[value].dims)
            if value not in self._names:
                return None
            return np.full(shape, self._names.index(value)), np.arange(int(np.prod(shape))).reshape(shape)
        nodes = self._movements_to(value)
        if nodes is None:
            return None
        model = copy_model(self._graph.model, without=["initializer", "value_info", "node", "input", "output"])
        model.graph.node.extend(nodes)
        model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
        read = {name for node in nodes for name in node.input}
        digits = [self._digit(model, value, read, power) for power in range(4)]
        places = digits[0] + DIGIT * (digits[1] + DIGIT * digits[2])
        return digits[3], places

    def _movements_to(self, value: str) -> list[NodeProto] | None:
        """The nodes that bring parameters to a value; None where one of them computes."""
        wanted, nodes = {value}, []
        for position in range(self._graph.producers.get(value, -1), -1, -1):
            node = self._graph.nodes[position]
            if wanted & set(node.output):
                if node.op_type not in MOVEMENTS:
                    return None
                nodes.append(node)
                wanted |= set(node.input)
        inputs = {each.name for each in self._graph.inputs}
        return None if not nodes or wanted & inputs else nodes[::-1]

    def _digit(self, model: ModelProto, value: str, read: set[str], power: int) -> NDArray[np.int64]:
        """One digit of the places (powers 0 to 2), or the number of the parameter (3)."""
        del model.graph.initializer[:]
        for name in read & set(self._graph.initializers):
            tensor = self._graph.initializers[name]
            if name not in self._names:
                model.graph.initializer.append(tensor)
                continue
            shape = tuple(tensor.dims)
            count = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
            digit = np.full(shape, self._names.index(name)) if power == 3 else count // DIGIT**power % DIGIT
            model.graph.initializer.append(numpy_helper.from_array(digit.astype(np.float32), name))
        return np.asarray(run(model, {})[value]).astype(np.int64)

    # ---- folded normalisations -----------------------------------------------------------------

    def _unfold(self, name: str) -> bool:
        """Change a convolution and its normalisation so that together they are the repaired convolution."""
        for use in self._original.uses.get(name, []):
            folded = self._original.nodes[use.node]
            for equal in self._equal.get(folded.output[0], []):
                producer = self._graph.producers.get(equal)
                norm = self._graph.nodes[producer] if producer is not None else None
                if norm is None or norm.op_type != "BatchNormalization" or norm.input[0] not in self._graph.producers:
                    continue
                layer = self._graph.nodes[self._graph.producers[norm.input[0]]]
                if layer.op_type == folded.op_type and layer.op_type in ("Conv", "ConvTranspose"):
                    return self._unfolded(folded, layer, norm)
        return False

    def _unfolded(self, folded: NodeProto, layer: NodeProto, norm: NodeProto) -> bool:
        axis = 0 if layer.op_type == "Conv" else 1
        if axis == 1 and attributes(layer).get("group", 1) != 1:
            return False
        scale, shift, mean, variance = (self._parameter_now(name) for name in norm.input[1:5])
        place = self._codes_of(layer.input[1])
        if scale is None or shift is None or mean is None or variance is None or place is None:
            return False
        deviation = np.sqrt(np.asarray(variance, np.float64) + attributes(norm).get("epsilon", 1e-5))
        weight = self._folded_operand(folded, 1)
        assert weight is not None
        own = self._graph.constant(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else None
        parts = divided(self._folded_operand(folded, 2), scale, deviation, mean, own)
        self._write(place, weight / parts.factor.reshape([-1 if k == axis else 1 for k in range(weight.ndim)]))
        self._parameter(norm.input[1])[:] = parts.scale
        self._parameter(norm.input[2])[:] = parts.shift
        return True

    def _parameter_now(self, name: str) -> Array | None:
        """A parameter as the module has it."""
        return self._graph.constant(name) if name in self._names else None

    def _folded_operand(self, node: NodeProto, index: int) -> Array | None:
        name = node.input[index] if len(node.input) > index else ""
        return self._weights.get(name, self._original.constant(name)) if name else None
