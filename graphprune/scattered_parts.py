"""A stretch of a value that is written anew, as torch's exporters write `y[:, :8] = ...`: parts that are joined.

    ScatterND(data, [[0], [1], [2]], updates)    becomes    Concat(updates, Slice(data, 3, end))

Start reading at `scattered_parts`.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from .graph import Graph, attributes, free_name, operator_name, replace_nodes

Stretch = tuple[int, int, int, int]
"""Along which axis, where it begins and ends, and the size of the axis."""


def scattered_parts(graph: Graph) -> bool:
    """Write what scatters to a constant stretch of an axis as a Concat; returns whether there was one."""
    nodes: list[NodeProto] = []
    changed = False
    for node in graph.nodes:
        stretch = _stretch(graph, node)
        nodes += [node] if stretch is None else _joined(graph, node, stretch)
        changed |= stretch is not None
    if changed:
        replace_nodes(graph.model.graph, nodes)
    return changed


def _stretch(graph: Graph, node: NodeProto) -> Stretch | None:
    """Where a node writes, if it writes all that is there along the other axes; None for other nodes."""
    operator = operator_name(node) if node.op_type.startswith("Scatter") else ""
    if operator not in ("ScatterND", "ScatterElements") or attributes(node).get("reduction", b"none") != b"none":
        return None
    shape, indices = graph.shape(node.input[0]), graph.constant(node.input[1])
    if not shape or indices is None or not indices.size:
        return None
    axis = 0 if operator == "ScatterND" else int(attributes(node).get("axis", 0)) % len(shape)
    size = shape[axis]
    if operator == "ScatterND" and indices.shape != (len(indices), 1):
        return None
    if (
        operator == "ScatterElements"
        and [dim for k, dim in enumerate(shape) if k != axis] != np.delete(indices.shape, axis).tolist()
    ):
        return None
    rows = np.moveaxis(indices, axis, 0).reshape(indices.shape[axis], -1)
    first = int(rows[0, 0])
    if not isinstance(size, int) or not 0 <= first <= size - len(rows):
        return None
    return (axis, first, first + len(rows), size) if (rows == np.arange(first, first + len(rows))[:, None]).all() else None


def _joined(graph: Graph, node: NodeProto, stretch: Stretch) -> list[NodeProto]:
    """The nodes that give what the node gives; the last of them has its name."""
    axis, first, last, size = stretch
    nodes, parts = list[NodeProto](), list[str]()
    for what, start, end in (("before", 0, first), ("", first, last), ("after", last, size)):
        if not what:
            parts.append(node.input[2])
        elif start < end:
            name = free_name(f"{node.output[0]}_{what}", graph.names)
            bounds = [free_name(f"{name}_{bound}", graph.names) for bound in ("start", "end", "axis")]
            for bound, value in zip(bounds, (start, end, axis), strict=True):
                graph.model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), bound))
            nodes.append(helper.make_node("Slice", [node.input[0], *bounds], [name], name=name))
            parts.append(name)
    return [*nodes, helper.make_node("Concat", parts, [node.output[0]], name=node.name, axis=axis)]
