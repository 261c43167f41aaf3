"""If, seen through: the branches' nodes stand in the main graph while graphprune works, and go back before anything runs.

    If(c) {then: nodes} {else: nodes}    <->    nodes of both branches; graphprune::If(c, then's outputs, else's outputs)

Each hoisted node carries its branch in its metadata, so that what the rewrite and the masked reference put beside it goes back
with it.  Loop and Scan stay as they are.  Start reading at `hoist_branches`.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from .graph import free_name, operator_name, replace_nodes, subgraphs

DOMAIN = "graphprune"
SCOPE = "graphprune.branch"
BRANCHES = ("then_branch", "else_branch")


def hoist_branches(model: ModelProto, inferred: ModelProto) -> None:
    """Move the nodes and constants of the outermost branches into the main graph, in place; names that clash get a number.

    `inferred` has the types of the results of If, which nothing can infer afterwards.
    """
    results = {name for node in model.graph.node if operator_name(node) == "If" for name in node.output}
    known = {value.name for value in model.graph.value_info}
    typed = [*inferred.graph.value_info, *inferred.graph.output]
    model.graph.value_info.extend(value for value in typed if value.name in results - known)
    taken = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    taken |= {name for node in model.graph.node for name in node.output}
    nodes: list[NodeProto] = []
    titles = {node.name for node in model.graph.node}
    for node in model.graph.node:
        nodes += _hoisted(model, node, taken, titles) if operator_name(node) == "If" else [node]
    replace_nodes(model.graph, nodes)
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _hoisted(model: ModelProto, node: NodeProto, taken: set[str], titles: set[str]) -> list[NodeProto]:
    """The nodes of both branches, and the node that stands for the If; `titles` are the names that nodes have."""
    stand_in = NodeProto()
    stand_in.CopyFrom(node)
    stand_in.domain = DOMAIN
    del stand_in.attribute[:]
    nodes: list[NodeProto] = []
    graphs = {attribute.name: attribute.g for attribute in node.attribute}
    for branch in BRANCHES:
        graph = graphs[branch]
        names = _new_names(graph, taken)
        for tensor in graph.initializer:
            copy = model.graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = names.get(tensor.name, tensor.name)
        for sparse in graph.sparse_initializer:
            entry = model.graph.sparse_initializer.add()
            entry.CopyFrom(sparse)
            entry.values.name = names.get(sparse.values.name, sparse.values.name)
        for inner in graph.node:
            copied = NodeProto()
            copied.CopyFrom(inner)
            rename(copied, names)
            copied.name = free_name(copied.name, titles)
            copied.metadata_props.add(key=SCOPE, value=f"{node.name}/{branch}")
            nodes.append(copied)
        shell = GraphProto(name=graph.name, doc_string=graph.doc_string)
        shell.output.extend(graph.output)
        for value in shell.output:
            value.name = names.get(value.name, value.name)
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
            stand_in.input.append(value.name)
        stand_in.attribute.append(helper.make_attribute(branch, shell.SerializeToString()))  # as bytes: it has no nodes
    return [*nodes, stand_in]


def _new_names(graph: GraphProto, taken: set[str]) -> dict[str, str]:
    """New names for values of a branch that the main graph has already; all of the branch's names are then taken."""
    own = [tensor.name for tensor in [*graph.initializer, *(each.values for each in graph.sparse_initializer)]] + [
        name for node in graph.node for name in node.output if name
    ]
    new = {name: free_name(name, taken) for name in own}
    return {name: other for name, other in new.items() if name != other}


def rename(node: NodeProto, names: dict[str, str]) -> None:
    """Give values that a node and its bodies read or write other names, in place."""
    for field in (node.input, node.output):
        for index, name in enumerate(field):
            field[index] = names.get(name, name)
    for graph in subgraphs(node):
        for inner in graph.node:
            rename(inner, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def keep_in_branch(node: NodeProto, others: list[NodeProto]) -> None:
    """Put nodes that were made for `node` into its branch."""
    for entry in node.metadata_props:
        if entry.key == SCOPE:
            for other in others:
                if other is not node and all(known.key != SCOPE for known in other.metadata_props):
                    other.metadata_props.add(key=SCOPE, value=entry.value)


def with_branches(model: ModelProto) -> ModelProto:
    """The model as ONNX has it; the same object where it has no node of graphprune's own.

    A `graphprune::Take` that is still there (`graphprune.taking`) takes everything.
    """
    if not any(node.domain == DOMAIN for node in model.graph.node):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    bodies: dict[str, list[NodeProto]] = defaultdict(list)
    main: list[NodeProto] = []
    for node in result.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        if copy.domain == DOMAIN and copy.op_type == "If":
            _refill(copy, bodies)
        elif copy.domain == DOMAIN:
            copy.domain, copy.op_type = "", "Identity"
        scope = [entry.value for entry in copy.metadata_props if entry.key == SCOPE]
        if scope:
            kept = [entry for entry in copy.metadata_props if entry.key != SCOPE]
            del copy.metadata_props[:]
            copy.metadata_props.extend(kept)
            bodies[scope[-1]].append(copy)
        else:
            main.append(copy)
    replace_nodes(result.graph, main)
    inside = {name for node in model.graph.node for name in node.output} - {name for node in main for name in node.output}
    values = [value for value in model.graph.value_info if value.name not in inside]
    del result.graph.value_info[:]
    result.graph.value_info.extend(values)
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del result.opset_import[:]
    result.opset_import.extend(imports)
    return result


def _refill(node: NodeProto, bodies: dict[str, list[NodeProto]]) -> None:
    """Turn a stand-in back into an If with the nodes of its branches; a branch must write its results itself."""
    results = list(node.input[1:])
    node.domain = ""
    del node.input[1:]
    shells = {attribute.name: GraphProto.FromString(attribute.s) for attribute in node.attribute}
    del node.attribute[:]
    for branch, graph in shells.items():
        body = bodies.pop(f"{node.name}/{branch}", [])
        written = {name for inner in body for name in inner.output}
        for value in graph.output:
            value.name = results.pop(0)
            if value.name not in written:
                copy = f"{node.name}/{branch}/{value.name}"
                body.append(helper.make_node("Identity", [value.name], [copy], name=copy))
                value.name = copy
        graph.node.extend(body)
        node.attribute.append(helper.make_attribute(branch, graph))


def has_branches(model: ModelProto) -> bool:
    """Whether branches of the model were hoisted."""
    return any(node.domain == DOMAIN and node.op_type == "If" for node in model.graph.node)


def take_branch(model: ModelProto, then: bool) -> None:
    """Let every If of a model (as ONNX has it) take the same branch, in place."""
    name = f"graphprune_always_{then}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(then), name))
    _set_conditions(model.graph, name)


def _set_conditions(graph: GraphProto, name: str) -> None:
    for node in graph.node:
        if operator_name(node) == "If":
            node.input[0] = name
        for inner in subgraphs(node):
            _set_conditions(inner, name)
