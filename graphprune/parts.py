"""Running a network some nodes at a time, in memory for a few of its weights.

The nodes are cut into consecutive parts with bounded weights; each part is a model of its own, whose inputs are what earlier ones
computed.  What no later part reads is forgotten.  Start reading at `run_in_parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from .graph import Array, copy_model, node_reads, to_array
from .model_file import byte_count, fits_message, weight_bytes
from .runtime import check_runnable, run, session

if TYPE_CHECKING:
    import onnxruntime

Runner = Callable[[ModelProto, dict[str, Array]], dict[str, Array]]

PART_BYTES = 2**24
"""Bytes of weights in a part, but for one that a single node needs.  In such parts a network of several hundred megabytes runs in
half of the time and a fifth of the memory that it takes as a whole."""

_ARRAYS = ("BOOL", "FLOAT16", "FLOAT", "DOUBLE", *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)))
HANDED_ON = frozenset(f"tensor({name.lower()})" for name in _ARRAYS)
"""Types, as the runtime names them, of values that it gives and takes as arrays; bfloat16 and sequences are none of them."""


def runner_of(models: Sequence[ModelProto]) -> Runner:
    """What runs models that are compared: as a whole where they are small."""
    small = all(map(fits_message, models)) and max(map(weight_bytes, models)) <= PART_BYTES
    return run if small else run_in_parts


def run_in_parts(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """All outputs of a model by name, as `graphprune.runtime.run` gives them without optimisation.  Raises what that raises.

    Where a value cannot be handed on, the part goes on to the end of the next.
    """
    check_runnable(model, feeds)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    parts = list(_parts(model.graph.node, tensors))
    outputs = {value.name for value in model.graph.output}
    last_read = {name: number for number, part in enumerate(parts) for node in part for name in node_reads(node)}
    last_read |= dict.fromkeys(outputs, len(parts))
    values: dict[str, Any] = {name: array for name, array in feeds.items() if name in last_read}
    nodes: list[NodeProto] = []
    for number, part in enumerate(parts):
        nodes += part
        later = {name for node in nodes for name in node.output if last_read.get(name, -1) > number}
        if later:
            active = session(_part_model(model, nodes, later, tensors, values), optimize=False)
            if number + 1 < len(parts) and not all(value.type in HANDED_ON for value in active.get_outputs()):
                continue
            values |= _run(active, values)
        nodes = []
        values = {name: array for name, array in values.items() if last_read[name] > number}
    found = {name: to_array(tensors[name]) for name in outputs if name in tensors} | values
    return {value.name: found[value.name] for value in model.graph.output}


def _parts(nodes: Sequence[NodeProto], tensors: Mapping[str, TensorProto]) -> Iterator[list[NodeProto]]:
    part: list[NodeProto] = []
    size = 0
    for node in nodes:
        more = sum(byte_count(tensors[name]) for name in node_reads(node) if name in tensors)
        if part and size + more > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(node)
        size += more
    yield part


def _part_model(
    model: ModelProto,
    part: list[NodeProto],
    needed: set[str],
    tensors: Mapping[str, TensorProto],
    values: Mapping[str, Array],
) -> ModelProto:
    """The nodes of a part as a model: it reads what is known, and gives what is needed."""
    read = {name for node in part for name in node_reads(node)}
    result = copy_model(model, without=["node", "initializer", "value_info", "input", "output"])
    result.graph.node.extend(part)
    result.graph.initializer.extend(tensors[name] for name in read if name in tensors)
    for name in sorted(read & values.keys()):
        kind = helper.np_dtype_to_tensor_dtype(values[name].dtype)
        result.graph.input.append(helper.make_tensor_value_info(name, kind, values[name].shape))
    known = {value.name: value for value in [*model.graph.value_info, *model.graph.output]}
    for name in (name for node in part for name in node.output if name in needed):
        result.graph.output.append(known.get(name, ValueInfoProto(name=name)))
    return result


def _run(active: onnxruntime.InferenceSession, values: Mapping[str, Array]) -> dict[str, Any]:
    names = [output.name for output in active.get_outputs()]
    found = active.run(names, {value.name: values[value.name] for value in active.get_inputs()})
    return dict(zip(names, map(copy, found), strict=True))  # what the runtime gives keeps all memory of the session alive
