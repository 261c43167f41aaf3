"""The normal forms that the analysis relies on, one function each.  Each returns whether it changed the graph.

Start reading at `gather_shuffles`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .graph import FLOATS, Array, Dim, Graph, Shape, Use, attributes, element_count, free_name, operator_name, value_names
from .shape_flow import copied_dimensions, named_sizes

_ARITHMETIC = ("Add", "Div", "Mod", "Mul", "Range", "Sub")


def unshare_initializers(graph: GraphProto) -> bool:
    """Give every reader its own copy of a vector that exporters merged because the values were equal.

    Matrices stay shared: those are tied on purpose (and vectors read by nodes that share a matrix belong to a layer that is
    applied several times).
    """
    readers: dict[str, list[Use]] = defaultdict(list)
    for position, node in enumerate(graph.node):
        for index, name in enumerate(node.input):
            readers[name].append(Use(position, index))
    overridable = {value.name for value in graph.input}
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable}
    matrices = {name for name, tensor in tensors.items() if sum(size > 1 for size in tensor.dims) > 1}
    taken = value_names(graph)
    changed = False
    for name, uses in list(readers.items()):
        if name not in tensors or name in matrices or not _is_vector(tensors[name]):
            continue
        owners: dict[tuple[str, ...], str] = {}
        for use in uses:
            node = graph.node[use.node]
            tied = tuple(i for i in node.input if i in matrices and len(readers[i]) > 1) or (str(use.node),)
            if not owners:
                owners[tied] = name
            elif tied not in owners:
                owners[tied] = _copy(graph, tensors[name], free_name(name, taken))
                changed = True
            node.input[use.input] = owners[tied]
    return changed


def _is_vector(tensor: TensorProto) -> bool:
    return element_count(tensor) > 1 and tensor.data_type not in (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)


def _copy(graph: GraphProto, tensor: TensorProto, name: str) -> str:
    copy = graph.initializer.add()
    copy.CopyFrom(tensor)
    copy.name = name
    return name


def constant_reshapes(graph: Graph) -> bool:
    """Replace a Reshape target that is computed at run time by a constant, where sizes and shape inference tell it.

    0 copies the dimension of the input at the same place; one dimension may be left to -1.
    """
    changed = False
    for node in graph.nodes:
        if operator_name(node) != "Reshape" or node.input[1] in graph.initializers:
            continue
        target = _traced_target(graph, node) or inferred_target(graph.shape(node.input[0]), graph.shape(node.output[0]))
        if target is None:
            continue
        reshape_to(graph, node, target)
        changed = True
    return changed


def reshape_to(graph: Graph, node: NodeProto, target: list[int]) -> None:
    """Give a Reshape a constant target of its own, in which 0 copies."""
    _take(graph, node, target)
    kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
    del node.attribute[:]
    node.attribute.extend(kept)


def _take(graph: Graph, node: NodeProto, target: list[int]) -> None:
    """Give a node a constant target shape."""
    node.input[1] = free_name(f"{node.output[0]}_shape", graph.names)
    graph.model.graph.initializer.append(numpy_helper.from_array(np.asarray(target, np.int64), node.input[1]))


def constant_expands(graph: Graph) -> bool:
    """Replace a shape of Expand that is computed at run time by a constant: 1 where the input already has the size."""
    changed = False
    for node in graph.nodes:
        if operator_name(node) != "Expand" or node.input[1] in graph.initializers:
            continue
        target = _expanded_target(graph, node)
        if target is not None:
            _take(graph, node, target)
            changed = True
    return changed


def constant_sizes(graph: Graph) -> bool:
    """Compute with sizes that shape inference tells, rather than with those that are read at run time.

    Shape; Gather; Div (channels // heads)    becomes    Div of two constants, which is folded
    """
    changed = False
    for node in graph.nodes:
        for index, name in enumerate(node.input if _computes(node) else ()):
            sizes = _sizes(graph, name)
            if sizes is not None:
                node.input[index] = free_name(f"{name}_size", graph.names)
                graph.model.graph.initializer.append(numpy_helper.from_array(sizes, node.input[index]))
                changed = True
    return changed


def _computes(node: NodeProto) -> bool:
    """Whether a node makes numbers of sizes, or makes them numbers to compute with (the scale of attention)."""
    return operator_name(node) in _ARITHMETIC or (operator_name(node) == "Cast" and attributes(node)["to"] in FLOATS)


def _sizes(graph: Graph, name: str) -> Array | None:
    """A value that consists of sizes that are known; None for others, and for constants."""
    shape = graph.shape(name)
    if shape not in ((), (1,)) or name in graph.initializers or graph.element_types.get(name) != TensorProto.INT64:
        return None
    sizes = [entry if isinstance(entry, int) else _dimension(graph, entry) for entry in copied_dimensions(graph, name) or [None]]
    return np.array(sizes, np.int64).reshape(shape) if all(isinstance(size, int) for size in sizes) else None


def explicit_squeezes(graph: Graph) -> bool:
    """Write the axes of a Squeeze without any, where all sizes are known: a pruned axis of size 1 is none of them."""
    changed = False
    for node in graph.nodes:
        shape = graph.shape(node.input[0]) if operator_name(node) == "Squeeze" and not any(node.input[1:]) else None
        if shape is None or node.attribute or not all(isinstance(dim, int) for dim in shape):
            continue
        axes = np.flatnonzero(np.asarray(shape) == 1)
        if not len(axes):  # ONNX Runtime takes no axes for all of size 1, however many there are after pruning
            _become(node, helper.make_node("Identity", [node.input[0]], list(node.output)))
            changed = True
            continue
        name = free_name(f"{node.output[0]}_axes", graph.names)
        graph.model.graph.initializer.append(numpy_helper.from_array(axes.astype(np.int64), name))
        node.input[:] = [node.input[0], name]
        changed = True
    return changed


def _expanded_target(graph: Graph, node: NodeProto) -> list[int] | None:
    """The target of Expand with 1 for what the input brings itself; None where another size is read at run time."""
    entries = copied_dimensions(graph, node.input[1])
    source = graph.shape(node.input[0])
    if entries is None or source is None:
        return None
    own = (*(1 for _ in range(len(entries) - len(source))), *source)[-len(entries) :] if entries else ()
    target = []
    for entry, dim in zip(entries, own, strict=True):
        wanted = entry if isinstance(entry, int) else _dimension(graph, entry)
        if isinstance(wanted, int):
            target.append(wanted)
        elif wanted is not None and wanted == dim:
            target.append(1)
        else:
            return None
    return target


def _traced_target(graph: Graph, node: NodeProto) -> list[int] | None:
    """The target by following where its entries are computed."""
    entries = copied_dimensions(graph, node.input[1])
    source = graph.shape(node.input[0])
    if entries is None or source is None:
        return None
    target = []
    for place, entry in enumerate(entries):
        dim = entry if isinstance(entry, int) else _dimension(graph, entry)
        if isinstance(dim, int) and dim != 0:
            target.append(dim)
        elif place < len(source) and dim == source[place] and (dim is not None or entry == (node.input[0], place)):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _dimension(graph: Graph, entry: tuple[str, int] | None) -> Dim:
    shape = graph.shape(entry[0]) if entry is not None else None
    return shape[entry[1]] if shape is not None and entry is not None else None


def inferred_target(source: Shape | None, target: Shape | None) -> list[int] | None:
    """The constant target of a Reshape by the shapes of its input and result: 0 copies, one size may be left to -1.

    None where that does not do.
    """
    if source is None or target is None or any(dim == 0 for dim in target):
        return None
    result = []
    for axis, dim in enumerate(target):
        if isinstance(dim, int):
            result.append(dim)
        elif isinstance(dim, str) and axis < len(source) and source[axis] == dim:
            result.append(0)
        else:
            result.append(-1)
    return result if result.count(-1) <= 1 else None


def unwrap_softmaxes(graph: Graph) -> bool:
    """Undo what ONNX's version converter wraps around a Softmax over the last axis.

    Flatten(axis = rank - 1); Softmax; Reshape to Shape of the input    becomes    Softmax(axis = -1)
    """
    changed = False
    for node in graph.nodes:
        source = _wrapped_input(graph, node) if operator_name(node) == "Reshape" else None
        if source is None:
            continue
        softmax = graph.nodes[graph.producers[node.input[0]]]
        _become(node, helper.make_node(softmax.op_type, [source], list(node.output), axis=-1))
        changed = True
    return changed


def _become(node: NodeProto, other: NodeProto) -> None:
    """Let a node be another one, with its own name, doc string and metadata."""
    other.name = node.name
    if node.HasField("doc_string"):
        other.doc_string = node.doc_string
    other.metadata_props.extend(node.metadata_props)
    node.CopyFrom(other)


def _wrapped_input(graph: Graph, node: NodeProto) -> str | None:
    """The input of Flatten; Softmax; `node`, if those three are a Softmax over the last axis."""
    chain = [node]
    for operators in (("Softmax", "LogSoftmax", "Hardmax"), ("Flatten",)):
        position = graph.producers.get(chain[-1].input[0])
        if position is None or operator_name(graph.nodes[position]) not in operators:
            return None
        chain.append(graph.nodes[position])
    flatten = chain[-1]
    if attributes(chain[1]).get("axis", -1) not in (1, -1):
        return None
    shape = graph.shape(flatten.input[0])
    if shape is None or attributes(flatten).get("axis", 1) not in (len(shape) - 1, -1):
        return None
    sizes = copied_dimensions(graph, node.input[1])
    whole = sizes == [(flatten.input[0], axis) for axis in range(len(shape))]
    return flatten.input[0] if whole else None


def unwrap_batched_transposes(graph: Graph) -> bool:
    """Undo the way in which exporters transpose the last two axes of a tensor with two leading ones.

    Reshape [a, b, m, n] -> [(a b), m, n]; Transpose; Reshape -> [a, b, n, m]    becomes    Transpose(0, 1, 3, 2)
    """
    changed = False
    for node in graph.nodes:
        source = _batched_transpose(graph, node) if operator_name(node) == "Reshape" else None
        if source is not None:
            _become(node, helper.make_node("Transpose", [source], list(node.output), perm=[0, 1, 3, 2]))
            changed = True
    return changed


def _batched_transpose(graph: Graph, last: NodeProto) -> str | None:
    """The input of the chain that ends with this Reshape, or None where it is none."""
    chain = [last]
    for operator in ("Transpose", "Reshape"):
        position = graph.producers.get(chain[-1].input[0])
        if position is None or operator_name(graph.nodes[position]) != operator:
            return None
        chain.append(graph.nodes[position])
    source: str = chain[2].input[0]
    before, middle = graph.shape(source), graph.shape(chain[2].output[0])
    if before is None or middle is None or len(before) != 4 or attributes(chain[1]).get("perm") != [0, 2, 1]:
        return None
    order = (0, 1, 3, 2)
    entries = copied_dimensions(graph, last.input[1])
    if entries is None or len(entries) != 4 or len(middle) != 3 or not _same_sizes(before[2:], middle[1:]):
        return None
    for axis, entry in zip(order, entries, strict=True):
        size = entry if isinstance(entry, int) else _dimension(graph, entry)
        if entry != (source, axis) and (size is None or size != before[axis]):
            return None
    return source


def _same_sizes(one: Shape, other: Shape) -> bool:
    return all(a is not None and a == b for a, b in zip(one, other, strict=True))


def drop_zero_states(graph: Graph) -> bool:
    """Drop initial states of LSTM, GRU and RNN that are all zero: zero is the default, and no size is written for it."""
    changed = False
    for node in graph.nodes:
        if operator_name(node) not in ("LSTM", "GRU", "RNN"):
            continue
        for index in range(5, min(len(node.input), 7)):
            if node.input[index] and _is_zero(graph, node.input[index]):
                node.input[index] = ""
                changed = True
        while not node.input[-1]:
            del node.input[-1]
    return changed


def _is_zero(graph: Graph, name: str) -> bool:
    """Whether every element of a value is zero, whatever its shape."""
    constant = graph.constant(name)
    if constant is not None:
        return not np.any(constant)
    position = graph.producers.get(name)
    if position is None:
        return False
    node = graph.nodes[position]
    if operator_name(node) == "ConstantOfShape":
        value = attributes(node).get("value")
        return value is None or not np.any(numpy_helper.to_array(value))
    return operator_name(node) in _KEEPS_ZERO and _is_zero(graph, node.input[0])


_KEEPS_ZERO = {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}


def gather_shuffles(known: Graph) -> bool:
    """Replace a channel shuffle by one Gather.

        Reshape [N, (g c), ...] -> [N, g, c, ...]; Transpose g and c; Reshape -> [N, (c g), ...]

    becomes Gather(axis, constant permutation).  As a permutation it couples nothing, while (g c) split into g and c would tie
    all g parts together; and whatever is kept of it is again a Gather.
    """
    graph, taken = known.model.graph, known.names
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in graph.output}
    changed = False
    for first in graph.node:
        chain = _shuffle_chain(first, readers, outputs)
        if chain is None:
            continue
        transpose, last = chain
        sizes = partial(named_sizes, known) if known.constant(first.input[1]) is None else known.shape
        found = _shuffle(attributes(transpose).get("perm"), *map(sizes, (first.input[0], first.output[0], last.output[0])))
        if found is None:
            continue
        axis, order = found
        name = free_name(f"{last.output[0]}_order", taken)
        graph.initializer.append(numpy_helper.from_array(order, name))
        _become(last, helper.make_node("Gather", [first.input[0], name], [last.output[0]], axis=axis))
        changed = True
    return changed


def _shuffle_chain(
    first: NodeProto, readers: dict[str, list[NodeProto]], outputs: set[str]
) -> tuple[NodeProto, NodeProto] | None:
    if operator_name(first) != "Reshape":
        return None
    chain, node = [], first
    for wanted in ("Transpose", "Reshape"):
        following = readers.get(node.output[0], [])
        if len(following) != 1 or operator_name(following[0]) != wanted or node.output[0] in outputs:
            return None
        node = following[0]
        chain.append(node)
    return chain[0], chain[1]


def _shuffle(order: list[int] | None, flat: Shape | None, grid: Shape | None, back: Shape | None) -> tuple[int, Array] | None:
    """The axis and the permutation of a chain, or None where it is not a shuffle of one axis."""
    if flat is None or grid is None or back is None or order is None or flat != back:
        return None
    axis = next((k for k in range(len(order)) if order[k] != k), None)
    if axis is None or axis >= len(flat):
        return None
    factors: list[Dim] = list(grid[axis : axis + len(grid) - len(flat) + 1])
    count = len(factors)
    sizes = [dim for dim in factors if isinstance(dim, int)]
    same_outside = grid[:axis] == flat[:axis] and grid[axis + count :] == flat[axis + 1 :]
    inside = list(order[axis : axis + count])
    fixed = list(order[:axis]) + list(order[axis + count :])
    expected = [*range(axis), *range(axis + count, len(grid))]
    if count < 2 or len(sizes) != count or not same_outside or fixed != expected or int(np.prod(sizes)) != flat[axis]:
        return None
    permutation = np.arange(np.prod(sizes)).reshape(sizes).transpose([k - axis for k in inside]).ravel()
    return axis, permutation.astype(np.int64)
