"""What repair passes work on: the original network, the pruned one, and the samples.

Changed weights are recorded by name, in the shape that they have in the pruned network.  `with_weights` puts them back into the
original, where the masked reference and the rewrite see them: so a repaired network is proven and replayed like any other.  Start
reading at `Patient`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from .calibration import Calibration, Tick, linear_nodes
from .cutting import taken
from .depth import End, removed
from .edit import KeptOf, kept_axes
from .errors import CalibrationError
from .graph import Array, Graph, operator_name, to_array
from .inference import Analysis
from .labels import Ids
from .linear import Linear
from .model_file import load_what_fits
from .operators import operator_table
from .tails import Shift, Tail


@dataclass
class Patient:
    """A pruned network under repair."""

    analysis: Analysis
    present: NDArray[np.bool_]
    pruned: ModelProto
    kept_of: KeptOf
    calibration: Calibration
    tick: Tick = lambda share: None
    changed: dict[str, Array] = field(default_factory=dict)
    """The weights that were changed, by name."""

    def __post_init__(self) -> None:
        load_what_fits(self.pruned)  # repairs read weights many times

    @property
    def graph(self) -> Graph:
        """The original network."""
        return self.analysis.graph

    @property
    def original(self) -> ModelProto:
        """The original network as ONNX Runtime can run it."""
        return self.calibration.runnable

    @cached_property
    def layers(self) -> list[Layer]:
        """The linear nodes, in the order of the original network."""
        before = {self.graph.nodes[at].name: node for at, node in linear_nodes(self.graph).items()}
        after = Graph(self.pruned, self.graph.shapes)
        found = {after.nodes[at].name: node for at, node in linear_nodes(after).items()}
        return [Layer(node, found[name], self.calibration.tail(node)) for name, node in before.items() if name in found]

    @cached_property
    def _tensors(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.pruned.graph.initializer}

    def weight(self, name: str) -> Array:
        """A weight of the pruned network, as it is now."""
        return to_array(self._tensors[name])

    def set_weight(self, name: str, array: Array) -> TensorProto:
        """Change a weight of the pruned network; it keeps its type.  Returns the tensor.

        Raises CalibrationError for numbers that are not finite in that type.
        """
        tensor = self._tensors[name]
        with np.errstate(over="ignore"):
            typed = np.ascontiguousarray(array.reshape(tuple(tensor.dims)).astype(to_array(tensor).dtype))
        if not np.isfinite(typed.astype(np.float64)).all():
            raise CalibrationError(f"repairing gives {name!r} numbers that are not finite; leave the repair out (--repair none)")
        tensor.CopyFrom(numpy_helper.from_array(typed, name))
        self.changed[name] = typed
        return tensor

    def restore(self, layers: Iterable[Layer]) -> None:
        """Put the tensors that intercepts of these layers go into back as they were, for repairs that count from there."""
        for name in {layer.tail.shift.tensor for layer in layers if layer.tail.shift} & self.changed.keys():
            original = self.graph.constant(name)
            assert original is not None
            self.set_weight(name, self.taken(original, name))

    def set_intercept(self, shift: Shift, intercept: Array, layer: Layer) -> None:
        """Let a layer's results be its product plus `intercept` (in the order of its results)."""
        if shift.tensor == layer.before.bias:
            self.set_weight(shift.tensor, intercept)
        else:
            self.move_intercept(shift, intercept)

    def move_intercept(self, shift: Shift, by: Array) -> None:
        """Let a layer's results be larger by `by` (in the order of its results)."""
        old = self.weight(shift.tensor).astype(np.float64).reshape(-1)
        self.set_weight(shift.tensor, old + shift.factor * by)

    def cuts(self, layer: Layer) -> list[Cut]:
        """What is kept of a layer's matrix, block by block; blocks that are gone are left out."""
        axis = layer.before.data_axis % max(1, len(self.graph.shape(layer.before.data) or ()))
        channels = layer.before.channels()
        kept = self.kept_of(layer.before.data, axis)
        columns = _in_order(channels, np.unique(channels) if kept is None else kept)
        given, left = layer.before.result_channels(), self.kept_results(layer).tolist()
        results = _in_order(given, np.array(left))
        place = {channel: number for number, channel in enumerate(left)}
        blocks = [block for block, rows in enumerate(results) if len(rows)]
        blocks.sort(key=lambda block: place[int(given[block, results[block][0]])])
        return [Cut(block, after, columns[block], results[block]) for after, block in enumerate(blocks)]

    def may_change(self, layer: Layer) -> bool:
        """Whether a layer's weight is its own, not one that other nodes read or callers replace."""
        inputs = {value.name for value in self.pruned.graph.input}
        return len(self.graph.uses[layer.before.weight]) == 1 and layer.before.weight not in inputs

    @cached_property
    def trainable(self) -> list[str]:
        """The weights that may move: weights, scales and biases by the operator table, and where intercepts go; no tables."""
        found = {layer.after.weight for layer in self.layers}
        found |= {layer.tail.shift.tensor for layer in self.layers if layer.tail.shift}
        for node in self.graph.nodes:
            entry = operator_table().get(operator_name(node))
            operands = zip(node.input, entry.parameters if entry else (), strict=False)
            found |= {name for name, kind in operands if kind in {"weight", "scale", "bias"}}
        return sorted(found & set(self._tensors) - {value.name for value in self.pruned.graph.input})

    @cached_property
    def constants(self) -> list[Gone]:
        """The branches that left and whose constant can be set, in order; each has a sum with a constant from here on."""
        ends, _ = removed(self.analysis, self.present)
        positions = {node.name: position for position, node in enumerate(self.pruned.graph.node)}
        found = []
        for position, end in sorted(ends.items()):
            if end.tail.shift is None:
                continue
            node = self.pruned.graph.node[positions[self.graph.nodes[position].name]]
            if len(node.input) == 1:
                self.pruned.graph.initializer.append(end.tensor(self.graph, end.constant(self.graph, self.kept_of)))
                node.op_type = "Add"
                node.input.append(self.pruned.graph.initializer[-1].name)
            found.append(Gone(end, positions[node.name], node.input[0], node.input[1]))
        self.__dict__.pop("_tensors", None)
        return found

    def set_constant(self, gone: Gone, constant: Array) -> None:
        """Let a branch that left add this to its sum (in the order of the kept channels)."""
        end, shift = gone.end, gone.end.tail.shift
        if shift is None:
            raise ValueError(f"the branch into {end.tail.total!r} has no bias")
        gain, offset = (self._kept_channels(values, end) for values in (end.tail.gain, end.tail.offset))
        intercept = np.where(gain == 0, 0, (constant - offset) / np.where(gain == 0, 1, gain))
        original = to_array(self.graph.initializers[shift.tensor])
        old = self.taken(original, shift.tensor)
        wide = intercept if shift.tensor == end.linear.bias else old.astype(np.float64).reshape(-1) + shift.factor * intercept
        self.changed[shift.tensor] = np.ascontiguousarray(wide.reshape(old.shape).astype(original.dtype))
        self._tensors[gone.constant].CopyFrom(end.tensor(self.graph, constant))

    def _kept_channels(self, values: Array, end: End) -> Array:
        kept = self.kept_of(end.tail.total, end.tail.axis)
        return values if kept is None else values[kept]

    @property
    def damaged(self) -> list[Layer]:
        """The layers that see less than they did and may change, in order."""
        return [layer for layer in self.layers if self.may_change(layer) and self.is_behind_pruned(layer)]

    def is_behind_pruned(self, layer: Layer) -> bool:
        """Whether what was removed changes what the layer reads."""
        return layer.before.node in self._changed_nodes

    @cached_property
    def _changed_nodes(self) -> set[int]:
        """The nodes whose results differ from the original's, at the kept indices."""
        ledger = self.analysis.ledger
        lossy = {item.node for item in ledger.contractions if not self.analysis.index_mask(item.ids, self.present).all()}
        lossy |= {item.node for item in ledger.statistics if not self.analysis.index_mask(item.ids, self.present).all()}
        changed: set[int] = set()
        values: set[str] = set()
        for position, node in enumerate(self.graph.nodes):
            if position in lossy or values & set(node.input):
                changed.add(position)
                values |= set(node.output) - {""}
        return changed

    def kept_results(self, layer: Layer) -> Ids:
        """The channels of a layer's results that are kept, as the original network numbers them."""
        axis = layer.before.result_axis % len(self.graph.shape(layer.before.result) or (0,))
        kept = self.kept_of(layer.before.result, axis)
        return layer.before.result_channels().reshape(-1) if kept is None else kept.astype(np.int32)

    def taken(self, array: Array, name: str) -> Array:
        """What is kept of a value of the original network."""
        return taken(array, kept_axes(self.kept_of, name, array.ndim))


@dataclass(frozen=True)
class Layer:
    """A linear node before and after pruning, and what becomes of its result."""

    before: Linear
    after: Linear
    tail: Tail


@dataclass(frozen=True)
class Gone:
    """A branch that left: the position of its sum in the pruned network, and what that adds, the constant last."""

    end: End
    node: int
    other: str
    constant: str

    @property
    def tail(self) -> Tail:
        """What became of its last layer's result."""
        return self.end.tail


@dataclass(frozen=True)
class Cut:
    """One block of a layer: its number before and after, and which columns and results are kept, in the order after pruning."""

    block: int
    after: int
    columns: NDArray[np.int64]
    results: NDArray[np.int64]


def _in_order(channels: Ids, kept: Array) -> list[NDArray[np.int64]]:
    """For each row of channels the places of those that are kept, in the order of `kept`."""
    rank = np.full(int(max(channels.max(initial=0), kept.max(initial=0))) + 1, -1)
    rank[kept] = np.arange(len(kept))
    found = [np.flatnonzero(rank[row] >= 0) for row in channels]
    return [there[np.argsort(rank[row[there]], kind="stable")] for row, there in zip(channels, found, strict=True)]


def with_weights(analysis: Analysis, weights: Mapping[str, Array], kept_of: KeptOf) -> Analysis:
    """The same analysis of the original network with changed weights put where they were cut from."""
    if not weights:
        return analysis
    model = ModelProto()
    model.CopyFrom(analysis.graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            full = np.array(analysis.graph.constant(tensor.name))
            full[_places(full, tensor.name, kept_of)] = weights[tensor.name].astype(full.dtype)
            doc, metadata = tensor.doc_string, list(tensor.metadata_props)
            tensor.CopyFrom(numpy_helper.from_array(full, tensor.name))
            tensor.doc_string = doc
            tensor.metadata_props.extend(metadata)
    return replace(analysis, graph=Graph(model, analysis.graph.shapes, analysis.graph.sized))


def _places(array: Array, name: str, kept_of: KeptOf) -> tuple[NDArray[np.int64], ...]:
    kept = [kept_of(name, axis) for axis in range(array.ndim)]
    return np.ix_(*(np.arange(size) if ids is None else ids for ids, size in zip(kept, array.shape, strict=True)))
