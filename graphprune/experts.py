"""Experts: the alternatives among which a TopK chooses, and whose weights are read by the numbers of those chosen.

A mixture of experts has its experts side by side along one axis of each weight.  A router gives each a logit, a TopK chooses
some, and Gathers take their weights.  What TopK gives are *numbers*: positions along the router's axis.  With `--experts prune`
that axis is free: an expert that left cannot be chosen, as if its logit were minus infinity, and those that stay are numbered
anew everywhere alike.  That is sound only where every reader of the numbers takes places along an axis with them, so the
numbers are followed here, in the graph alone (docs/decisions/0029-experts.md).  Start reading at `find_choices`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import TensorProto

from .elementwise import broadcast, elementwise
from .graph import Graph, Use, is_parameter, node_reads, operator_name
from .node_view import NodeView, normal_axis
from .operators import operator_table
from .taking import BLIND
from .taking import OPERATOR as TAKE

CHOOSES = "TopK"

SCORES = {"Softmax", "LogSoftmax"}
"""What a router may do to its logits over all experts: over those that are kept it does the same."""

MOVES = {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", TAKE}
"""Operators after which numbers that were input 0 are the same numbers in other places."""

ADDRESSES = {"Gather", "GatherElements", "GatherND"}
"""Operators whose input 1 holds numbers of places along one axis of input 0."""

WEIGHT_STEPS = {"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"}
"""What may stand between a weight and who reads it."""

HOLD_NUMBERS = (TensorProto.INT32, TensorProto.INT64)
"""Types that Gather reads: a Cast to one of them changes no number."""


@dataclass(frozen=True)
class Choice:
    """A TopK that chooses experts: how many, and every value that holds their numbers."""

    count: int
    numbers: tuple[str, ...]
    obstacle: str = ""
    """What keeps the experts from leaving; "" where nothing does."""


def find_choices(graph: Graph) -> dict[int, Choice]:
    """The choice that a node makes (a TopK) or prepares (a Softmax in front of one), by the node's position."""
    places = [position for position, node in enumerate(graph.nodes) if operator_name(node) == CHOOSES]
    if not places:
        return {}
    foreign = _read_elsewhere(graph)
    found: dict[int, Choice] = {}
    for position in places:
        choice = _choice(graph, position, foreign)
        if choice is not None:
            found[position] = choice
            for scores in _scores_in_front(graph, position):
                previous = found.get(scores)
                found[scores] = choice if previous is None or not previous.obstacle else previous
    return found


def _read_elsewhere(graph: Graph) -> dict[str, str]:
    """Values that are read otherwise than as an input of a node of the main graph, and by what."""
    captured = ((name, node) for node in graph.nodes for name in node_reads(node) - set(node.input))
    found = {name: f"{node.name!r} ({node.op_type})" for name, node in captured}
    return found | {value.name: "the network's output" for value in graph.outputs}


def _choice(graph: Graph, position: int, foreign: dict[str, str]) -> Choice | None:
    """The choice of one TopK, if the numbers that it gives address a weight."""
    view = NodeView(graph, position)
    count = view.integers(1, "k")
    if count is None or len(view.outputs) < 2 or not view.outputs[1]:
        return None
    names, todo, obstacle, addressed = [], [view.outputs[1]], "", False
    while todo:
        name = todo.pop()
        names.append(name)
        obstacle = obstacle or foreign.get(name, "")
        for use in graph.uses.get(name, ()):
            reader = NodeView(graph, use.node)
            if _moves(reader, use):
                todo += [result for result in reader.outputs if result]
            elif _addresses(reader, use):
                addressed = addressed or _is_weight(graph, reader.inputs[0])
            elif reader.operator not in BLIND:
                obstacle = obstacle or f"{reader.label!r} ({reader.operator})"
    if not addressed:
        return None
    return Choice(count[0], tuple(names), obstacle and f"{obstacle} needs the numbers of the experts that TopK chooses")


def _moves(reader: NodeView, use: Use) -> bool:
    if reader.operator == "Cast" and reader.attribute("to") not in HOLD_NUMBERS:
        return False
    return reader.operator in MOVES and use.input == 0


def _addresses(reader: NodeView, use: Use) -> bool:
    shape = reader.shape(1)
    whole = reader.operator != "GatherND" or (shape is not None and shape[-1] == 1)
    return reader.operator in ADDRESSES and use.input == 1 and whole


def _is_weight(graph: Graph, name: str) -> bool:
    while name in graph.producers and operator_name(graph.nodes[graph.producers[name]]) in WEIGHT_STEPS:
        name = graph.nodes[graph.producers[name]].input[0]
    return name in graph.initializers and is_parameter(graph.initializers[name])


def _scores_in_front(graph: Graph, position: int) -> Iterator[int]:
    """The Softmaxes along the axis of a TopK that it reads by way of operators that work index by index."""
    table = operator_table()
    back = _axis_from_the_right(NodeView(graph, position))
    seen: set[int] = set()
    todo = [graph.nodes[position].input[0]]
    while todo:
        at = graph.producers.get(todo.pop())
        if at is None or at in seen or back is None:
            continue
        seen.add(at)
        view = NodeView(graph, at)
        entry = table.get(view.operator)
        if view.operator in SCORES and _axis_from_the_right(view) == back:
            yield at
        elif view.operator == TAKE or (entry is not None and entry.infer in (elementwise, broadcast)):
            todo += [name for name in view.inputs if name]


def _axis_from_the_right(view: NodeView) -> int | None:
    """The axis of a node as a negative number, which broadcasting leaves as it is."""
    shape = view.shape(0)
    return None if shape is None else normal_axis(int(view.attribute("axis", -1)), len(shape)) - len(shape)
