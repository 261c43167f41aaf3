"""Changes that make a sound model hostile, in place or in its bytes.  Start reading at `MUTATIONS`."""

# ruff: noqa: E501  (tables)
from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from hostile_networks import CORPUS
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

SIZES = [0, -1, 1, 2, 3, 5, 64, 4097, 10**6, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63)]
NAMES = [
    "",
    " ",
    "x",
    "y",
    "w1",
    "\n",
    "[/red]",
    "[bold]",
    "\x1b[31m",
    "../../etc/passwd",
    "a" * 10_000,
    "é\u202e",
    "\0",
    "%s%n{0}",
]
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
DOMAINS = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "graphprune", "nowhere", "\n"]


def graphs(graph: GraphProto) -> list[GraphProto]:
    """A graph and all inside it."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            found += graphs(attribute.g) if attribute.type == AttributeProto.GRAPH else []
    return found


def nodes(model: ModelProto) -> list[NodeProto]:
    return [node for graph in graphs(model.graph) for node in graph.node] + [n for f in model.functions for n in f.node]


def pick(rng: Random, items: object) -> object:
    found = list(items)  # type: ignore[call-overload]
    return rng.choice(found) if found else None


def weight_dims(model: ModelProto, rng: Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(SIZES)
    else:
        tensor.dims.extend(rng.choices(SIZES, k=rng.choice([1, 2, 70])))


def weight_dims_with_data(model: ModelProto, rng: Random) -> None:
    """A weight of another shape that holds what it declares."""
    tensor = rng.choice(model.graph.initializer)
    dims = list(tensor.dims) or [1]
    dims[rng.randrange(len(dims))] = rng.choice([0, 1, 2, 3, 5])
    if rng.random() < 0.3:
        dims = dims[: rng.randrange(len(dims) + 1)]
    tensor.CopyFrom(numpy_helper.from_array(np.random.default_rng(1).random(dims).astype(np.float32), tensor.name))


def value_dims(model: ModelProto, rng: Random) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for value in rng.sample(values, rng.choice([1, len(values)])):
        shape = value.type.tensor_type.shape
        for dim in shape.dim:
            if rng.random() < 0.6:
                dim.dim_value = rng.choice(SIZES)
        if rng.random() < 0.3:
            shape.dim.add().dim_param = rng.choice(NAMES)


def stale_value_info(model: ModelProto, rng: Random) -> None:
    for node in model.graph.node:
        for name in node.output:
            value = helper.make_tensor_value_info(name, rng.choice([1, 7, 99]), rng.choices(SIZES[2:], k=rng.randrange(6)))
            model.graph.value_info.extend([value] * rng.choice([1, 2]))


def element_types(model: ModelProto, rng: Random) -> None:
    kind = rng.choice([0, 2, 7, 8, 9, 10, 14, 16, 17, 21, 22, 23, 24, 25, 99, -1, 2**31 - 1])
    if rng.random() < 0.5:
        rng.choice(model.graph.initializer).data_type = kind
    else:
        value = rng.choice([*model.graph.input, *model.graph.output])
        value.type.tensor_type.elem_type = kind


def raw_length(model: ModelProto, rng: Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    data = tensor.raw_data or b"\0"
    tensor.raw_data = rng.choice([data[:-1], data + b"\0", b"", data * 3])


def typed_data(model: ModelProto, rng: Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    for field in rng.sample(["float_data", "int32_data", "int64_data", "double_data", "uint64_data"], 2):
        getattr(tensor, field).extend([1] * rng.choice([1, 2, helper.np.prod(tensor.dims, dtype=int) % 100_000, 1000]))


def float_values(model: ModelProto, rng: Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    array = numpy_helper.to_array(tensor).copy()
    if array.dtype.kind == "f" and array.size:
        array.flat[:: rng.choice([1, 7])] = rng.choice([np.nan, np.inf, -np.inf, 3e38, 1e-45])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def integer_constants(model: ModelProto, rng: Random) -> None:
    """Shapes, axes and indices that stand in constants."""
    tensors = [a.t for n in nodes(model) for a in n.attribute if a.name == "value"]
    tensors += [t for t in model.graph.initializer if t.data_type == TensorProto.INT64]
    if not tensors:
        return weight_dims(model, rng)
    tensor = rng.choice(tensors)
    array = numpy_helper.to_array(tensor).copy()
    if array.dtype == np.int64 and array.size:
        array.flat[rng.randrange(array.size)] = rng.choice(SIZES)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return None


def external(model: ModelProto, rng: Random) -> None:
    for tensor in rng.sample(list(model.graph.initializer), rng.choice([1, len(model.graph.initializer)])):
        data = tensor.raw_data
        if rng.random() < 0.8:
            tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        location = rng.choice(
            ["w.bin", "../secret/canary", "link", "linked/canary", "sub/../w.bin", "/etc/passwd", "", ".", "..", "\0", "fifo",
             "w.bin\0", "a" * 5000, "model.onnx", "C:\\x", "file:///etc/passwd", "/dev/zero", "/proc/self/mem", "sub"]
        )  # fmt: skip
        entries = {"location": location}
        if rng.random() < 0.5:
            entries["offset"] = str(rng.choice([*SIZES, "x", "1e3", "٣", " 1", "9" * 5000]))
        if rng.random() < 0.5:
            entries["length"] = str(rng.choice([*SIZES, len(data), "", "0x10", "9" * 5000]))
        for key, value in entries.items():
            for _ in range(rng.choice([1, 1, 2])):
                tensor.external_data.add(key=key, value=value)
        if rng.random() < 0.2:
            tensor.dims[:] = [rng.choice(SIZES)]


def external_attribute(model: ModelProto, rng: Random) -> None:
    """External data where no initializer is: in constants, in branches, in functions, in sparse tensors."""
    tensor = TensorProto(name="t", data_type=1, dims=[100], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=rng.choice(["../secret/canary", "/etc/passwd", "link"]))
    node = helper.make_node("Constant", [], ["t_out"], value=tensor)
    place = rng.randrange(4)
    if place == 0 and len(graphs(model.graph)) > 1:
        graphs(model.graph)[1].node.insert(0, node)
    elif place == 1 and model.functions:
        model.functions[0].node.insert(0, node)
    elif place == 2:
        sparse = model.graph.sparse_initializer.add(dims=[100])
        sparse.values.CopyFrom(tensor)
        sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(100), "i"))
    else:
        model.graph.node.insert(0, node)
        model.graph.output.append(helper.make_tensor_value_info("t_out", 1, [100]))


def cycle(model: ModelProto, rng: Random) -> None:
    outputs = [name for node in model.graph.node for name in node.output]
    for _ in range(rng.choice([1, 3])):
        node = rng.choice([n for n in model.graph.node if n.input])
        node.input[rng.randrange(len(node.input))] = rng.choice(outputs)


def duplicate(model: ModelProto, rng: Random) -> None:
    field = rng.choice(["node", "initializer", "input", "output", "value_info"])
    entries = getattr(model.graph, field)
    if entries:
        entries.append(rng.choice(entries))


def drop(model: ModelProto, rng: Random) -> None:
    field = rng.choice(["node", "initializer", "input", "output"])
    entries = getattr(model.graph, field)
    for _ in range(rng.choice([1, 1, len(entries)])):
        if entries:
            del entries[rng.randrange(len(entries))]


def rename(model: ModelProto, rng: Random) -> None:
    """The same new name wherever the old one stands, or only here and there."""
    old = rng.choice([v.name for v in model.graph.input] + [n for node in nodes(model) for n in node.output])
    new, share = rng.choice(NAMES), rng.choice([1, 1, 0.5])
    for node in nodes(model):
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name == old and rng.random() <= share:
                    names[k] = new
    for value in [*model.graph.input, *model.graph.output]:
        if value.name == old:
            value.name = new


def node_names(model: ModelProto, rng: Random) -> None:
    for node in nodes(model):
        node.name = rng.choice(NAMES)


def weight_names(model: ModelProto, rng: Random) -> None:
    """Weights are what tables and messages name."""
    new = {t.name: rng.choice(NAMES[5:]) + str(k) for k, t in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = new.get(name, name)


def strings_not_utf8(model: ModelProto, rng: Random) -> bytes:
    data = bytearray(model.SerializeToString())
    names = [
        n.encode() for n in {*(t.name for t in model.graph.initializer), *(n.op_type for n in model.graph.node), "Conv", "x"}
    ]
    name = rng.choice([n for n in names if len(n) > (rng.random() < 0.5)] or names)
    at = 0
    while (at := bytes(data).find(name, at)) >= 0:
        data[at] = 0xFF
        at += 1
    return bytes(data)


def inputs(model: ModelProto, rng: Random) -> None:
    node = rng.choice(nodes(model))
    change = rng.randrange(4)
    if change == 0:
        del node.input[rng.randrange(len(node.input) + 1) :]
    elif change == 1:
        node.input.extend([rng.choice([t.name for t in model.graph.initializer])] * rng.choice([1, 40]))
    elif change == 2 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(["", "nowhere", *(t.name for t in model.graph.initializer)])
    elif node.output:
        node.output.extend(["extra", ""] if rng.random() < 0.5 else [node.output[0]])


def operator(model: ModelProto, rng: Random) -> None:
    for _ in range(rng.choice([1, 1, 4])):
        node = rng.choice(nodes(model))
        if rng.random() < 0.7:
            node.op_type = rng.choice(OPERATORS)
            if rng.random() < 0.5:
                del node.attribute[:]
        else:
            node.domain = rng.choice(DOMAINS)


def operator_everywhere(model: ModelProto, rng: Random) -> None:
    """A network around one operator, with operands of several kinds."""
    del model.graph.node[1:]
    first, name = model.graph.node[0], rng.choice(OPERATORS)
    schema = onnx.defs.get_schema(name)
    initializers = [t.name for t in model.graph.initializer]
    count = rng.randint(schema.min_input, min(schema.max_input, schema.min_input + 3))
    operands = [first.output[0], *rng.choices([first.output[0], *initializers, "k"], k=max(0, count - 1))][:count]
    model.graph.initializer.append(numpy_helper.from_array(np.array(rng.choices(SIZES[:9], k=rng.randrange(4)), np.int64), "k"))
    node = helper.make_node(name, operands, [f"o{k}" for k in range(max(1, schema.min_output))])
    for key, attribute in schema.attributes.items():
        if attribute.required or rng.random() < 0.3:
            kind = attribute.type.value
            values = {1: 0.5, 2: rng.choice(SIZES), 3: "x", 6: [0.5], 7: rng.choices(SIZES, k=2), 8: ["x"]}
            if kind in values:
                node.attribute.append(helper.make_attribute(key, values[kind], attr_type=kind))
    model.graph.node.append(node)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("o0", 1, None))


def opset(model: ModelProto, rng: Random) -> None:
    entry = rng.choice(model.opset_import)
    entry.version = rng.choice([-1, 0, 1, 5, 7, 9, 11, 13, 21, 25, 26, 99, 2**40, 2**63 - 1])
    if rng.random() < 0.3:
        model.opset_import.add(domain=rng.choice(DOMAINS), version=rng.choice([1, 3, 21]))
    if rng.random() < 0.3:
        model.ir_version = rng.choice([-1, 1, 3, 12, 99, 2**40])


def attribute(model: ModelProto, rng: Random) -> None:
    found = [(n, a) for n in nodes(model) for a in n.attribute]
    if not found:
        return inputs(model, rng)
    for _ in range(rng.choice([1, 1, 3])):
        node, entry = rng.choice(found)
        change = rng.randrange(6)
        if change <= 1 and entry.ints:
            entry.ints[rng.randrange(len(entry.ints))] = rng.choice(SIZES)
        elif change <= 2 and entry.type == AttributeProto.INT:
            entry.i = rng.choice(SIZES)
        elif change == 3:
            entry.type = rng.choice(range(15))
        elif change == 4:
            entry.name = rng.choice(["axis", "group", "kernel_shape", "perm", "nonsense"])
        elif entry.ints:
            entry.ints.extend(rng.choices(SIZES, k=rng.choice([1, 3, 100_000])))
        else:
            node.attribute.append(entry)
    return None


def new_attribute(model: ModelProto, rng: Random) -> None:
    node = rng.choice(nodes(model))
    name = rng.choice(["group", "axis", "pads", "strides", "dilations", "kernel_shape", "auto_pad", "transA", "transB", "hidden_size",
                       "direction", "layout", "output_shape", "alpha", "epsilon"])  # fmt: skip
    value = rng.choice(
        [rng.choice(SIZES), rng.choices(SIZES, k=2), rng.choices(SIZES, k=4), "SAME_UPPER", "x", [0.1], 0.5, [1, 1, 1, 1]]
    )
    node.attribute.append(helper.make_attribute(name, value))


def types(model: ModelProto, rng: Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = rng.randrange(5)
    tensor = helper.make_tensor_type_proto(1, [2])
    if kind == 0:
        value.ClearField("type")
    elif kind == 1:
        value.type.CopyFrom(helper.make_sequence_type_proto(tensor))
    elif kind == 2:
        value.type.CopyFrom(helper.make_optional_type_proto(tensor))
    elif kind == 3:
        value.type.CopyFrom(helper.make_sparse_tensor_type_proto(1, [2]))
    else:
        value.type.tensor_type.ClearField("shape")


def sparse(model: ModelProto, rng: Random) -> None:
    entry = model.graph.sparse_initializer.add()
    entry.dims.extend(rng.choices(SIZES, k=2))
    entry.values.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), rng.choice(["sparse", "w1", ""])))
    entry.indices.CopyFrom(numpy_helper.from_array(np.array(rng.choices(SIZES, k=3), np.int64), ""))
    if rng.random() < 0.5:
        model.graph.node.append(helper.make_node("Add", ["sparse", "sparse"], ["dense"]))
        model.graph.output.append(helper.make_tensor_value_info("dense", 1, None))


def quantisation(model: ModelProto, rng: Random) -> None:
    for name in ("w1", "nowhere", ""):
        entry = model.graph.quantization_annotation.add(tensor_name=name)
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=rng.choice(["w1", "nowhere", ""]))


def metadata(model: ModelProto, rng: Random) -> None:
    """What graphprune writes into files itself, written by somebody else."""
    key = rng.choice(["graphprune.options", "graphprune.branch", "graphprune.version", "k", ""])
    value = rng.choice(["{", "[/red]", "\x1b[31m", "a/then_branch", "If_r/then_branch", "x" * 10**6, "/"])
    for entry in rng.choice([[model], nodes(model), [model.graph], [model, model, *nodes(model)]]):
        entry.metadata_props.add(key=key, value=value)
    model.producer_name = rng.choice(NAMES)
    model.doc_string = rng.choice(NAMES)


def own_domain(model: ModelProto, rng: Random) -> None:
    """A stand-in for If that graphprune did not make."""
    outputs = [name for node in model.graph.node for name in node.output]
    node = helper.make_node("If", rng.choices(outputs, k=rng.choice([0, 1, 3])), ["own"], domain="graphprune")
    branch = rng.choice([b"", b"\xff\xff", GraphProto(name="g").SerializeToString()])
    for name in rng.sample(["then_branch", "else_branch"], rng.choice([0, 1, 2])):
        node.attribute.append(helper.make_attribute(name, branch))
    model.graph.node.append(node)
    model.opset_import.add(domain="graphprune", version=1)
    model.graph.output.append(helper.make_tensor_value_info("own", 1, None))


def flip_bytes(model: ModelProto, rng: Random) -> bytes:
    data = bytearray(model.SerializeToString())
    for _ in range(rng.choice([1, 2, 8, 64])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def flip_structure(model: ModelProto, rng: Random) -> bytes:
    """Bytes of the part that is not weights."""
    for tensor in model.graph.initializer:
        tensor.name, tensor.raw_data = tensor.name, tensor.raw_data
    data = bytearray(model.SerializeToString())
    payloads = [(data.find(t.raw_data), len(t.raw_data)) for t in model.graph.initializer if len(t.raw_data) > 8]
    places = [k for k in range(len(data)) if not any(start <= k < start + size for start, size in payloads)]
    for _ in range(rng.choice([1, 1, 2, 4])):
        k = rng.choice(places)
        data[k] = rng.choice([data[k] ^ (1 << rng.randrange(8)), 0, 0xFF, 0x7F, 0x80])
    return bytes(data)


def splice(model: ModelProto, rng: Random) -> bytes:
    data = model.SerializeToString()
    other = rng.choice(CORPUS)().SerializeToString()
    a, b = sorted(rng.sample(range(len(data)), 2))
    c = rng.randrange(len(other))
    return rng.choice([data[:a], data[:a] + data[b:], data[:b] + data[a:], data[:a] + other[c:], data + other, data + data])


MUTATIONS: list[Callable[[ModelProto, Random], bytes | None]] = [
    weight_dims, weight_dims_with_data, value_dims, stale_value_info, element_types, raw_length, typed_data, float_values,
    integer_constants, external, external_attribute, cycle, duplicate, drop, rename, node_names, weight_names, strings_not_utf8,
    inputs, operator, operator_everywhere, opset, attribute, new_attribute, types, sparse, quantisation, metadata, own_domain,
    flip_bytes, flip_structure, splice,
]  # fmt: skip
