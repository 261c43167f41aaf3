"""What an operator sees while the rewrite shrinks one of its nodes.

Weights are cut by the rewrite itself; an operator only brings sizes that are written in its attributes or constant
operands back in line (Conv.group, Reshape's shape, Split's sizes).  Start reading at `Edit.kept`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .errors import InternalError
from .graph import Graph, Shape, unused_name
from .node_view import NodeView

Indices = NDArray[np.int64]
KeptOf = Callable[[str, int], Indices | None]
"""(value name, axis) -> the kept indices of that axis in the original graph, or None where it is unchanged."""


def kept_axes(kept_of: KeptOf, name: str, rank: int) -> dict[int, Indices]:
    """The axes of a value that shrink, with their kept indices."""
    kept = {axis: kept_of(name, axis) for axis in range(rank)}
    return {axis: indices for axis, indices in kept.items() if indices is not None}


class Edit(NodeView):
    """One node under the rewrite: reads come from the original graph, writes go to the new model."""

    def __init__(
        self, graph: Graph, position: int, model: ModelProto, kept_of: KeptOf, initializers: dict[str, TensorProto]
    ) -> None:
        """`initializers` are those of the new model by name, for all nodes of one rewrite."""
        super().__init__(graph, position)
        self.model = model
        self.initializers = initializers
        self.node: NodeProto = model.graph.node[position]
        self.appended: list[NodeProto] = []
        self._kept_of = kept_of

    def at(self, position: int) -> Edit:
        """Another node under the same rewrite."""
        return Edit(self.graph, position, self.model, self._kept_of, self.initializers)

    def kept(self, index: int, axis: int) -> Indices | None:
        """The kept indices of an axis of input `index`, or None where all are."""
        return self._kept_of(self.inputs[index], axis)

    def kept_output(self, index: int, axis: int) -> Indices | None:
        """The kept indices of an axis of output `index`, or None where all are."""
        return self._kept_of(self.outputs[index], axis)

    def kept_count(self, index: int, axis: int) -> int | None:
        """The new size of an axis of input `index`, or None where it is unchanged."""
        kept = self.kept(index, axis)
        return None if kept is None else len(kept)

    def size(self, axis: int, index: int = 0) -> int:
        """The original size of an axis of input `index`, which must be known."""
        return self._known(self.shape(index), axis, f"input {index}")

    def output_size(self, axis: int) -> int:
        """The original size of an axis of the first result, which must be known."""
        return self._known(self.output_shape(), axis, "the result")

    def _known(self, shape: Shape | None, axis: int, what: str) -> int:
        dim = shape[axis] if shape is not None else None
        if not isinstance(dim, int):
            raise InternalError(f"{self.label}: axis {axis} of {what} has no known size")
        return dim

    def drop_attribute(self, name: str) -> None:
        """Remove an attribute of the node if it has it."""
        for position, attribute in enumerate(self.node.attribute):
            if attribute.name == name:
                del self.node.attribute[position]
                return

    def set_attribute(self, name: str, value: Any) -> None:
        """Write an attribute of the node."""
        self.drop_attribute(name)
        self.node.attribute.append(helper.make_attribute(name, value))

    def set_integers(self, index: int, values: Sequence[int], name: str = "") -> None:
        """Write a list of integers where the node keeps it: attribute `name` if it has one, else input `index`."""
        if name and name in self.attributes:
            self.set_attribute(name, list(values))
            return
        self.set_constant(index, np.asarray(values, np.int64))

    def set_constant(self, index: int, values: NDArray[Any]) -> None:
        """Give the node a constant of its own as input `index` (the old one may have other readers)."""
        while len(self.node.input) <= index:
            self.node.input.append("")
        base = self.node.input[index] or f"{self.outputs[0]}_input{index}"
        shared = len(self.graph.uses.get(base, ())) != 1 or base in self.graph.read_elsewhere
        name = f"{base}_{self.node.name}_{index}" if shared else base
        self.node.input[index] = name
        if name not in self.initializers:
            self.initializers[name] = self.model.graph.initializer.add()
        self.initializers[name].CopyFrom(numpy_helper.from_array(np.array(values, order="C"), name))

    def gather_output(self, index: int, axis: int, positions: Indices) -> None:
        """Let a Gather along `axis` follow output `index` of the node, behind those that follow it already."""
        name = self.outputs[index]
        last = next((node for node in self.appended if name in node.output), self.node)
        suffix = "" if last is self.node else f"_{axis}"
        raw, indices = (unused_name(f"{name}_{part}{suffix}", self.graph.names) for part in ("before_gather", "kept"))
        last.output[:] = [raw if output == name else output for output in last.output]
        self.model.graph.initializer.append(numpy_helper.from_array(positions.astype(np.int64), indices))
        title = f"{self.node.name}_gather{suffix}"
        self.appended.append(helper.make_node("Gather", [raw, indices], [name], name=title, axis=axis))


def positions_in(kept: Indices, subset: Indices) -> Indices:
    """Where the entries of `subset` stand in `kept`, which may be in any order."""
    order = np.argsort(kept, kind="stable")
    return np.asarray(order[np.searchsorted(kept, subset, sorter=order)], np.int64)
