"""Heads that were joined with an axis of unknown size get an axis of their own.

Start reading at `heads_apart` (joined with positions) and `heads_at_once` (joined with samples).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from .graph import Graph, attributes, free_name, operator_name, replace_nodes
from .node_view import normal_axis
from .normal_forms import reshape_to

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_ALONG = (*_NORMS, "Add", "Cast", "Div", "Identity", "LpNormalization", "Mul", "Sub")
"""What may stand between: operators that work along the last axis alone, with constants of that axis."""


def heads_apart(graph: Graph) -> bool:
    """Split (h d) into h and d without a detour over (S h), which no label follows where S is unknown; whether there was any.

        Reshape [B, S, (h d)] -> [B, (S h), d]; a normalisation along d; Reshape -> [B, S, (h d)]

    becomes Reshape -> [B, S, h, d], the same, Reshape -> [B, S, (h d)], as models with normalised queries and keys want it.
    """
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.nodes:
        for name in node.input:
            readers[name].append(node)
    found = False
    for first in graph.nodes:
        chain = _chain(graph, first, readers)
        if chain is not None:
            _rewrite(graph, first, *chain)
            found = True
    return found


def _chain(graph: Graph, first: NodeProto, readers: Mapping[str, list[NodeProto]]) -> tuple[list[NodeProto], NodeProto] | None:
    """What stands between a Reshape and the one that undoes it, and that one."""
    before, middle = graph.shape(first.input[0]) if first.input else None, graph.shape(first.output[0]) if first.output else None
    if operator_name(first) != "Reshape" or not before or not middle or graph.constant(first.input[1]) is None:
        return None
    width, size = before[-1], middle[-1]
    if not isinstance(width, int) or not isinstance(size, int) or not 1 < size < width or width % size:
        return None
    if all(isinstance(dim, int) for dim in before) or len(middle) > len(before):
        return None
    between: list[NodeProto] = []
    node = first
    while True:
        following = readers.get(node.output[0], [])
        if len(following) != 1 or node.output[0] in graph.read_elsewhere:
            return None
        node = following[0]
        if operator_name(node) == "Reshape":
            return (between, node) if between and _undoes(graph, node, first) else None
        if not _works_along_last(graph, node, between[-1] if between else first, len(middle)):
            return None
        between.append(node)


def _undoes(graph: Graph, last: NodeProto, first: NodeProto) -> bool:
    """Whether a Reshape gives the shape from before: all sizes but one are equal, so that one is, too."""
    before, after = graph.shape(first.input[0]), graph.shape(last.output[0])
    if before is None or after is None or len(before) != len(after) or graph.constant(last.input[1]) is None:
        return False
    return before[-1] == after[-1] and sum(a is None or a != b for a, b in zip(before, after, strict=True)) <= 1


def _works_along_last(graph: Graph, node: NodeProto, source: NodeProto, rank: int) -> bool:
    if operator_name(node) not in _ALONG or node.input[0] != source.output[0] or len(node.output) != 1:
        return False
    axis = attributes(node).get("axis", -1)
    if isinstance(axis, int) and normal_axis(axis, rank) != rank - 1:
        return False
    constants = [graph.initializers.get(name) for name in node.input[1:] if name]
    return all(each is not None and len(each.dims) < 2 for each in constants)


def _rewrite(graph: Graph, first: NodeProto, between: list[NodeProto], last: NodeProto) -> None:
    before, middle = graph.shape(first.input[0]) or (), graph.shape(first.output[0]) or ()
    width, size = before[-1], middle[-1]
    assert isinstance(width, int)
    assert isinstance(size, int)
    leading = [0] * (len(before) - 1)
    reshape_to(graph, first, [*leading, width // size, size])
    reshape_to(graph, last, [*leading, width])
    for node in between:
        for attribute in node.attribute:
            if attribute.name == "axis":
                attribute.i = -1


def heads_at_once(graph: Graph) -> bool:
    """Split (h d) into h and d at once where torch's nn.MultiheadAttention joins samples and heads first; whether there was any.

        Reshape [S, B, (h d)] -> [S, (B h), d]; Transpose -> [(B h), S, d]; Reshape -> [B, h, S, d]

    becomes Reshape -> [S, B, h, d]; Transpose -> [B, h, S, d].
    """
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        source, target = _split_samples(graph, node)
        if target:
            size = free_name(f"{node.output[0]}_apart_shape", graph.names)
            graph.model.graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), size))
            apart = free_name(f"{node.output[0]}_apart", graph.names)
            nodes.append(helper.make_node("Reshape", [source, size], [apart], name=apart))
            nodes.append(helper.make_node("Transpose", [apart], [node.output[0]], name=node.name, perm=[1, 2, 0, 3]))
        else:
            nodes.append(node)
    found = len(nodes) != len(graph.nodes)
    if found:
        replace_nodes(graph.model.graph, nodes)
    return found


def _split_samples(graph: Graph, last: NodeProto) -> tuple[str, list[int]]:
    """What three nodes split that end with this one, and into which sizes; none where it is no such node."""
    after = _target(graph, last)
    turned = _producer(graph, last.input[0], "Transpose") if len(after) == 4 and after[0] == -1 else None
    first = _producer(graph, turned.input[0], "Reshape") if turned and attributes(turned).get("perm") == [1, 0, 2] else None
    before = _target(graph, first) if first else []
    if first is None or before != [after[2], -1, after[3]] or min(after[1:]) < 1:
        return "", []
    return first.input[0], [after[2], -1, after[1], after[3]]


def _producer(graph: Graph, name: str, operator: str) -> NodeProto | None:
    """The node that gives a value, if it is of this operator."""
    node = graph.nodes[graph.producers[name]] if name in graph.producers else None
    return node if node is not None and operator_name(node) == operator else None


def _target(graph: Graph, node: NodeProto) -> list[int]:
    """The sizes that a Reshape gives, if they are constant."""
    sizes = graph.constant(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
    return [] if sizes is None else [int(size) for size in sizes]
