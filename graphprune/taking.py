"""Unconstrained mode: every consumer takes its own channels of what it reads.

Where a value has several readers, `with_takes` puts a node in front of each:

    x -> conv1, conv2    becomes    x -> Take -> conv1,  x -> Take -> conv2

A `graphprune::Take` gives its result labels of its own, so that the analysis, which knows nothing of modes, finds a group for
every reader.  What is left of x then follows: a channel stays while anybody takes it (`Analysis.closed`).  The rewrite turns a
Take into nothing, a Slice or a Gather (`mend_take`).  Compare UPSCALE (Wan et al. 2023).  Start reading at `with_takes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from .branches import DOMAIN, has_branches, keep_in_branch
from .edit import Edit, Indices, positions_in
from .graph import Graph, Shape, copy_model, node_reads, replace_nodes
from .site import LooseAxis, Site, Taken

TAKE = "Take"
OPERATOR = f"{DOMAIN}::{TAKE}"
BLIND = {"Shape", "Size"}
"""Operators that read no channels."""


def with_takes(graph: Graph, without: Container[str] = ()) -> Graph:
    """The same network with a Take before each reader of a value that has several, but for those named in `without`."""
    model = copy_model(graph.model, without=["node", "initializer"])
    model.graph.initializer.extend(graph.model.graph.initializer)
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    result = Graph(model, dict(graph.shapes), dict(graph.sized))
    types = {value.name: value for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]}
    shared = _shared_values(graph)
    for position, original in enumerate(graph.nodes):
        node = NodeProto()
        node.CopyFrom(original)
        blind = original.op_type in BLIND or original.domain == DOMAIN
        named = [(index, name, f"{name}/take_{position}_{index}") for index, name in enumerate(original.input) if name in shared]
        takes = [_take(result, types, node, index, take) for index, name, take in named if not blind and take not in without]
        keep_in_branch(node, takes)
        model.graph.node.extend([*takes, node])
    return result


def _shared_values(graph: Graph) -> set[str]:
    """Values that depend on the network's inputs and have several readers."""
    flowing = {value.name for value in graph.inputs}
    readers: Counter[str] = Counter(value.name for value in graph.outputs)
    for node in graph.nodes:
        if any(name in flowing for name in node.input):
            flowing.update(name for name in node.output if name)
        if node.op_type not in BLIND:
            readers.update(name for name in node.input if name)
    return {name for name, count in readers.items() if count > 1 and name in flowing and graph.shape(name)}


def _take(graph: Graph, types: dict[str, ValueInfoProto], node: NodeProto, index: int, result: str) -> NodeProto:
    """A Take between a node and its input `index`; the graph learns the result's shape and type."""
    name, node.input[index] = node.input[index], result
    graph.shapes[result] = graph.shapes[name]
    if name in graph.sized:
        graph.sized[result] = graph.sized[name]
    if name in types:
        value = graph.model.graph.value_info.add()
        value.CopyFrom(types[name])
        value.name = result
    return helper.make_node(TAKE, [name], [result], name=result, domain=DOMAIN)


def take(site: Site) -> list[list[LooseAxis] | None]:
    """The rule of Take: labels of its own for the result, present only where those of the input are."""
    axes = site.axes(0)
    if axes is None:
        return site.refuse_unknown()
    result: list[LooseAxis] = []
    for number, axis in enumerate(axes):
        if isinstance(axis, int):
            result.append(axis)
            continue
        copied = site.labels.copied(axis)
        site.ledger.taken.append(Taken(site.position, number, axis, copied))
        result.append(copied)
    return [result]


def mend_take(edit: Edit) -> None:
    """The Take as ONNX has it: an Identity where all is taken, a Slice of a range, else a Gather."""
    edit.node.domain = ""
    steps = []
    for axis in range(len(edit.shape(0) or ())):
        positions = _positions(edit, axis)
        if positions is not None:
            steps.append((axis, positions))
    if not steps:
        edit.node.op_type = "Identity"
        return
    source, result = edit.node.input[0], edit.node.output[0]
    for number, (axis, positions) in enumerate(steps):
        last = number == len(steps) - 1
        made = _selection(edit.model, source, result if last else f"{result}_{axis}", axis, positions)
        source = made.output[0]
        if number == 0:
            edit.node.CopyFrom(made)
        else:
            edit.appended.append(made)


def gather_name(value: str) -> str:
    """The name of the Gather that gives a value."""
    return f"{value}_gather"


def _positions(edit: Edit, axis: int) -> Indices | None:
    """Which of the input's indices are taken, in the order of the result; None where it is all of them as they are."""
    outer, inner = edit.kept(0, axis), edit.kept_output(0, axis)
    if outer is None and inner is None:
        return None
    outer = np.arange(edit.size(axis)) if outer is None else outer
    inner = np.arange(edit.size(axis)) if inner is None else inner
    return None if np.array_equal(outer, inner) else positions_in(outer, inner)


def _selection(model: ModelProto, source: str, result: str, axis: int, positions: Indices) -> NodeProto:
    """A Slice where the positions are a range, else a Gather."""
    if len(positions) and np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions))):
        names = [f"{result}_{part}" for part in ("starts", "ends", "axes")]
        for name, value in zip(names, (positions[0], positions[-1] + 1, axis), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
        return helper.make_node("Slice", [source, *names], [result], name=f"{result}_slice")
    indices = f"{result}_indices"
    model.graph.initializer.append(numpy_helper.from_array(positions.astype(np.int64), indices))
    return helper.make_node("Gather", [source, indices], [result], name=gather_name(result), axis=axis)


def settle(model: ModelProto, graph: Graph, shapes: Mapping[str, Shape]) -> None:
    """Tidy up behind the Takes of `graph`, in place; `shapes` are those of the rewritten model."""
    takes = {node.output[0] for node in graph.nodes if node.domain == DOMAIN and node.op_type == TAKE}
    nodes = _gathered_once(model, _without_identities(model, takes), takes, shapes)
    replace_nodes(model.graph, nodes)
    written = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node_reads(node)}
    _remove(model.graph.value_info, {value.name for value in model.graph.value_info} & takes - written)
    ours = {tensor.name for tensor in model.graph.initializer if tensor.name.rpartition("_")[0] in takes}
    _remove(model.graph.initializer, ours - read)
    if not has_branches(model):
        _remove(model.opset_import, {DOMAIN}, "domain")


def _remove(entries: Any, names: set[str], field: str = "name") -> None:
    """Delete the entries with these names."""
    for position in reversed(range(len(entries))):
        if getattr(entries[position], field) in names:
            del entries[position]


def _without_identities(model: ModelProto, takes: set[str]) -> list[NodeProto]:
    """The nodes but for the Identities that Takes became: their readers read what those read."""
    source: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = source.get(name, name)
        if node.op_type == "Identity" and node.output[0] in takes:
            source[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    return nodes


def _gathered_once(model: ModelProto, nodes: list[NodeProto], takes: set[str], shapes: Mapping[str, Shape]) -> list[NodeProto]:
    """The nodes with one Gather behind a Concat in place of several in front of it."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in nodes if node.output[0] in takes and node.op_type in ("Gather", "Slice")}
    result: list[NodeProto] = []
    replaced: set[str] = set()
    for node in nodes:
        result.append(node)
        if node.op_type != "Concat":
            continue
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        selections = {name: made[name] for name in node.input if name in made}
        parts = [_part(name, selections.get(name), axis, constants, shapes) for name in node.input]
        if all(selection.op_type == "Slice" for selection in selections.values()) or any(part is None for part in parts):
            continue
        sources, sizes, positions = zip(*(part for part in parts if part is not None), strict=True)
        starts = np.cumsum([0, *sizes[:-1]])
        chosen = np.concatenate([start + part for start, part in zip(starts, positions, strict=True)])
        replaced |= set(selections)
        name = node.output[0]
        node.input[:] = sources
        node.output[0] = f"{name}_whole"
        indices = f"{name}_whole_indices"
        model.graph.initializer.append(numpy_helper.from_array(chosen.astype(np.int64), indices))
        gather = helper.make_node("Gather", [node.output[0], indices], [name], name=gather_name(name), axis=axis)
        keep_in_branch(node, [gather])
        result.append(gather)
    return [node for node in result if node.output[0] not in replaced]


Part = tuple[str, int, Indices]
"""What a Concat reads of a value: its name, its size along the axis, and the positions."""


def _part(
    name: str, selection: NodeProto | None, axis: int, constants: Mapping[str, TensorProto], shapes: Mapping[str, Shape]
) -> Part | None:
    source = name if selection is None else selection.input[0]
    shape = shapes.get(source)
    size = shape[axis] if shape is not None else None
    if not isinstance(size, int):
        return None
    if selection is None:
        return source, size, np.arange(size)
    values = [numpy_helper.to_array(constants[given]) for given in selection.input[1:]]
    along = values[2][0] if selection.op_type == "Slice" else selection.attribute[0].i
    if along != axis % len(shape or ()):
        return None
    return source, size, values[0] if selection.op_type == "Gather" else np.arange(int(values[0][0]), int(values[1][0]))
