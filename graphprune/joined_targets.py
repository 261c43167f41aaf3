"""Targets of Reshape and Expand that a Concat joins of sizes read at run time and of constants, where several axes are dynamic.

    Concat(N, [2], [58], H, W)    where N, H and W are sizes of some value

Each constant part belongs to one node alone, so that the rewrite can write other sizes into it.  Start reading at
`constant_parts` (the normal form) and `joined_sizes` (what the analysis asks for).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .graph import FLOATS, Dim, Graph, Shape, attributes, free_name, operator_name, replace_nodes, to_array
from .monomial import monomials
from .shape_flow import Source, copied_dimensions, named_sizes
from .widening import NOT_RUN

_TARGETED = ("Reshape", "Expand")

Part = tuple[int, int, list[Source]]
"""An input of the Concat: its index, the axis of the result that its first entry is the size of, and what its entries are."""


def constant_parts(graph: Graph) -> bool:
    """Let nodes have their targets for themselves, with constants for the parts whose sizes are known."""
    nodes: list[NodeProto] = []
    changed = False
    for node in graph.nodes:
        concat = _concat(graph, node)
        made = _joined(graph, node) if concat is None else []
        nodes += made
        changed |= bool(made)
        known = [] if concat is None else [part for part in _parts(graph, node, concat) if _sizes(graph, node, part)]
        if concat is not None and known:
            if not _is_own(graph, node):
                concat = _copy(graph, node, concat)
                nodes.append(concat)
                changed = True
            for part in known:
                changed |= _settle(graph, node, concat, part)
        nodes.append(node)
    if len(nodes) != len(graph.nodes):
        replace_nodes(graph.model.graph, nodes)
    return changed


def expanded_fills(graph: Graph) -> bool:
    """Write a first state, zeros of (batch, channels), as Expand of one number: then its channels may leave.

    So ConstantOfShape of sizes of which some are numbers.  Returns whether there was one.
    """
    changed = False
    for node in graph.nodes:
        if node.op_type != "ConstantOfShape" or node.domain or node.input[0] in graph.initializers:
            continue
        value = attributes(node).get("value", TensorProto(data_type=TensorProto.FLOAT, dims=[1], float_data=[0]))
        entries = copied_dimensions(graph, node.input[0]) or []
        if (
            value.data_type not in FLOATS
            or value.data_type in NOT_RUN
            or not any(isinstance(entry, int) and entry > 1 for entry in entries)
        ):
            continue
        name = free_name(f"{node.output[0]}_value", graph.names)
        graph.model.graph.initializer.append(numpy_helper.from_array(to_array(value).reshape(()), name))
        node.op_type = "Expand"
        node.input[:] = [name, node.input[0]]
        del node.attribute[:]
        changed = True
    return changed


def expanded_repeats(graph: Graph) -> bool:
    """Write a Tile that repeats nothing but axes of size 1, as often as another axis is long, as Expand.

    So queries that are repeated for each sample.  Returns whether there was one.
    """
    changed = False
    for node in graph.nodes:
        if node.op_type != "Tile" or node.domain or node.input[1] in graph.initializers:
            continue
        shape, entries = graph.shape(node.input[0]), copied_dimensions(graph, node.input[1]) or []
        if (
            shape
            and len(shape) == len(entries)
            and all(entry == 1 or (size == 1 and entry) for size, entry in zip(shape, entries, strict=True))
        ):
            node.op_type = "Expand"
            changed = True
    return changed


def _settle(graph: Graph, node: NodeProto, concat: NodeProto, part: Part) -> bool:
    """Let a part whose sizes are known be a constant of these; whether it was none."""
    index, sizes = part[0], np.array(_sizes(graph, node, part), np.int64)
    known = graph.constant(concat.input[index])
    if known is not None and np.array_equal(sizes, known):
        return False
    concat.input[index] = free_name(f"{node.output[0]}_sizes", graph.names)
    graph.model.graph.initializer.append(numpy_helper.from_array(sizes, concat.input[index]))
    return True


def _joined(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """Nodes that join the target of this node, where that is made otherwise of copied sizes and numbers; none where it is not."""
    target = node.input[1] if operator_name(node) in _TARGETED and node.input[1] in graph.producers else ""
    entries = (copied_dimensions(graph, target) if target else None) or []
    if None in entries or not {int, tuple} <= set(map(type, entries)):
        return []
    made, parts = list[NodeProto](), list[str]()

    def add(operator: str, inputs: list[str], what: str, **found: Any) -> str:
        name = free_name(f"{node.output[0]}_{what}", graph.names)
        made.append(helper.make_node(operator, inputs, [name], name=name, **found))
        return name

    def constant(value: int) -> str:
        name = free_name(f"{node.output[0]}_sizes", graph.names)
        graph.model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
        return name

    for entry in entries:
        if isinstance(entry, tuple):
            parts.append(add("Gather", [add("Shape", [entry[0]], "shape"), constant(entry[1])], "size"))
        elif isinstance(entry, int):
            parts.append(constant(entry))
    node.input[1] = add("Concat", parts, "target", axis=0)
    return made


def joined_sizes(graph: Graph, position: int) -> tuple[Shape, Shape] | None:
    """The sizes of operand and result of a Reshape, the unknown ones by name (`graphprune.shape_flow.named_sizes`).

    None where one of the numbers in the result is in no constant part of the target.
    """
    node = graph.nodes[position]
    concat = _concat(graph, node)
    source, result = named_sizes(graph, node.input[0]), named_sizes(graph, node.output[0])
    if concat is None or source is None or result is None or not _is_own(graph, node):
        return None
    known = {
        axis
        for index, start, entries in _parts(graph, node, concat)
        for axis in range(start, start + len(entries))
        if concat.input[index] in graph.initializers
    }
    found = monomials(source, result)[1]
    return None if any(size.is_number and axis not in known for axis, size in enumerate(found)) else (source, result)


def joined_constants(graph: Graph, position: int) -> Iterator[tuple[int, int, int, list[int]]]:
    """The constant parts: position of the Concat, index among its inputs, first axis of the result, entries."""
    node = graph.nodes[position]
    concat = _concat(graph, node)
    if concat is None or not _is_own(graph, node):
        return
    for index, start, _ in _parts(graph, node, concat):
        values = graph.constant(concat.input[index])
        if values is not None:
            yield graph.producers[node.input[1]], index, start, [int(value) for value in values]


def _concat(graph: Graph, node: NodeProto) -> NodeProto | None:
    """The Concat that joins the target of a node."""
    if operator_name(node) not in _TARGETED or graph.producers.get(node.input[1]) is None:
        return None
    found = graph.nodes[graph.producers[node.input[1]]]
    return found if operator_name(found) == "Concat" else None


def _is_own(graph: Graph, node: NodeProto) -> bool:
    return len(graph.uses[node.input[1]]) == 1 and node.input[1] not in graph.read_elsewhere


def _copy(graph: Graph, node: NodeProto, concat: NodeProto) -> NodeProto:
    """A Concat of the same parts for this node."""
    copy: NodeProto = NodeProto.FromString(concat.SerializeToString())
    copy.name = copy.output[0] = node.input[1] = free_name(f"{node.output[0]}_target", graph.names)
    return copy


def _parts(graph: Graph, node: NodeProto, concat: NodeProto) -> list[Part]:
    """The parts of a target; none where it is not known which size is where, or where callers may replace one."""
    parts: list[Part] = []
    start, rank = 0, len(graph.shape(node.output[0]) or ())
    for index, name in enumerate(concat.input):
        shape = graph.shape(name)
        if shape is None or len(shape) != 1 or not isinstance(shape[0], int) or name in graph.overridable:
            return []
        parts.append((index, start, copied_dimensions(graph, name) or [None] * shape[0]))
        start += shape[0]
    if operator_name(node) == "Expand":  # its target stands for the last axes
        return [(index, first + rank - start, entries) for index, first, entries in parts] if start <= rank else []
    return parts if start == rank else []


def _sizes(graph: Graph, node: NodeProto, part: Part) -> list[int] | None:
    """The numbers of a part, by what its entries copy or by the shape of the result; None where one is not known.

    What Expand leaves as it is has the number 1, whatever its size.
    """
    _, start, entries = part
    result, source = graph.shape(node.output[0]) or (), graph.shape(node.input[0]) or ()
    own = (None,) * (len(result) - len(source)) + source if operator_name(node) == "Expand" else ()
    sizes: list[int] = []
    for axis, entry in enumerate(entries, start):
        size = _size(graph, entry)
        size = size if isinstance(size, int) else result[axis]
        if not isinstance(size, int):
            return None
        sizes.append(1 if own and own[axis] == size else size)
    return sizes


def _size(graph: Graph, entry: Source) -> Dim:
    """The size that an entry is, or its name."""
    if isinstance(entry, int) or entry is None:
        return entry
    shape = graph.shape(entry[0])
    return shape[entry[1]] if shape is not None else None
