"""Parts of a value that are written anew, as torch's exporters write `y[:, :8] = ...`: parts that are joined.

    ScatterND(data, [[0], [1], [2]], updates)    becomes    Concat(updates, Slice(data, 3, end))
    ScatterND(data, [[0], [2]], updates)         becomes    Gather(Concat(data, updates), [4, 1, 5, 3])

Start reading at `scattered_parts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from .graph import Graph, Shape, attributes, free_name, operator_name, replace_nodes
from .node_view import NodeView

Places = NDArray[np.int64]


class Part(NamedTuple):
    """Where a node writes along an axis of this size."""

    axis: int
    places: Places
    size: int

    @property
    def is_stretch(self) -> bool:
        """Whether the places follow one after the other."""
        return bool((np.diff(self.places) == 1).all())


def scattered_parts(graph: Graph) -> bool:
    """Write what scatters to constant places of some axes as a Concat; returns whether there was one."""
    nodes: list[NodeProto] = []
    changed = False
    for node in graph.nodes:
        parts = _parts(graph, node)
        nodes += [node] if parts is None else _Writer(graph, node).written(parts)
        changed |= parts is not None
    if changed:
        replace_nodes(graph.model.graph, nodes)
    return changed


def _parts(graph: Graph, node: NodeProto) -> list[Part] | None:
    """Where a node writes, axis by axis, without the axes of which it writes all; None for other nodes."""
    operator = operator_name(node) if node.op_type.startswith("Scatter") else ""
    if operator not in ("ScatterND", "ScatterElements") or attributes(node).get("reduction", b"none") != b"none":
        return None
    shape = graph.shape(node.input[0])
    columns = None if shape is None else list((_grid if operator == "ScatterND" else _line)(graph, node, shape))
    if shape is None or not columns or any(column is None for column in columns):
        return None
    parts: list[Part] = []
    for axis, places in (column for column in columns if column is not None):
        size = shape[axis]
        if places is None or (isinstance(size, int) and np.array_equal(places, np.arange(size))):
            continue
        if (
            not isinstance(size, int)
            or not len(places)
            or len(np.unique(places)) < len(places)
            or not 0 <= places.min() <= places.max() < size
        ):
            return None
        parts.append(Part(axis, places, size))
    return parts or None


Column = tuple[int, Places | None]
"""An axis and the places there; None for all of them."""


def _line(graph: Graph, node: NodeProto, shape: Shape) -> Iterator[Column | None]:
    """Of ScatterElements with the same places in all lines."""
    axis, indices = int(attributes(node).get("axis", 0)) % len(shape), graph.constant(node.input[1])
    if indices is None or [dim for k, dim in enumerate(shape) if k != axis] != np.delete(indices.shape, axis).tolist():
        return
    yield _alike(indices, axis)


def _grid(graph: Graph, node: NodeProto, shape: Shape) -> Iterator[Column | None]:
    """Of ScatterND with an index for each axis of those that it names."""
    indices, size = graph.constant(node.input[1]), graph.shape(node.input[1])
    if not size or size[-1] != len(size) - 1:
        return
    for axis in range(len(size) - 1):
        column = _computed(graph, node, axis) if indices is None else _alike(indices[..., axis], axis)
        wanted = shape[axis] if column is None or column[1] is None else len(column[1])
        yield column if size[axis] is not None and size[axis] == wanted else None


def _alike(indices: Places, axis: int) -> Column | None:
    """The places that all lines of constant indices along an axis have."""
    lines = np.moveaxis(indices, axis, 0).reshape(indices.shape[axis], -1)
    return (axis, lines[:, 0]) if lines.size and (lines == lines[:, :1]).all() else None


def _computed(graph: Graph, node: NodeProto, axis: int) -> Column | None:
    """The places along an axis where indices are joined at run time, since they count samples: constants, or a Range of all."""
    concat = _producer(graph, node.input[1], "Concat")
    last = None if concat is None or len(concat.inputs) <= axis else _producer(graph, concat.inputs[axis], "Unsqueeze")
    if concat is None or last is None:
        return None
    depth = len(concat.inputs)
    if concat.attribute("axis") not in (-1, depth) or last.integers(1, "axes") not in ([-1], [depth]):
        return None
    spread = _producer(graph, last.inputs[0], "Expand")
    name = last.inputs[0] if spread is None else spread.inputs[0]
    array = graph.constant(name)
    if array is not None:
        return (axis, array.ravel()) if _lies_along(array.shape, axis, depth) else None
    turned = _producer(graph, name, "Reshape")
    count = _producer(graph, name if turned is None else turned.inputs[0], "Range")
    target = [-1] if turned is None else turned.integers(1)
    if count is None or target is None or not _lies_along(target, axis, depth):
        return None
    ends = [count.constant(k) for k in (0, 2)]
    whole, counted = graph.shape(node.input[0]), count.output_shape()
    if not whole or not counted or counted[0] != whole[axis] or [None if end is None else end.item() for end in ends] != [0, 1]:
        return None
    return axis, None


def _lies_along(shape: Iterable[int], axis: int, depth: int) -> bool:
    """Whether an array that is spread over `depth` axes has its elements along one of them."""
    sizes = list(shape)
    return all(size == 1 or k + depth - len(sizes) == axis for k, size in enumerate(sizes))


def _producer(graph: Graph, name: str, operator: str) -> NodeView | None:
    """The node that writes a value, if it is one of these."""
    position = graph.producers.get(name)
    return NodeView(graph, position) if position is not None and operator_name(graph.nodes[position]) == operator else None


class _Writer:
    """Makes the nodes that give what a node gives; the last of them has its name."""

    def __init__(self, graph: Graph, node: NodeProto) -> None:
        self.graph, self.node = graph, node
        self.nodes: list[NodeProto] = []

    def written(self, parts: list[Part]) -> list[NodeProto]:
        """All of them."""
        self._write(self.node.input[0], parts)
        last = self.nodes[-1]
        last.output[:], last.name = [self.node.output[0]], self.node.name
        return self.nodes

    def _write(self, data: str, parts: list[Part]) -> str:
        """What `data` becomes: along the first axis joined, with what the next axes make of the part in it."""
        part, rest = parts[0], parts[1:]
        first, last = int(part.places[0]), int(part.places[-1]) + 1
        if part.is_stretch:
            inner = self._write(self._slice(data, part.axis, first, last), rest) if rest else self.node.input[2]
            before = [self._slice(data, part.axis, 0, first)] if first else []
            after = [self._slice(data, part.axis, last, part.size)] if last < part.size else []
            return self._add("Concat", [*before, inner, *after], axis=part.axis)
        old = self._add("Gather", [data, self._constant(part.places)], axis=part.axis) if rest else ""
        inner = self._write(old, rest) if rest else self.node.input[2]
        order = np.arange(part.size)
        order[part.places] = part.size + np.arange(len(part.places))
        both = self._add("Concat", [data, inner], axis=part.axis)
        return self._add("Gather", [both, self._constant(order)], axis=part.axis)

    def _slice(self, data: str, axis: int, start: int, end: int) -> str:
        return self._add("Slice", [data, *(self._constant(np.array([value])) for value in (start, end, axis))])

    def _add(self, operator: str, inputs: list[str], **found: Any) -> str:
        name = free_name(f"{self.node.output[0]}_part", self.graph.names)
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **found))
        return name

    def _constant(self, values: Places) -> str:
        name = free_name(f"{self.node.output[0]}_places", self.graph.names)
        self.graph.model.graph.initializer.append(numpy_helper.from_array(values.astype(np.int64), name))
        return name
