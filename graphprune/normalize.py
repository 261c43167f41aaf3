"""From any valid ONNX model to the normal form that the analysis expects.

The normal form: valid, sorted, one opset of at least `MINIMUM_OPSET`, functions inlined, constants lifted to initializers and
folded, dead code gone, every node named, no initializer shared by chance, Reshape targets constant where they can be,
channel shuffles as one Gather.  Normalising a normal model changes nothing.  Names of inputs, outputs, nodes and parameters,
doc strings and metadata survive.

Steps that need a heavy library (onnxscript for folding, docs/decisions/0002-normalisation.md) run only where there is
something to do.  Start reading at `normalize`.
"""

from __future__ import annotations

import graphlib
from collections import Counter

import onnx
from onnx import GraphProto, ModelProto, NodeProto, inliner

from .branches import hoist_branches
from .constants import lift_constants
from .errors import InvalidModelError, UsageError, first_line
from .folding import Folding, foldable
from .graph import Graph, Shape, declared_shape, node_reads, operator_name, replace_nodes, subgraphs
from .heads_apart import heads_apart, heads_at_once
from .joined_targets import constant_parts, expanded_fills, expanded_repeats
from .normal_forms import (
    constant_expands,
    constant_reshapes,
    constant_sizes,
    drop_zero_states,
    explicit_squeezes,
    gather_shuffles,
    unshare_initializers,
    unwrap_batched_transposes,
    unwrap_softmaxes,
)
from .operators import operator_table
from .opsets import carry_notes, carry_over, upgrade
from .samples_apart import samples_apart
from .scattered_parts import scattered_parts
from .shape_inference import (
    REFUSALS,
    InputShapes,
    concrete_shapes,
    imitate_operators,
    inferred_model,
    shapes_of,
    skeleton,
    typical_model,
)
from .split_weights import split_weights
from .unread_weights import fold_in_file

UNWRAPPING = (unwrap_softmaxes, drop_zero_states, unwrap_batched_transposes, heads_at_once)
"""Normal forms that leave nodes behind which nothing reads; they come before `FORMS`."""

FORMS = (
    fold_in_file,
    split_weights,
    expanded_fills,
    expanded_repeats,
    scattered_parts,
    constant_reshapes,
    constant_parts,
    constant_expands,
    constant_sizes,
    explicit_squeezes,
    samples_apart,
)
"""Normal forms that need the shapes; each round takes the first that finds something."""

BRANCHING = ("If", "Loop", "Scan", "SequenceMap")

MAXIMUM_ROUNDS = 256
"""One round for each Reshape whose target hangs on the one before; this bounds the work on graphs made to last longer."""


def normalize(model: ModelProto, input_shapes: InputShapes | None = None) -> Graph:
    """Bring a model into normal form, in place, and return it with its shapes.

    `input_shapes` are the sizes of dynamic inputs that costs are counted with.

    Raises InvalidModelError where the model breaks the ONNX specification.
    """
    check_structure(model)
    if model.functions:
        _inline(model)
    _drop_initializers_from_inputs(model)
    upgrade(model)
    _check(model)
    _name_nodes(model.graph)
    while any(operator_name(node) == "If" for node in model.graph.node):
        hoist_branches(model, _infer(model))
    lift_constants(model.graph)
    inferred = _settle_constants(model)
    remove_dead_code(model.graph)
    _name_nodes(model.graph)
    unshare_initializers(model.graph)
    graph = Graph(model, shapes_of(inferred))
    if gather_shuffles(graph) | heads_apart(graph):
        remove_dead_code(model.graph)
        inferred = _infer(model)
        graph = Graph(model, shapes_of(inferred))
    _write_value_info(model, inferred)
    graph.sized = _typical_shapes(graph, input_shapes)
    _learn_ranks(graph)
    return graph


def _typical_shapes(graph: Graph, input_shapes: InputShapes | None) -> dict[str, Shape]:
    """The shapes of all values at the sizes that costs are counted with."""
    if all(isinstance(dim, int) for value in graph.inputs for dim in declared_shape(value) or ()):
        return graph.shapes
    shapes = shapes_of(inferred_model(typical_model(graph, input_shapes), graph.model, shape_like()))
    if all(isinstance(dim, int) for shape in shapes.values() for dim in shape):
        return shapes
    try:  # sizes that are computed with, which shape inference does not follow everywhere
        return shapes | shapes_of(_settle_constants(typical_model(graph, input_shapes)))
    except InvalidModelError:  # typical sizes need not fit: who runs the network says so
        return shapes


def _learn_ranks(graph: Graph) -> None:
    """Values of unknown shape have the rank that they have at typical sizes, but where a rank may hang on sizes."""
    if any(node.op_type in BRANCHING or (node.op_type == "Squeeze" and not any(node.input[1:])) for node in graph.nodes):
        return
    for name, shape in graph.sized.items():
        graph.shapes.setdefault(name, (None,) * len(shape))


def _infer(model: ModelProto) -> ModelProto:
    """The model's skeleton with inferred value_info."""
    return inferred_model(skeleton(model), model, shape_like())


def fix_input_shapes(model: ModelProto, shapes: InputShapes) -> None:
    """Make dynamic dimensions of inputs static.  Raises UsageError for names or sizes that do not fit."""
    inputs = {value.name: value for value in model.graph.input}
    for name in shapes:
        if name not in inputs:
            raise UsageError(f"input shape for {name!r}: the model has no such input; it has: {', '.join(inputs)}")
    for name, sizes in concrete_shapes([inputs[name] for name in shapes], shapes, batch=1).items():
        for dim, size in zip(inputs[name].type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    if not shapes:
        return
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    inferred = _infer(model)
    for output, typed in zip(model.graph.output, inferred.graph.output, strict=True):
        output.type.CopyFrom(typed.type)


def _settle_constants(model: ModelProto) -> ModelProto:
    """Fold, and make Reshape targets constant, until neither finds more: each gives the other new shapes to go by.

    Returns the skeleton with the inferred shapes of the result.
    """
    folding = Folding(model)
    for _ in range(MAXIMUM_ROUNDS):
        inferred = _infer(model)
        graph = Graph(model, shapes_of(inferred))
        graph.element_types.update({value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info})
        if any(form(graph) for form in UNWRAPPING):
            remove_dead_code(model.graph)
        elif not any(form(graph) for form in FORMS):
            count = len(model.graph.node)
            if not foldable(model):
                return inferred
            _write_value_info(model, inferred)
            folded = folding.fold(model)
            if folded is not None:
                carry_over(model, folded)
                model.Clear()
                model.CopyFrom(folded)
                lift_constants(model.graph)
            remove_dead_code(model.graph)
            if len(model.graph.node) == count:
                break
    return _infer(model)


def shape_like() -> dict[str, str]:
    """Operators that borrow the shape inference of a standard one."""
    return {name: entry.shape_like for name, entry in operator_table().items() if entry.shape_like}


# ---- validity -----------------------------------------------------------------------------------


def check_structure(model: ModelProto) -> None:
    """Refuse duplicate names, reads of undefined values and cycles; sort the nodes where they are not.

    Raises InvalidModelError.
    """
    graph = model.graph
    _check_names(graph)
    producers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    edges: dict[int, set[int]] = {}
    for position, node in enumerate(graph.node):
        reads = node_reads(node)
        missing = sorted(name for name in reads if name not in producers and name not in known)
        if missing:
            raise InvalidModelError(f"node {_title(node)} reads {missing[0]!r}, which nothing in the graph defines")
        edges[position] = {producers[name] for name in reads if name in producers}
    for value in graph.output:
        if value.name not in producers and value.name not in known:
            raise InvalidModelError(f"network output {value.name!r} is not written by any node")
    if all(source < position for position, sources in edges.items() for source in sources):
        return
    _sort(graph, edges)


def _check_names(graph: GraphProto) -> None:
    names = [value.name for value in graph.input]
    inputs = set(names)
    names += [tensor.name for tensor in graph.initializer if tensor.name not in inputs]
    names += [name for node in graph.node for name in node.output if name]
    for name, count in Counter(names).items():
        if count > 1:
            raise InvalidModelError(f"the name {name!r} is defined {count} times; ONNX names must be unique")
    for name, count in Counter(tensor.name for tensor in graph.initializer).items():
        if count > 1:
            raise InvalidModelError(f"initializer {name!r} is defined {count} times; ONNX names must be unique")


def _sort(graph: GraphProto, edges: dict[int, set[int]]) -> None:
    try:
        order = list(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError as error:
        names = " -> ".join(_title(graph.node[k]) for k in reversed(error.args[1]))
        raise InvalidModelError(f"the graph has a cycle: {names}") from error
    replace_nodes(graph, (graph.node[k] for k in order))


def _title(node: NodeProto) -> str:
    return repr(node.name) if node.name else f"{operator_name(node)} -> {', '.join(node.output)}"


def checkable(model: ModelProto) -> ModelProto:
    """The model without large weights, as ONNX's checker takes it."""
    copy = skeleton(model)
    imitate_operators(copy, shape_like())
    for value in copy.graph.output:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()  # the checker wants a shape, which running the model does not need
    return copy


def _check(model: ModelProto) -> None:
    try:
        onnx.checker.check_model(checkable(model))
    except REFUSALS as error:
        raise InvalidModelError(f"not a valid ONNX model: {first_line(error)}") from error


# ---- opset, functions, inputs -------------------------------------------------------------------


def _inline(model: ModelProto) -> None:
    try:
        inlined = inliner.inline_local_functions(model)
    except REFUSALS as error:
        raise InvalidModelError(f"not a valid ONNX model: its functions cannot be inlined: {first_line(error)}") from error
    model.Clear()
    model.CopyFrom(inlined)


def _drop_initializers_from_inputs(model: ModelProto) -> None:
    """Where every initializer is listed as an input, that is a habit from before IR version 4 and no wish to override it."""
    names = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in names]
    if model.ir_version >= 4 and len(model.graph.input) - len(kept) < len(names):
        return
    if len(kept) != len(model.graph.input):
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)


# ---- constants and dead code --------------------------------------------------------------------


def remove_dead_code(graph: GraphProto) -> None:
    """Drop nodes without effect on the outputs, and initializers that nobody reads."""
    needed = {value.name for value in graph.output}
    live: list[NodeProto] = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            live.append(node)
            needed |= node_reads(node)
    if len(live) != len(graph.node):
        replace_nodes(graph, reversed(live))
    for position in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[position].name not in needed:
            del graph.initializer[position]


def _name_nodes(graph: GraphProto) -> None:
    """Give every node a name of its own."""
    taken = Counter(node.name for node in graph.node)
    used = set(taken)
    for node in graph.node:
        if node.name and taken[node.name] == 1:
            continue
        base = node.name or f"{node.op_type}_{node.output[0] if node.output else ''}"
        name, number = base, 1
        while name in used and (name != node.name or taken[name] > 1):
            name, number = f"{base}_{number}", number + 1
        taken[node.name] -= 1
        node.name = name
        used.add(name)
    for node in graph.node:
        for inner in subgraphs(node):
            _name_nodes(inner)


def _write_value_info(model: ModelProto, inferred: ModelProto) -> None:
    """Replace value_info, which may be stale, by what shape inference finds."""
    extra = {value.name: value for value in model.graph.value_info}
    names = {name for node in model.graph.node for name in node.output} - {value.name for value in model.graph.output}
    fresh = [value for value in inferred.graph.value_info if value.name in names]
    for value in fresh:
        old = extra.get(value.name)
        if old is not None:
            carry_notes(old, value)
    declared = {dim for value in [*model.graph.input, *model.graph.output] for dim in declared_shape(value) or ()}
    for value in fresh:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in declared:
                dim.Clear()  # a name that shape inference made up; another run would number it differently
    del model.graph.value_info[:]
    model.graph.value_info.extend(sorted(fresh, key=lambda value: value.name))
