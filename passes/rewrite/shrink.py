"""Remove channels from the graph: cut every weight along its kept indices and mend the sizes written into nodes.

Start reading at `shrink`.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from graphprune import external, taking
from graphprune.branches import keep_in_branch, with_branches
from graphprune.cutting import taken
from graphprune.depth import add_constant, removed
from graphprune.edit import Edit, Indices, KeptOf, kept_axes
from graphprune.errors import InternalError
from graphprune.external import is_external
from graphprune.graph import Graph, Shape, copy_model, item_bits, node_reads, operator_name, replace_nodes
from graphprune.inference import Analysis
from graphprune.normalize import shape_like
from graphprune.operators import operator_table
from graphprune.reorder import orders
from graphprune.shape_inference import infer_shapes

from .apart import keep_apart


def shrink(analysis: Analysis, present: NDArray[np.bool_]) -> ModelProto:
    """A new model with only the present indices of every axis; weights that are in a file are cut when they are read.

    Raises InternalError where the result contradicts the analysis (a bug in an operator's table entry).
    """
    graph = analysis.graph
    kept_of = kept_indices(analysis, present)
    ascending = _ascending(kept_of)
    ends, gone = removed(analysis, present)
    model = _copy_with_cut_weights(graph, kept_of, gone)
    nodes, initializers = list[NodeProto](), {tensor.name: tensor for tensor in model.graph.initializer}
    for position, node in enumerate(model.graph.node):
        if position in gone:
            continue
        if position in ends:
            add_constant(model, node, ends[position], graph, kept_of)
        entry = operator_table().get(operator_name(node))
        seen = kept_of if operator_name(node) == taking.OPERATOR else ascending
        edit = Edit(graph, position, model, seen, initializers)
        if entry is not None and entry.shrink is not None and _touched(edit):
            entry.shrink(edit)
        keep_in_branch(node, edit.appended)
        nodes += [node, *edit.appended]
    if len(nodes) != len(model.graph.node):
        replace_nodes(model.graph, nodes)
    shapes = _refresh_shapes(model, graph, kept_of, {name for position in gone for name in graph.nodes[position].output})
    if analysis.ledger.taken:
        taking.settle(model, graph, shapes)
    keep_apart(model)
    return _without_unread(with_branches(model), graph)


def kept_indices(analysis: Analysis, present: NDArray[np.bool_]) -> KeptOf:
    """(value, axis) -> kept indices, for the given labels; None where all stay."""
    values = analysis.ledger.values
    arrays = {id(ids): ids for axes in values.values() for ids in axes or () if not isinstance(ids, int)}
    if not arrays:
        return lambda name, axis: None
    mask = analysis.index_mask(np.concatenate(list(arrays.values())), present)
    parts = np.split(mask, np.cumsum([len(ids) for ids in arrays.values()])[:-1])
    moved = orders(analysis, list(arrays.values()))
    kept = {key: _kept(part, order) for key, part, order in zip(arrays, parts, moved, strict=True)}

    def kept_of(name: str, axis: int) -> Indices | None:
        axes = values.get(name)
        return None if axes is None or axis >= len(axes) else kept.get(id(axes[axis]))

    return kept_of


def _ascending(kept_of: KeptOf) -> KeptOf:
    """What nodes see: channels that change places do so alike in all that a node reads and writes, so it need not know."""

    def sorted_kept_of(name: str, axis: int) -> Indices | None:
        kept = kept_of(name, axis)
        return None if kept is None else np.sort(kept)

    return sorted_kept_of


def _kept(mask: NDArray[np.bool_], order: Indices | None) -> Indices | None:
    """The indices of an axis that stay, in their new order; None where nothing changes."""
    if order is None:
        return None if mask.all() else np.flatnonzero(mask)
    kept = order[mask[order]]
    return None if np.array_equal(kept, np.arange(len(mask))) else kept


def _copy_with_cut_weights(graph: Graph, kept_of: KeptOf, gone: Container[int]) -> ModelProto:
    """The model with every weight cut, never copying what is dropped; weights that only nodes in `gone` read are left out."""
    model = copy_model(graph.model, without=["initializer", "value_info"])
    for name, tensor in graph.initializers.items():
        readers = graph.uses.get(name, ())
        if gone and readers and name not in graph.read_elsewhere and all(use.node in gone for use in readers):
            continue
        cuts = kept_axes(kept_of, name, len(tensor.dims))
        copy = model.graph.initializer.add()
        if not cuts:
            copy.CopyFrom(tensor)
            continue
        if is_external(tensor) and item_bits(tensor.data_type) >= 8:
            copy.CopyFrom(external.cut(tensor, cuts))
            continue
        array = graph.constant(name)
        assert array is not None
        copy.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(taken(array, cuts)), name))
        if tensor.HasField("doc_string"):
            copy.doc_string = tensor.doc_string
        copy.metadata_props.extend(tensor.metadata_props)
    return model


def _without_unread(model: ModelProto, graph: Graph) -> ModelProto:
    """The model without initializers that nodes read until each of them got one of its own; callers' own stay."""
    read = {name for node in model.graph.node for name in node_reads(node)} | graph.overridable
    read |= {value.name for value in model.graph.output}
    for position in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[position].name not in read:
            del model.graph.initializer[position]
    return model


def _touched(edit: Edit) -> bool:
    """Whether any axis of any input or result of the node shrinks."""
    inputs = ((edit.kept, k, edit.shape(k)) for k in range(len(edit.inputs)) if edit.has(k))
    outputs = ((edit.kept_output, k, edit.output_shape(k)) for k in range(len(edit.outputs)))
    return any(kept(index, axis) is not None for kept, index, shape in (*inputs, *outputs) for axis in range(len(shape or ())))


def _refresh_shapes(model: ModelProto, graph: Graph, kept_of: KeptOf, gone: Container[str]) -> dict[str, Shape]:
    """Infer all shapes anew, check them against what the analysis promised, and return them; values in `gone` are no more."""
    shapes = infer_shapes(model, shape_like())
    for name, before in graph.shapes.items():
        after = shapes.get(name)
        if after is None or len(after) != len(before):
            continue
        for axis, (old, new) in enumerate(zip(before, after, strict=True)):
            kept = kept_of(name, axis)
            expected = old if kept is None else len(kept)
            if isinstance(expected, int) and isinstance(new, int) and new != expected:
                raise InternalError(
                    f"the rewrite gave {name!r} size {new} along axis {axis} where the analysis has {expected}; "
                    "please report this with the model"
                )
    del model.graph.value_info[:]
    for value in graph.model.graph.value_info:
        if value.name in gone:
            continue
        copy = model.graph.value_info.add()
        copy.CopyFrom(value)
        for axis, dim in enumerate(copy.type.tensor_type.shape.dim):
            kept = kept_of(value.name, axis)
            if kept is not None:
                dim.dim_value = len(kept)
    return shapes
