"""Reading one node of a graph: attributes, constant operands, shapes.  Start reading at `NodeView.integers`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import Array, Graph, Shape, attributes, operator_name


class NodeView:
    """A node with its surroundings, as the original graph has them."""

    def __init__(self, graph: Graph, position: int) -> None:
        self.graph = graph
        self.position = position
        source = graph.nodes[position]
        self.inputs = list(source.input)
        self.outputs = list(source.output)
        self.operator = operator_name(source)
        self.attributes = attributes(source)
        self.label = source.name or (self.outputs[0] if self.outputs else self.operator)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, or `default`."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether input `index` is present."""
        return 0 <= index < len(self.inputs) and bool(self.inputs[index])

    def constant(self, index: int) -> Array | None:
        """Input `index` as an array if it is an initializer."""
        return self.graph.constant(self.inputs[index]) if self.has(index) else None

    def integers(self, index: int, name: str = "", default: list[int] | None = None) -> list[int] | None:
        """A list of integers given as input `index` or, in older opsets, as attribute `name`.

        `default` where neither is given; None where the input is computed at run time.
        """
        if self.has(index):
            value = self.constant(index)
            return None if value is None else [int(v) for v in value.ravel()]
        value = self.attributes.get(name)
        return default if value is None else [int(v) for v in np.atleast_1d(value)]

    def shape(self, index: int) -> Shape | None:
        """The shape of input `index`, or None where the rank is unknown."""
        return self.graph.shape(self.inputs[index]) if self.has(index) else None

    def output_shape(self, index: int = 0) -> Shape | None:
        """The shape of output `index`, or None where the rank is unknown."""
        return self.graph.shape(self.outputs[index]) if index < len(self.outputs) else None


def normal_axis(axis: int, rank: int) -> int:
    """A possibly negative axis as a position."""
    return axis + rank if axis < 0 else axis
