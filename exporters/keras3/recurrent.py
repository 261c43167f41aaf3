"""Weights of recurrent layers: ONNX has their gates in another order, transposed, and the two directions in one tensor.

Start reading at `cells`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.edit import Indices, KeptOf
from graphprune.graph import Array, Graph

from .unfolded import layers_of, values_of

Model = Any
Variable = Any


@dataclass(frozen=True)
class Cell:
    """A cell whose layer is an LSTM of the graph.

    Keras has its kernels as (inputs, gates times units), ONNX as (directions, gates times units, inputs).
    """

    kernel: Variable
    recurrent_kernel: Variable
    bias: Variable | None
    names: tuple[str, str, str]
    """Of the kernel, the recurrent kernel and the biases in the graph."""
    direction: int
    order: list[int]
    """For each gate of ONNX its place in Keras."""

    @property
    def units(self) -> int:
        """How many units the cell has."""
        return int(self.recurrent_kernel.shape[0])

    def kept(self, kept_of: KeptOf) -> dict[int, dict[int, Indices]]:
        """By the `id` of a variable the axes that shrink."""
        units, inputs = kept_of(self.names[1], 2), kept_of(self.names[0], 2)
        found: dict[int, dict[int, Indices]] = {id(self.kernel): {} if inputs is None else {0: inputs}}
        if units is not None:
            columns = np.concatenate([gate * self.units + units for gate in range(len(self.order))])
            found[id(self.kernel)][1] = columns
            found[id(self.recurrent_kernel)] = {0: units, 1: columns}
            if self.bias is not None:
                found[id(self.bias)] = {0: columns}
        return found

    def brought_back(self, changed: Mapping[str, Array]) -> Iterator[tuple[Variable, Array]]:
        """The variables, in full shapes, of which ONNX's tensors are in `changed`."""
        for variable, name in zip((self.kernel, self.recurrent_kernel), self.names, strict=False):
            if name in changed:
                yield variable, self._in_place(changed[name][self.direction])
        if self.names[2] in changed and self.bias is not None:
            both = changed[self.names[2]][self.direction].reshape(2, -1)
            yield self.bias, self._in_place(both.sum(axis=0)[:, None])[0]

    def _in_place(self, array: Array) -> Array:
        """From (gates times units, inputs) in ONNX's order to (inputs, gates times units) in that of Keras."""
        gates = array.reshape(len(self.order), self.units, -1)
        return np.concatenate([gates[self.order.index(k)].T for k in range(len(self.order))], axis=1)


def cells(model: Model, graph: Graph) -> Iterator[Cell]:
    """The cells of a model that are LSTM nodes of a graph.  All others are loops there, and nothing of them is cut."""
    known = [each for each in layers_of(model) if all(hasattr(each, name) for name in ("kernel", "recurrent_kernel", "bias"))]
    for node in graph.nodes:
        if node.op_type != "LSTM" or len(node.input) < 4:
            continue
        kernels, recurrents = (graph.constant(name) for name in node.input[1:3])
        if kernels is None or recurrents is None:
            continue
        for layer in known:
            for direction in range(len(kernels)):
                order = _order(values_of(layer.kernel), kernels[direction])
                if order is not None and _order(values_of(layer.recurrent_kernel), recurrents[direction]) == order:
                    names = (node.input[1], node.input[2], node.input[3])
                    yield Cell(layer.kernel, layer.recurrent_kernel, layer.bias, names, direction, order)


def _order(own: Array, theirs: Array) -> list[int] | None:
    """For each gate of `theirs` (gates times units, inputs) its place in `own`; None where they are not the same weights."""
    if own.shape != theirs.shape[::-1] or own.shape[1] % 4:
        return None
    blocks, found = np.split(own, 4, axis=1), []
    for gate in np.split(theirs, 4):
        equal = [k for k, block in enumerate(blocks) if np.array_equal(block.T, gate)]
        if len(equal) != 1:
            return None
        found += equal
    return found if len(set(found)) == 4 else None
