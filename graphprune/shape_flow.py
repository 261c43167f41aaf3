"""Following sizes that are read at run time: Shape, then Gather, Slice, Concat ... into a shape operand.

A size that is only copied into the shape operand of another node follows a pruned axis by itself; one that is computed with may
not.  Start reading at `copied_dimensions`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from .graph import Dim, Graph, Shape, Use, operator_name
from .monomial import Monomial, monomial
from .node_view import NodeView

if TYPE_CHECKING:
    from .site import LooseAxis, Site

Source = int | tuple[str, int] | None
"""An entry of a shape vector: a constant, the size of an axis of a value, or unknown."""

Entries = tuple[int | None, ...]
"""Which axis of one value each entry of a vector is the size of; None for others."""

LONGEST = 64
"""Longer vectors are no shapes, and are not followed."""

MADE_UP = "unk__"
"""How the names begin that ONNX's shape inference gives to sizes which it cannot compute."""

NESTED = 100
"""So many sizes are followed to name one."""

DEEPEST = 4
"""So many Concats and Wheres in a row are looked through: each of them multiplies the work."""

_IN_PLACE = {"Cast", "Identity", "InstanceNormalization", "Relu", "Sigmoid", "Tanh"}

_COPIES = {"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
_SHAPE_OPERANDS = {("Resize", 3), ("Expand", 1), ("ConstantOfShape", 0)}
"""Operands whose rules go by `copied_axes`."""


def copied_dimensions(graph: Graph, name: str, depth: int = DEEPEST) -> list[Source] | None:
    """What each entry of a shape vector is; None where that cannot be told, or takes too many Concats and Wheres in a row."""
    copies: list[NodeView] = []
    while (constant := graph.constant(name)) is None:
        if name not in graph.producers:
            return None
        node = NodeView(graph, graph.producers[name])
        if node.operator not in _COPIES:
            break
        copies.append(node)
        name = node.inputs[0]
    entries: list[Source] | None = _made_by(node, depth) if constant is None else [int(value) for value in constant.ravel()]
    for copy in reversed(copies):
        entries = None if entries is None else _select(copy, entries)
    return entries


def _made_by(node: NodeView, depth: int) -> list[Source] | None:
    if node.operator == "Shape":
        return _read(node)
    if node.operator not in ("Concat", "Where") or not depth:
        return None
    return (_joined if node.operator == "Concat" else _chosen)(node, depth - 1)


def _read(shape: NodeView) -> list[Source] | None:
    rank = len(shape.shape(0) or ())
    entries: list[Source] = [(shape.inputs[0], axis) for axis in range(rank)]
    return entries[shape.attribute("start", 0) : shape.attribute("end", rank)] if rank else None


def _joined(concat: NodeView, depth: int) -> list[Source] | None:
    entries: list[Source] = []
    for index, part in enumerate(concat.inputs):
        size = (concat.shape(index) or (LONGEST,))[0]
        if not isinstance(size, int) or size >= LONGEST:
            return None
        entries += copied_dimensions(concat.graph, part, depth) or [None] * size
    return entries


def _chosen(where: NodeView, depth: int) -> list[Source] | None:
    """Where(shape == -1, 1, shape), entry by entry: torch's exporter writes `expand` like that.  A size is never negative."""
    graph = where.graph
    position = graph.producers.get(where.inputs[0])
    if position is None or operator_name(graph.nodes[position]) != "Equal":
        return None
    vectors = [copied_dimensions(graph, name, depth) for name in (*graph.nodes[position].input, *where.inputs[1:])]
    known = [vector for vector in vectors if vector is not None]
    count = max(map(len, known), default=0)
    if len(known) < len(vectors) or any(len(vector) not in (1, count) for vector in known):
        return None
    one, other, yes, no = (vector if len(vector) == count else vector * count for vector in known)
    chosen = []
    for a, b, if_equal, if_not in zip(one, other, yes, no, strict=True):
        equal = _are_equal(a, b)
        chosen.append(None if equal is None else if_equal if equal else if_not)
    return chosen


def _are_equal(one: Source, other: Source) -> bool | None:
    """Whether two entries are equal; None where that cannot be told."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    number, size = (one, other) if isinstance(one, int) else (other, one)
    return False if isinstance(number, int) and number < 0 and isinstance(size, tuple) else None


def named_sizes(graph: Graph, name: str) -> Shape | None:
    """The sizes of a value, each unknown one by the name of the place where it comes from: equal names are equal sizes."""
    shape, known = graph.shape(name), dict[tuple[str, int], Dim]()
    return None if shape is None else tuple(_named(graph, name, axis, known) for axis in range(len(shape)))


Names = dict[tuple[str, int], Dim]
"""Names of sizes that were found: sizes that are computed from one another would be followed time and again."""


def _named(graph: Graph, name: str, axis: int, known: Names) -> Dim:
    """`_followed`, once for each size; more than `NESTED` in one another are not known."""
    if (name, axis) not in known:
        known[name, axis] = f"{name}\n{axis}" if len(known) >= NESTED else None  # meanwhile
        known[name, axis] = _followed(graph, name, axis, known) if len(known) < NESTED else known[name, axis]
    return known[name, axis]


def _followed(graph: Graph, name: str, axis: int, known: Names) -> Dim:
    """A size, or its name, by following Reshapes that copy it and operators that leave it."""
    while (size := (graph.shape(name) or ())[axis]) is None or str(size).startswith(MADE_UP):
        node = NodeView(graph, graph.producers[name]) if name in graph.producers else None
        entry: Source = None
        if node is not None and node.operator == "Reshape":
            entries = copied_dimensions(graph, node.inputs[1]) or []
            entry = entries[axis] if axis < len(entries) else None
            entry = (node.inputs[0], axis) if entry == 0 and not node.attribute("allowzero", 0) else entry
        elif node is not None and node.operator == "Transpose" and (order := node.attribute("perm")) is not None:
            entry = node.inputs[0], order[axis]
        elif node is not None and node.operator in _IN_PLACE:
            entry = node.inputs[0], axis
        if isinstance(entry, int) and entry > 0:
            return entry
        if not isinstance(entry, tuple) or entry[1] >= len(graph.shape(entry[0]) or ()):
            formula = (
                _entry_formula(graph, node.inputs[1], axis, known) if node is not None and node.operator == "Reshape" else ""
            )
            return formula or size or f"{name}\n{axis}"  # no other size has such a name
        name, axis = entry
    return size


def _entry_formula(graph: Graph, name: str, index: int, known: Names) -> str:
    """How one entry of a vector that a Concat joins is computed from sizes; empty where that cannot be told."""
    part = _entry_part(graph, name, index)
    return _short(_formula(graph, part, DEEPEST, known)) if part else ""


def _entry_part(graph: Graph, name: str, index: int) -> str:
    """The value that a Concat takes one entry of a vector from; empty where that has others, too, or cannot be told."""
    if name not in graph.producers or (concat := NodeView(graph, graph.producers[name])).operator != "Concat":
        return ""
    for place, part in enumerate(concat.inputs):
        count = (concat.shape(place) or (None,))[0]
        if not isinstance(count, int):
            return ""
        if index < count:
            return part if count == 1 else ""
        index -= count
    return ""


def computed_size(graph: Graph, name: str, index: int) -> Dim:
    """One entry of a vector that a Concat joins, by name (`8*N`) where it is a product of sizes; None where it is none."""
    part = _entry_part(graph, name, index)
    found = _product(graph, part, DEEPEST) if part else None
    return None if found is None else found.name


def _product(graph: Graph, name: str, depth: int) -> Monomial | None:
    """A number that sizes and positive constants are multiplied to, or divided to without a rest."""
    entries = copied_dimensions(graph, name)
    if entries is not None and len(entries) == 1 and entries[0] is not None:
        entry = entries[0]
        size = (graph.shape(entry[0]) or {entry[1]: None})[entry[1]] if isinstance(entry, tuple) else entry
        return None if size is None or size in (0, -1) else monomial(size, "")
    if name not in graph.producers or not depth:
        return None
    node = NodeView(graph, graph.producers[name])
    if node.operator in _COPIES - {"Gather", "Slice"}:
        return _product(graph, node.inputs[0], depth - 1)
    if node.operator not in ("Div", "Mul"):
        return None
    one, other = (_product(graph, each, depth - 1) for each in node.inputs)
    if one is None or other is None:
        return None
    return one.times(other) if node.operator == "Mul" else one.divide(other)


def _short(text: str) -> str:
    """A text, or its digest where it is long."""
    return text if len(text) < LONGEST else f"#{sha256(text.encode()).hexdigest()}"


def _formula(graph: Graph, name: str, depth: int, known: Names) -> str:
    """A number computed from sizes and positive constants, so that it is never negative: equal texts are equal numbers."""
    entries = copied_dimensions(graph, name)
    if entries is not None and len(entries) == 1 and entries[0] is not None:
        entry = entries[0]
        return str(_named(graph, *entry, known)) if isinstance(entry, tuple) else str(entry) if entry > 0 else ""
    if name not in graph.producers or not depth:
        return ""
    node = NodeView(graph, graph.producers[name])
    if node.operator in _COPIES - {"Gather", "Slice"}:
        return _formula(graph, node.inputs[0], depth - 1, known)
    operands = [_formula(graph, each, depth - 1, known) for each in node.inputs] if node.operator in ("Add", "Div", "Mul") else []
    return f"{node.operator}({', '.join(operands)})" if operands and all(operands) else ""


def _select(node: NodeView, source: list[Source]) -> list[Source] | None:
    if node.operator not in ("Gather", "Slice"):
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


def copied_axes(site: Site, index: int) -> list[LooseAxis | None] | None:
    """For each entry of the shape vector that is input `index` the axis whose size it copies; None where it copies none.

    None where the entries cannot be told: `computed_dimensions` then has all sizes in it.
    """
    sources = copied_dimensions(site.graph, site.inputs[index])
    if sources is None:
        return None
    known = [site.ledger.loose.get(source[0]) if isinstance(source, tuple) else None for source in sources]
    return [
        axes[source[1]] if axes is not None and isinstance(source, tuple) else None
        for axes, source in zip(known, sources, strict=True)
    ]


def turned_back(graph: Graph, position: int) -> tuple[str, str] | None:
    """Of a Reshape that undoes another one, the value that has the shape again, and what that one made of it.

    Between the two are only operators that leave every number in its place: so group normalisation is written before opset 18.
    """
    node = graph.nodes[position]
    entries = copied_dimensions(graph, node.input[1]) or []
    source = entries[0][0] if entries and isinstance(entries[0], tuple) else None
    if source is None or entries != [(source, axis) for axis in range(len(graph.shape(source) or ()))]:
        return None
    name = node.input[0]
    while (producer := graph.producers.get(name)) is not None:
        before = graph.nodes[producer]
        if operator_name(before) == "Reshape" and before.input[0] == source:
            return source, name
        if operator_name(before) not in _IN_PLACE:
            return None
        name = before.input[0]
    return None


def computed_dimensions(graph: Graph, position: int, rank: int) -> list[int]:
    """The dimensions of a Shape (or Size) node's input that something computes with, rather than copy them into a shape."""
    node = NodeView(graph, position)
    if node.operator != "Shape":
        return list(range(rank))
    window = tuple(range(rank))[node.attribute("start", 0) : node.attribute("end", rank)]
    todo: list[tuple[str, Entries]] = [(node.outputs[0], window)]
    seen = set(todo)
    found: set[int] = set()
    while todo:
        name, entries = todo.pop()
        readers = [_passed(graph, use, entries) for use in graph.uses.get(name, [])]
        if name in graph.read_elsewhere or None in readers:
            found |= {entry for entry in entries if entry is not None}
        following = {reader for reader in readers if reader is not None and any(entry is not None for entry in reader[1])} - seen
        seen |= following
        todo += following
    return sorted(found)


def _passed(graph: Graph, use: Use, entries: Entries) -> tuple[str, Entries] | None:
    """The vector that a reader copies these entries into, nothing of them where it is a shape; None where it computes."""
    reader = NodeView(graph, use.node)
    if _is_shape_of(graph, reader, use.input):
        return reader.outputs[0], ()
    if reader.operator == "Concat":
        shapes = [graph.shape(name) for name in reader.inputs]
        sizes = [shape[0] for shape in shapes if shape and isinstance(shape[0], int)]
        if len(sizes) < len(shapes) or sum(sizes) > LONGEST:
            return None
        parts = [entries if k == use.input else (None,) * size for k, size in enumerate(sizes)]
        return reader.outputs[0], tuple(entry for part in parts for entry in part)
    if use.input or reader.operator not in _COPIES:
        return None
    if reader.operator not in ("Gather", "Slice"):
        return reader.outputs[0], entries
    picked = picked_entries(reader, len(entries))
    return None if picked is None else (reader.outputs[0], tuple(entries[k] for k in picked))


def _is_shape_of(graph: Graph, reader: NodeView, index: int) -> bool:
    """Whether an operand is a shape that its reader takes, entry by entry, from other values."""
    if (reader.operator, index) == ("Reshape", 1):
        return turned_back(graph, reader.position) is not None
    return (reader.operator, index) in _SHAPE_OPERANDS and copied_dimensions(graph, reader.inputs[index]) is not None
