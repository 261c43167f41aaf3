"""Heads that were joined with samples get an axis of their own: attention as products of one matrix per sample and head.

    Reshape [B, h, T, d] -> [(h*B), T, d]; MatMul; Softmax; MatMul; Reshape -> [B, h, T, d]
    Reshape [T, B, (h d)] -> [T, (h*B), d]; Transpose; Reshape -> [B, h, T, d]

becomes the same on [B, h, T, d], since no label follows an axis whose size is not known.  To split one axis in place moves no
number, so all that is needed is that every node in between can do without the joined axis.  Start reading at `samples_apart`.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters
from typing import Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from .elementwise import broadcast, elementwise
from .graph import Array, Dim, Graph, Shape, attributes, free_name, operator_name
from .monomial import Monomial, monomial
from .node_view import normal_axis
from .normal_forms import inferred_target, reshape_to
from .operators import operator_table


def samples_apart(graph: Graph) -> bool:
    """Split (h*B) into B and h (or h and B) around products of matrices and Transposes; whether there was such an axis."""
    seen: set[str] = set()
    found = False
    for node in graph.nodes:
        for size in _moved_sizes(graph, node) if node.output[0] not in seen else ():
            stretch = _Stretch(graph, size, node.output[0])
            seen |= stretch.values
            if stretch.is_rewritten():
                found = True
                break
    return found


def _moved_sizes(graph: Graph, node: NodeProto) -> set[str]:
    """The joined sizes of what a node multiplies as matrices, or transposes."""
    operands = {"MatMul": 2, "Einsum": 2, "Transpose": 1}.get(operator_name(node), 0)
    found = [_joined_sizes(graph, name) for name in node.input[:operands]]
    return set.intersection(*found) if len(found) == operands > 0 else set()


def _joined_sizes(graph: Graph, name: str) -> set[str]:
    """The sizes of a value that are a number times something that is not known."""
    return {dim for dim in graph.shape(name) or () if isinstance(dim, str) and monomial(dim, "").number > 1}


class _Cannot(Exception):  # noqa: N818  (no error: the network stays as it is)
    """A node in between needs the joined axis."""


class _Stretch:
    """All values that have the joined axis and hang together, and what becomes of the nodes that touch them."""

    def __init__(self, graph: Graph, size: str, start: str) -> None:
        self.graph, self.size = graph, size
        self.values, self.nodes = self._grown(start)
        self.parts: tuple[Dim, Dim] = (None, None)
        self.constants: dict[str, Array] = {}

    def is_rewritten(self) -> bool:
        """Rewrite all nodes, or none."""
        nodes = [self.graph.nodes[position] for position in sorted(self.nodes)]
        try:
            self.parts = self._split(nodes)
            changed = [self._rewritten(node) for node in nodes]
        except _Cannot:
            return False
        names = {name: free_name(f"{name}_apart", self.graph.names) for name in self.values}
        for node, new in zip(nodes, changed, strict=True):
            target = self._target(node) if operator_name(node) == "Reshape" else None
            node.CopyFrom(new)
            if target is not None:
                reshape_to(self.graph, node, target)
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for name, array in self.constants.items():
            self.graph.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return True

    def _grown(self, start: str) -> tuple[set[str], set[int]]:
        """The values and the positions of the nodes that read or write them."""
        values, nodes, pending = {start}, set[int](), [start]
        while pending:
            name = pending.pop()
            found = {use.node for use in self.graph.uses.get(name, ())}
            found |= {self.graph.producers[name]} if name in self.graph.producers else set()
            for position in found - nodes:
                node = self.graph.nodes[position]
                pending += [each for each in (*node.input, *node.output) if each not in values and self._place(each) is not None]
                values.update(pending)
            nodes |= found
        return values, nodes

    def _place(self, name: str) -> int | None:
        """Where a value has the joined axis."""
        shape = self.graph.shape(name) or ()
        return shape.index(self.size) if self.size in shape else None

    def _split(self, nodes: list[NodeProto]) -> tuple[Dim, Dim]:
        """What the axis is joined of, in the order of the first Reshape that joins it.  Raises _Cannot."""
        shapes = [self.graph.shape(name) or () for name in self.values]
        made = {name for node in nodes for name in node.output}
        if any(shape.count(self.size) != 1 for shape in shapes) or self.values & self.graph.read_elsewhere or self.values - made:
            raise _Cannot
        joining = [node for node in nodes if operator_name(node) == "Reshape" and node.input[0] not in self.values]
        found = {self._order(node) for node in joining}
        if len(found) != 1:
            raise _Cannot
        return found.pop()

    def _order(self, node: NodeProto) -> tuple[Dim, Dim]:
        """Whether samples or heads come first where a Reshape joins them."""
        before, after = self._reshaped(node)
        whole = monomial(self.size, "")
        samples, heads = Monomial(1, whole.symbols), Monomial(whole.number)
        left = _product(after[: after.index(self.size)])
        for k, dim in enumerate(before):
            if _product(before[:k]) == left and dim != 1:
                first = monomial(dim, "?")
                return (samples.name, heads.name) if first == samples else (heads.name, samples.name)
        raise _Cannot

    def _reshaped(self, node: NodeProto) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
        """The shapes of a Reshape's input and result as they are.  Raises _Cannot."""
        before, after = self.graph.shape(node.input[0]), self.graph.shape(node.output[0])
        if before is None or after is None:
            raise _Cannot
        return tuple(before), tuple(after)

    def _target(self, node: NodeProto) -> list[int]:
        """The target of a Reshape between the shapes that its input and result get."""
        target = inferred_target(*(self._split_shape(shape) for shape in self._reshaped(node)))
        if target is None:
            raise _Cannot
        return target

    def _split_shape(self, shape: tuple[Dim, ...]) -> Shape:
        return tuple(part for dim in shape for part in (self.parts if dim == self.size else (dim,)))

    def _rewritten(self, node: NodeProto) -> NodeProto:
        """The node as it works with one axis more.  Raises _Cannot."""
        operator = operator_name(node)
        new: NodeProto = NodeProto.FromString(node.SerializeToString())
        if operator == "Reshape":
            self._target(node)
        elif operator in _WRITERS:
            _WRITERS[operator](self, new)
        elif (entry := operator_table().get(operator)) is not None and entry.infer in (broadcast, elementwise):
            self._broadcast(new)
        else:
            raise _Cannot
        return new

    def _from_right(self, name: str) -> int:
        place = self._place(name)
        if place is None:
            raise _Cannot
        return len(self.graph.shape(name) or ()) - 1 - place

    def _broadcast(self, node: NodeProto) -> None:
        """Operands keep their places from the right; a constant that reaches over the joined axis gets one of size 1."""
        right = self._from_right(node.output[0])
        for index, name in enumerate(node.input):
            shape = self.graph.shape(name) if name else ()
            if shape is None or (name in self.values and self._from_right(name) != right):
                raise _Cannot
            if name in self.values or len(shape) <= right:
                continue
            array = self.graph.constant(name)
            if array is None or shape[-1 - right] != 1:
                raise _Cannot
            node.input[index] = free_name(f"{name}_apart", self.graph.names)
            self.constants[node.input[index]] = np.expand_dims(array, len(shape) - 1 - right)

    def _matmul(self, node: NodeProto) -> None:
        if min(self._from_right(name) for name in (*node.input, *node.output) if name in self.values) < 2:
            raise _Cannot
        self._broadcast(node)

    def _einsum(self, node: NodeProto) -> None:
        equation: str = attributes(node)["equation"].decode().replace(" ", "")
        if "->" not in equation or "." in equation:
            raise _Cannot
        terms = equation.replace("->", ",").split(",")
        named = [(name, term) for name, term in zip((*node.input, *node.output), terms, strict=True)]
        letters = {term[self._place(name) or 0] for name, term in named if name in self.values}
        letter = letters.pop()
        if letters or any(letter in term for name, term in named if name not in self.values):
            raise _Cannot
        spare = next(other for other in ascii_letters if other not in equation)
        _set(node, "equation", equation.replace(letter, letter + spare))

    def _transpose(self, node: NodeProto) -> None:
        place, order = self._place(node.input[0]), attributes(node).get("perm")
        if place is None or order is None:
            raise _Cannot
        _set(node, "perm", [new for axis in order for new in ([axis, axis + 1] if axis == place else [axis + (axis > place)])])

    def _along_attribute(self, node: NodeProto) -> None:
        default = -1 if node.op_type.endswith("oftmax") else 0
        _set(node, "axis", self._moved(node, int(attributes(node).get("axis", default))))

    def _slice(self, node: NodeProto) -> None:
        axes = self.graph.constant(node.input[3]) if len(node.input) > 3 else None
        if axes is None or any(name in self.values for name in node.input[1:]):
            raise _Cannot
        node.input[3] = free_name(f"{node.output[0]}_axes", self.graph.names)
        self.constants[node.input[3]] = np.array([self._moved(node, int(axis)) for axis in axes], np.int64)

    def _moved(self, node: NodeProto, axis: int) -> int:
        """Where an axis of a node's operands is then.  Raises _Cannot for the joined one, or where operands differ."""
        names = [name for name in (*node.input, *node.output) if name in self.values]
        axis = normal_axis(axis, len(self.graph.shape(names[0]) or ()))
        places = {self._place(name) for name in names}
        place = places.pop()
        if places or place is None or axis == place or (node.op_type == "Concat" and not {*node.input} <= self.values):
            raise _Cannot
        return axis + (axis > place)


def _product(sizes: tuple[Dim, ...]) -> Monomial:
    result = Monomial(1)
    for k, dim in enumerate(sizes):
        result = result.times(monomial(dim, f"unknown {k}"))
    return result


def _set(node: NodeProto, name: str, value: Any) -> None:
    """Write an attribute of a node."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


_WRITERS: dict[str, Callable[[_Stretch, NodeProto], None]] = {
    "Concat": _Stretch._along_attribute,
    "Einsum": _Stretch._einsum,
    "LogSoftmax": _Stretch._along_attribute,
    "MatMul": _Stretch._matmul,
    "Slice": _Stretch._slice,
    "Softmax": _Stretch._along_attribute,
    "Split": _Stretch._along_attribute,
    "Transpose": _Stretch._transpose,
}
"""How nodes are rewritten; operators that work element by element need it only for operands that reach over the joined axis."""
