"""Whether two models are the same computation, without running them: equal operators on equal operands.

Each value gets a number that hangs on nothing but how it is computed: the operator, its attributes, the numbers of what it reads
(value numbering; Alpern, Wegman and Zadeck 1988, "Detecting equality of variables in programs").  Names of nodes and values, the
order of nodes, dead code, and whether a constant is an initializer or a node do not matter.  Start reading at `same_computation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from onnx import ModelProto, NodeProto, TensorProto

from .constants import constant_tensor
from .external import is_external
from .graph import canonical_domain, captured_names, subgraphs
from .weights_file import as_raw

ABSENT = b""
"""The number of an optional input that is left out."""


def same_computation(one: ModelProto, other: ModelProto) -> bool:
    """Whether all outputs of two models are computed by the same operators from the same inputs and constants.

    False says nothing: other operators may compute the same.
    """
    try:
        return _outputs(one) == _outputs(other)
    except KeyError:  # nodes out of order, sparse constants
        return False


def _outputs(model: ModelProto) -> dict[str, bytes]:
    """The number of each output.  Raises KeyError where something reads what has none."""
    opsets = {canonical_domain(entry.domain): entry.version for entry in model.opset_import}
    functions = {(function.domain, function.name): function.SerializeToString(deterministic=True) for function in model.functions}
    numbers = {value.name: _number(b"input", value.name.encode(), value.type.SerializeToString()) for value in model.graph.input}
    numbers |= {tensor.name: _of_constant(tensor) for tensor in model.graph.initializer}
    numbers[""] = ABSENT
    for node in model.graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            numbers[node.output[0]] = _of_constant(tensor)
            continue
        domain = canonical_domain(node.domain)
        body = functions.get((node.domain, node.op_type), b"")
        operator = f"{domain} {opsets.get(domain)} {node.op_type} {len(node.output)}".encode()
        number = _number(operator, body, _attributes(node), *_read(node, numbers))
        numbers |= {name: _number(number, str(place).encode()) for place, name in enumerate(node.output) if name}
    return {value.name: numbers[value.name] for value in model.graph.output}


def _read(node: NodeProto, numbers: Mapping[str, bytes]) -> list[bytes]:
    """The numbers of what a node reads, and, with their names, of what its bodies capture."""
    read = [numbers[name] for name in node.input]
    while read and read[-1] == ABSENT:
        read.pop()
    captured = sorted(name for body in subgraphs(node) for name in captured_names(body))
    return [*read, *(part for name in captured for part in (name.encode(), numbers[name]))]


def _attributes(node: NodeProto) -> bytes:
    parts = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return _number(*parts)


def _of_constant(tensor: TensorProto) -> bytes:
    """Of large weights that are still in their file, the place there."""
    copy = as_raw(tensor)
    kind = f"{tensor.data_type} {list(tensor.dims)}".encode()
    if is_external(tensor):
        return _number(b"in file", kind, *(f"{entry.key}={entry.value}".encode() for entry in tensor.external_data))
    return _number(b"constant", kind, copy.raw_data, *copy.string_data)


def _number(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
