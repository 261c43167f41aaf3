"""A weight that is split as parts of it: torch's `nn.MultiheadAttention` has one for queries, keys and values.

Constants are computed one result at a time (`graphprune.folding`), and Split has several.  Start reading at `split_weights`.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from .graph import Graph, attributes, free_name, replace_nodes


def split_weights(graph: Graph) -> bool:
    """Write a Split of a weight that nothing else reads as Slices, one for each result; returns whether there was one."""
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        nodes += _slices(graph, node) or [node]
    changed = len(nodes) != len(graph.nodes)
    if changed:
        replace_nodes(graph.model.graph, nodes)
    return changed


def _slices(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """The Slices that give what a Split gives; none where it is no Split of such a weight into more than one part."""
    name = node.input[0] if node.op_type == "Split" and not node.domain else ""
    if name not in graph.initializers or name in graph.overridable or name in graph.read_elsewhere or len(graph.uses[name]) > 1:
        return []
    axis = int(attributes(node).get("axis", 0))
    sizes = [(graph.shape(result) or {axis: None})[axis] for result in node.output]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes) or len(sizes) < 2:
        return []
    ends = list(accumulate(known))
    slices = []
    for result, size, end in zip(node.output, known, ends, strict=True):
        bounds = [_vector(graph, f"{result}_{what}", at) for what, at in (("start", end - size), ("end", end), ("axis", axis))]
        slices.append(helper.make_node("Slice", [name, *bounds], [result], name=f"{node.name}_{result}"))
    return slices


def _vector(graph: Graph, name: str, value: int) -> str:
    """A new constant of one integer."""
    name = free_name(name, graph.names)
    graph.model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    return name
