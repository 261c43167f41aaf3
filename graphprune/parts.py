"""Running a network some nodes at a time, in memory for a few of its weights.

The nodes are cut into consecutive parts with bounded weights; each part is a model of its own, whose inputs are what earlier ones
computed.  What no later part reads is forgotten.  Start reading at `run_in_parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from .graph import Array, copy_model, node_reads, to_array
from .model_file import byte_count, fits_message, weight_bytes
from .runtime import check_runnable, run, session

Runner = Callable[[ModelProto, dict[str, Array]], dict[str, Array]]

PART_BYTES = 2**24
"""Bytes of weights in a part, but for one that a single node needs.  In such parts a network of several hundred megabytes runs in
half of the time and a fifth of the memory that it takes as a whole."""

HANDED_ON: Container[int | None] = (
    None,  # the runtime knows
    TensorProto.BOOL,
    *(TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)
"""Types of values that the runtime gives and takes as arrays; sequences and strings, for one, are none of them."""


def runner_of(models: Sequence[ModelProto], types: Iterable[int | None]) -> Runner:
    """What runs models that are compared: as a whole where they are small, or where parts cannot hand on what one computes."""
    if not all(map(fits_message, models)):
        return run_in_parts
    small = max(map(weight_bytes, models)) <= PART_BYTES
    return run if small or not all(kind in HANDED_ON for kind in types) else run_in_parts


def run_in_parts(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """All outputs of a model by name, as `graphprune.runtime.run` gives them without optimisation.  Raises what that raises."""
    check_runnable(model, feeds)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    parts = list(_parts(model.graph.node, tensors))
    reads = [{name for node in part for name in node_reads(node)} for part in parts]
    outputs = {value.name for value in model.graph.output}
    needed = outputs.union(*reads[1:])
    values: dict[str, Any] = {name: array for name, array in feeds.items() if name in needed or name in reads[0]}
    for number, part in enumerate(parts):
        if any(name in needed for node in part for name in node.output):
            values |= _run(_part_model(model, part, reads[number], needed, tensors, values), values)
        needed = outputs.union(*reads[number + 1 :])
        values = {name: array for name, array in values.items() if name in needed}
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
        part, size = [*part, node], size + more
    yield part


def _part_model(
    model: ModelProto,
    part: list[NodeProto],
    read: set[str],
    needed: set[str],
    tensors: Mapping[str, TensorProto],
    values: Mapping[str, Array],
) -> ModelProto:
    """The nodes of a part as a model: it reads what is known, and gives what is needed."""
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


def _run(model: ModelProto, values: Mapping[str, Array]) -> dict[str, Any]:
    active = session(model, optimize=False)
    names = [output.name for output in active.get_outputs()]
    found = active.run(names, {value.name: values[value.name] for value in model.graph.input})
    return dict(zip(names, map(copy, found), strict=True))  # what the runtime gives keeps all memory of the session alive
