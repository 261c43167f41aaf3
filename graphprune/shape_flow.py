"""Following sizes that are read at run time: Shape, then Gather, Slice, Concat ... into a shape operand.

A size that is only copied into the shape operand of another node follows a pruned axis by itself; one that is computed with may
not.  Start reading at `copied_dimensions`.
"""

from __future__ import annotations

from .graph import Graph
from .node_view import NodeView

Source = int | tuple[str, int] | None
"""An entry of a shape vector: a constant, the size of an axis of a value, or unknown."""

_COPIES = {"Cast", "Concat", "Gather", "Identity", "Slice", "Split", "Squeeze", "Unsqueeze"}
_SHAPE_OPERANDS = {("Resize", 3), ("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0)}


def copied_dimensions(graph: Graph, name: str) -> list[Source] | None:
    """What each entry of a shape vector is; None where that cannot be told."""
    constant = graph.constant(name)
    if constant is not None:
        return [int(value) for value in constant.ravel()]
    position = graph.producers.get(name)
    if position is None:
        return None
    node = NodeView(graph, position)
    if node.operator == "Shape":
        rank = len(graph.shape(node.inputs[0]) or ())
        entries: list[Source] = [(node.inputs[0], axis) for axis in range(rank)]
        return entries[node.attribute("start", 0) : node.attribute("end", rank)] if rank else None
    if node.operator == "Concat":
        parts = [copied_dimensions(graph, part) for part in node.inputs]
        return None if any(part is None for part in parts) else [entry for part in parts for entry in part or ()]
    source = copied_dimensions(graph, node.inputs[0]) if node.operator in _COPIES else None
    return None if source is None else _select(node, source)


def _select(node: NodeView, source: list[Source]) -> list[Source] | None:
    if node.operator in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return source
    picked = picked_entries(node, len(source))
    return None if picked is None else [source[k] for k in picked]


def picked_entries(reader: NodeView, count: int) -> list[int] | None:
    """Which of `count` entries a Gather or Slice of a shape vector takes; None where that cannot be told."""
    if reader.operator == "Gather" and (at := reader.integers(1)) is not None:
        return [k % count for k in at] if all(-count <= k < count for k in at) else None
    if reader.operator == "Slice":
        starts, ends, steps = reader.integers(1, "starts"), reader.integers(2, "ends"), reader.integers(4, "steps", [1])
        if starts and ends and steps == [1]:
            return list(range(count))[starts[0] : ends[0]]
    return None


def computed_dimensions(graph: Graph, position: int, rank: int) -> list[int]:
    """The dimensions of a Shape (or Size) node's input that something computes with, rather than copy them into a shape."""
    node = NodeView(graph, position)
    if node.operator != "Shape":
        return list(range(rank))
    window = list(range(rank))[node.attribute("start", 0) : node.attribute("end", rank)]
    outputs = {value.name for value in graph.outputs}
    return sorted(_computed(graph, node.outputs[0], window, outputs, set()))


def _computed(graph: Graph, name: str, entries: list[int], outputs: set[str], seen: set[str]) -> set[int]:
    """The entries of a shape vector that reach anything but a shape operand."""
    if name in outputs:
        return set(entries)
    if name in seen:
        return set()
    seen.add(name)
    found: set[int] = set()
    for use in graph.uses.get(name, []):
        reader = NodeView(graph, use.node)
        if (reader.operator, use.input) in _SHAPE_OPERANDS:
            continue
        if reader.operator not in _COPIES:
            found |= set(entries)
            continue
        picked = picked_entries(reader, len(entries)) if reader.operator in ("Gather", "Slice") else None
        passed = entries if picked is None else [entries[k] for k in picked]
        for output in reader.outputs:
            found |= _computed(graph, output, passed, outputs, seen)
    return found
