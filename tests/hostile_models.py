"""Models that somebody meant to do harm with: valid networks with something changed, and networks made for the purpose.

`MUTATIONS` change a model in place (or give the bytes of another), `TRAPS` make one from nothing.  Each takes a random
generator, so that a seed names a mutant.  Start reading at `mutant`.
"""

# ruff: noqa: E501  (tables of traps)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx
from nets import block, net, plain, residual
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


def attention() -> ModelProto:
    return net("""
        attention (float[N,6,16] x) => (float[N,6,16] y)
        <float[16,16] q, float[16,16] k, float[16,16] v, float[16,16] o, float[16] g, float[16] b> {
            s = Constant<value = int64[4] {0, 6, 4, 4}>()
            z = Constant<value = int64[3] {0, 6, 16}>()
            c = Constant<value_float = 0.5>()
            a1 = MatMul(x, q)
            a2 = MatMul(x, k)
            a3 = MatMul(x, v)
            b1 = Reshape(a1, s)
            b2 = Reshape(a2, s)
            b3 = Reshape(a3, s)
            c1 = Transpose<perm = [0, 2, 1, 3]>(b1)
            c2 = Transpose<perm = [0, 2, 3, 1]>(b2)
            c3 = Transpose<perm = [0, 2, 1, 3]>(b3)
            d1 = MatMul(c1, c2)
            d2 = Mul(d1, c)
            d3 = Softmax<axis = -1>(d2)
            e1 = MatMul(d3, c3)
            e2 = Transpose<perm = [0, 2, 1, 3]>(e1)
            e3 = Reshape(e2, z)
            e4 = MatMul(e3, o)
            e5 = Add(e4, x)
            y = LayerNormalization(e5, g, b)
        }""")


def branched() -> ModelProto:
    return net("""
        branched (float[N,4] x, bool c) => (float[N,3] y) <float[8,4] w, float[8] b, float[3,8] v, float[3] d> {
            h = Gemm<transB = 1>(x, w, b)
            r = If(c) <then_branch = one () => (float[N,8] t) {t = Relu(h)}, else_branch = two () => (float[N,8] e) {e = Tanh(h)}>
            y = Gemm<transB = 1>(r, v, d)
        }""")


def recurrent() -> ModelProto:
    return net("""
        recurrent (float[5,N,4] x) => (float[5,N,3] y) <float[1,32,4] w, float[1,32,8] r, float[1,64] b, float[8,3] v> {
            h, l, m = LSTM<hidden_size = 8>(x, w, r, b)
            i = Constant<value = int64[1] {1}>()
            s = Squeeze(h, i)
            y = MatMul(s, v)
        }""")


def moving() -> ModelProto:
    return net(
        """
        moving (float[N,4,8,8] x) => (float[N,3,4,4] y) <float[8,4,1,1] w, float[3,12,1,1] v> {
            a = Conv(x, w)
            p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)
            s = Split<axis = 1, num_outputs = 2>(p)
            i = Constant<value = int64[4] {3,2,1,0}>()
            t, u = Split<axis = 1, num_outputs = 2>(p)
            g = Gather<axis = 1>(t, i)
            e = Concat<axis = 1>(g, u, t)
            y = Conv(e, v)
        }""".replace("            s = Split<axis = 1, num_outputs = 2>(p)\n", ""),
        opset=18,
    )


def quantised() -> ModelProto:
    return net("""
        quantised (float[N,3,8,8] x) => (float[N,4,8,8] y)
        <float s, uint8 z, int8[8,3,1,1] w, float t, int8 n, float u, uint8 o, float[4,8,1,1] v> {
            q = QuantizeLinear(x, s, z)
            c = QLinearConv(q, s, z, w, t, n, u, o)
            d = DequantizeLinear(c, u, o)
            y = Conv(d, v)
        }""")


def with_function() -> ModelProto:
    return onnx.parser.parse_model(_function_text())


def _function_text() -> str:
    first, second = (", ".join(f"{(k + s) * 0.37 % 1:.2f}" for k in range(32)) for s in (1, 9))
    return f"""
        <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        f (float[N,4] x) => (float[N,4] y) <float[4,8] w = {{{first}}}, float[8,4] v = {{{second}}}> {{
            h = MatMul(x, w)
            r = local.act(h)
            y = MatMul(r, v)
        }}
        <domain: "local", opset_import: ["" : 17]>
        act (a) => (b) {{ c = Relu(a) b = Tanh(c) }}"""


CORPUS: list[Callable[[], ModelProto]] = [
    plain, residual, block, attention, branched, recurrent, moving, quantised, with_function
]  # fmt: skip


# ---- what to change ------------------------------------------------------------------------------


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


# ---- traps --------------------------------------------------------------------------------------


def _with(text: str, opset: int = 17) -> ModelProto:
    """A small network with something beside it, whose result is added to its own."""
    return net(
        "trap (float[N,3,8,8] x) => (float[N,5,8,8] y) <float[8,3,1,1] w1, float[5,8,1,1] w2> {"
        f"a = Conv(x, w1)\n b = Relu(a)\n c = Conv(b, w2)\n {text}\n y = Add(c, s)\n}}",
        opset,
    )


_ONE = "m = ReduceMax<keepdims = 0>(t)\n s = Cast<to = 1>(m)"
BOMBS = {
    "constant_of_shape": "k = Constant<value = int64[2] {1000000, 1000000}>()\n t = ConstantOfShape(k)\n",
    "constant_of_shape_2e62": "k = Constant<value = int64[1] {4611686018427387904}>()\n t = ConstantOfShape(k)\n",
    "constants_below_the_limit": "k = Constant<value = int64[1] {16000000}>()\n"
    + "".join(f"t{i} = ConstantOfShape(k)\n" for i in range(60))
    + "t = Sum(" + ", ".join(f"t{i}" for i in range(60)) + ")\n",
    "expand": "v = Constant<value = float {1.5}>()\n k = Constant<value = int64[2] {1000000, 1000000}>()\n t = Expand(v, k)\n",
    "tile": "v = Constant<value = float[2] {1, 2}>()\n k = Constant<value = int64[1] {1000000000000}>()\n t = Tile(v, k)\n",
    "range": "i = Constant<value = int64 {0}>()\n j = Constant<value = int64 {1000000000000}>()\n"
    "k = Constant<value = int64 {1}>()\n t = Range(i, j, k)\n",
    "range_float": "i = Constant<value = float {0}>()\n j = Constant<value = float {1e30}>()\n"
    "k = Constant<value = float {1e-30}>()\n t = Range(i, j, k)\n",
    "pad": "v = Constant<value = float[2] {1, 2}>()\n k = Constant<value = int64[2] {500000000000, 500000000000}>()\n t = Pad(v, k)\n",
    "pad_input": "k = Constant<value = int64[8] {0,0,100000,100000,0,0,100000,100000}>()\n t = Pad(x, k)\n",
    "resize": "v = Constant<value = float[1,1,2,2] {1, 2, 3, 4}>()\n k = Constant<value = float[4] {1, 1, 1e6, 1e6}>()\n t = Resize(v, , k)\n",
    "resize_input": "k = Constant<value = float[4] {1, 1, 1e6, 1e6}>()\n t = Resize(x, , k)\n",
    "one_hot": "v = Constant<value = int64[3] {0, 1, 2}>()\n d = Constant<value = int64 {1000000000000}>()\n"
    "o = Constant<value = float[2] {0, 1}>()\n t = OneHot(v, d, o)\n",
    "random_normal": "t = RandomNormal<shape = [1000000, 1000000]>()\n",
    "outer_product": "k = Constant<value = int64[2] {1000000, 1}>()\n l = Constant<value = int64[2] {1, 1000000}>()\n"
    "u = ConstantOfShape(k)\n v = ConstantOfShape(l)\n t = Mul(u, v)\n",
    "outer_matmul": "k = Constant<value = int64[2] {1000000, 1}>()\n l = Constant<value = int64[2] {1, 1000000}>()\n"
    "u = ConstantOfShape(k)\n v = ConstantOfShape(l)\n t = MatMul(u, v)\n",
    "doubling_concat": "t0 = Constant<value = float[1] {1}>()\n"
    + "".join(f"t{i + 1} = Concat<axis = 0>(t{i}, t{i})\n" for i in range(42))
    + "t = Identity(t42)\n",
    "doubling_input": "t0 = Identity(x)\n"
    + "".join(f"t{i + 1} = Concat<axis = 0>(t{i}, t{i})\n" for i in range(42))
    + "t = Identity(t42)\n",
    "squaring": "".join(
        ["t0 = Constant<value = int64[1] {7}>()\n", *(f"t{i + 1} = Mul(t{i}, t{i})\n" for i in range(9)), "t = ConstantOfShape(t9)\n"]
    ),
    "depth_of_gather": "k = Constant<value = int64[1] {5000}>()\n z = Constant<value = int64[1] {0}>()\n"
    "i = Expand(z, k)\n t = Gather<axis = 1>(x, i)\n u = Gather<axis = 0>(t, i)\n v = Gather<axis = 2>(u, i)\n"
    "r = ReduceMax<keepdims = 0>(v)\n s0 = Cast<to = 1>(r)\n",
    "slow_matmul": "k = Constant<value = int64[2] {10000, 10000}>()\n f = Constant<value = float[1] {1}>()\n u = Expand(f, k)\n"
    "v = MatMul(u, u)\n w = MatMul(v, v)\n t = MatMul(w, w)\n",
    "slow_convolution": "k = Constant<value = int64[4] {1, 1, 2000, 2000}>()\n l = Constant<value = int64[4] {8, 1, 500, 500}>()\n"
    "f = Constant<value = float[1] {1}>()\n u = Expand(f, k)\n v = Expand(f, l)\n t = Conv(u, v)\n",
    "slow_input_convolution": "l = Constant<value = int64[4] {64, 3, 301, 301}>()\n f = Constant<value = float[1] {1}>()\n"
    "v = Expand(f, l)\n p = Constant<value = int64[8] {0, 0, 500, 500, 0, 0, 500, 500}>()\n z = Pad(x, p)\n t = Conv(z, v)\n",
    "top_k": "k = Constant<value = int64[1] {4611686018427387904}>()\n t, i = TopK(x, k)\n",
    "eye": "k = Constant<value = int64[2] {100000, 100000}>()\n u = ConstantOfShape(k)\n t = EyeLike(u)\n",
    "reshape_overflow": "k = Constant<value = int64[4] {4294967296, 4294967296, 4, 1}>()\n t = Reshape(x, k)\n",
    "split_many": "k = Constant<value = int64[1] {1}>()\n t = Unsqueeze(x, k)\n",
    "tile_input": "k = Constant<value = int64[4] {100000, 100000, 1, 1}>()\n t = Tile(x, k)\n",
    "expand_input": "k = Constant<value = int64[5] {1000000, 1, 3, 8, 8}>()\n t = Expand(x, k)\n",
    "expand_computed": "h = Shape(x)\n q = Mul(h, h)\n r = Mul(q, q)\n i = Mul(r, r)\n f = Constant<value = float[1] {1}>()\n t = Expand(f, i)\n",
    "range_computed": "h = Size(x)\n q = Mul(h, h)\n r = Mul(q, q)\n i = Constant<value = int64 {0}>()\n j = Constant<value = int64 {1}>()\n"
    "t = Range(i, r, j)\n",
    "pool": "p = MaxPool<kernel_shape = [1, 1], pads = [1000000000, 0, 1000000000, 0]>(x)\n t = Identity(p)\n",
    "transposed": "v = Constant<value = float[3,1,1,1] {1, 2, 3}>()\n"
    "t = ConvTranspose<strides = [100000, 100000], output_padding = [9, 9]>(x, v)\n",
    "conv_dilated": "v = Constant<value = float[1,3,2,2] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>()\n"
    "t = Conv<pads = [2000000000, 2000000000, 2000000000, 2000000000], dilations = [1000000000, 1000000000]>(x, v)\n",
    "space": "t = SpaceToDepth<blocksize = 9223372036854775807>(x)\n",
    "depth_zero": "t = DepthToSpace<blocksize = 0>(x)\n",
    "einsum": "t = Einsum<equation = \"abcd,efgh,ijkl,mnop->abcdefghijklmnop\">(x, x, x, x)\n",
    "string_split": "v = Constant<value_string = \"aaaa\">()\n t = Constant<value_float = 1.0>()\n",
}  # fmt: skip


def big(rng: Random) -> ModelProto:
    name = rng.choice(sorted(BOMBS))
    return big_named(name)


def big_named(name: str) -> ModelProto:
    text = BOMBS[name]
    return _with(text + (_ONE if "s0 =" not in text else "s = Identity(s0)"), 20 if "Resize" in text else 17)


def loop(rng: Random) -> ModelProto:
    """A loop that runs for ever, on constants or on the input."""
    start = rng.choice(["x", "z"])
    body = rng.choice(["o = Identity(v)", "o = Add(v, v)", "o = Concat<axis = 0>(v, v)"])
    return net(f"""
        loop (float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] u> {{
            n = Constant<value = int64 {{{rng.choice([10**6, 10**12, 2**63 - 1])}}}>()
            t = Constant<value = bool {{1}}>()
            z = Constant<value = float[1,4] {{1, 2, 3, 4}}>()
            f = Loop(n, t, {start}) <body = b (int64 i, bool c, float[a,4] v) => (bool d, float[e,4] o) {{d = Identity(c) {body}}}>
            m = ReduceMax<keepdims = 0>(f)
            h = MatMul(x, w)
            r = Relu(h)
            g = MatMul(r, u)
            y = Add(g, m)
        }}""")


def nested_branches(rng: Random) -> ModelProto | bytes:
    """If in If in If, written by hand where protobuf would not."""
    depth = rng.choice([5, 20, 30, 34, 500, 5000])
    inner = helper.make_graph([helper.make_node("Relu", ["h"], ["r0"])], "g", [], [helper.make_tensor_value_info("r0", 1, None)])
    data = inner.SerializeToString()
    for level in range(1, depth):
        shell = NodeProto(op_type="If", input=["c"], output=[f"r{level}"]).SerializeToString()
        for branch in ("then_branch", "else_branch"):
            if branch == "then_branch" or depth <= 5:
                entry = AttributeProto(name=branch, type=AttributeProto.GRAPH).SerializeToString() + _field(6, data)
                shell += _field(5, entry)
            else:
                flat = helper.make_graph(
                    [helper.make_node("Tanh", ["h"], ["q"])], "e", [], [helper.make_tensor_value_info("q", 1, None)]
                )
                shell += _field(5, helper.make_attribute(branch, flat).SerializeToString())
        outer = GraphProto(name="g", output=[helper.make_tensor_value_info(f"r{level}", 1, None)]).SerializeToString()
        data = _field(1, shell) + outer
    head = branched()
    gemms = [node for node in head.graph.node if node.op_type == "Gemm"]
    gemms[1].input[0] = f"r{depth - 1}"
    del head.graph.node[:]
    head.graph.node.append(gemms[0])
    graph = (
        head.graph.SerializeToString() + data[: len(data)] if depth == 1 else head.graph.SerializeToString() + _first_node(data)
    )
    graph += _field(1, gemms[1].SerializeToString())
    head.ClearField("graph")
    return head.SerializeToString() + _field(7, graph)


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes as protobuf writes it."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _first_node(graph: bytes) -> bytes:
    """The node field that a graph begins with."""
    size, shift, at = 0, 0, 1
    while True:
        size |= (graph[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if graph[at - 1] < 128:
            return graph[: at + size]


def functions(rng: Random) -> ModelProto:
    """Functions that call themselves, or each the next twice."""
    model = with_function()
    kind = rng.choice(["itself", "two", "doubling", "chain", "overloads"])
    act = model.functions[0]
    if kind == "itself":
        act.node[0].op_type, act.node[0].domain = "act", "local"
        act.opset_import.add(domain="local", version=1)
        return model
    count = {"two": 2, "doubling": 40, "chain": 3000, "overloads": 5}[kind]
    del model.functions[:]
    for k in range(count):
        following = {"two": (k + 1) % 2}.get(kind, k + 1)
        last = following == count
        call = {"op_type": "Relu", "domain": ""} if last else {"op_type": f"act{following}", "domain": "local"}
        body = [NodeProto(input=["a"], output=["c"], **call)]
        body.append(NodeProto(input=["c"], output=["b"], **(call if kind == "doubling" else {"op_type": "Tanh"})))
        name = "act" if k == 0 or kind == "overloads" else f"act{k}"
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        model.functions.append(helper.make_function("local", name, ["a"], ["b"], body, imports))
    return model


def long_chain(rng: Random) -> ModelProto:
    count = rng.choice([3000, 20_000])
    kind = rng.choice(["Relu", "Add", "Identity", "Shape"])
    model = plain()
    last = model.graph.node[1].output[0]
    extra = []
    for k in range(count):
        operands = [last, last] if kind == "Add" else [last]
        extra.append(helper.make_node("Relu" if kind == "Shape" else kind, operands, [f"l{k}"]))
        if kind == "Shape":
            extra.append(helper.make_node("Shape", [f"l{k}"], [f"s{k}"]))
        last = f"l{k}"
    model.graph.node[2].input[0] = last
    rest = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*rest[:2], *extra, *rest[2:]])
    return model


def long_reshapes(rng: Random) -> ModelProto:
    """Each target hangs on the reshape before."""
    count = rng.choice([50, 400])
    lines, last = [], "c"
    for k in range(count):
        lines.append(f"q{k} = Shape({last})\n u{k} = Mul(q{k}, o)\n l{k} = Reshape({last}, u{k})\n r{k} = Relu(l{k})")
        last = f"r{k}"
    return _with("o = Constant<value = int64[4] {1, 1, 1, 1}>()\n" + "\n".join(lines) + f"\n s = Identity({last})")


def many_weights(rng: Random) -> ModelProto:
    model = plain()
    for k in range(rng.choice([10_000, 60_000])):
        model.graph.initializer.add(name=f"n{k}", data_type=1, dims=[1], raw_data=b"\0\0\0\0")
    return model


def wide_fan(rng: Random) -> ModelProto:
    count = rng.choice([200, 2000])
    lines = [f"f{k} = Conv(x, w1)" for k in range(count)]
    return _with("\n".join(lines) + f"\n j = Concat<axis = 1>({', '.join(f'f{k}' for k in range(count))})\n"
                 "m = ReduceMax<keepdims = 0>(j)\n s = Cast<to = 1>(m)")  # fmt: skip


def huge_lists(rng: Random) -> ModelProto:
    model = plain()
    node = model.graph.node[rng.choice([0, 2])]
    node.attribute.append(helper.make_attribute(rng.choice(["pads", "strides", "names"]), [1] * 2_000_000))
    return model


def huge_strings(rng: Random) -> ModelProto:
    model = plain()
    model.graph.name = model.doc_string = "x" * 10_000_000
    node = model.graph.node[0]
    node.attribute.append(helper.make_attribute("auto_pad", "x" * 5_000_000))
    return model


def huge_rank(rng: Random) -> ModelProto:
    model = plain()
    shape = model.graph.input[0].type.tensor_type.shape
    for _ in range(100_000):
        shape.dim.add().dim_value = 1
    return model


def giant_input(rng: Random) -> ModelProto:
    model = plain()
    sizes = rng.choice(
        [[1, 3, 100_000, 100_000], [2**40, 3, 8, 8], [1, 3, 2**31, 2**31], [64, 3, 4000, 4000], [1, 3, 2**62, 2**62]]
    )
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
        dim.dim_value = size
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def empty(rng: Random) -> ModelProto:
    model = ModelProto(ir_version=10)
    model.opset_import.add(version=17)
    model.graph.name = "g"
    if rng.random() < 0.5:
        model.graph.input.append(helper.make_tensor_value_info("x", 1, rng.choice([None, [], [1], [2**40]])))
    if rng.random() < 0.5:
        model.graph.output.append(helper.make_tensor_value_info("x", 1, [1]))
    return model


def scan(rng: Random) -> ModelProto:
    return net(f"""
        scan (float[{rng.choice(["N", "1000000000"])},4] x) => (float[a,3] y) <float[4,8] w, float[8,3] u> {{
            z = Constant<value = float[4] {{1, 2, 3, 4}}>()
            f, g = Scan<num_scan_inputs = {rng.choice([1, 1, 5, 2**40])}, body = b (float[4] s, float[4] v) => (float[4] o, float[4] q)
                {{o = Add(s, v) q = Identity(o)}}>(z, x)
            h = MatMul(g, w)
            r = Relu(h)
            y = MatMul(r, u)
        }}""")


TRAPS: list[Callable[[Random], ModelProto | bytes]] = [
    big, loop, nested_branches, functions, long_chain, long_reshapes, many_weights, wide_fan, huge_lists, huge_strings, huge_rank,
    giant_input, empty, scan,
]  # fmt: skip


# ---- mutants ------------------------------------------------------------------------------------


def mutant(seed: int) -> tuple[str, bytes]:
    """The kind and the bytes of the mutant that a seed names: one to three changes to a network, or (one in four) a trap."""
    rng = Random(seed)
    if seed % 4 == 3:
        trap = TRAPS[seed // 4 % len(TRAPS)]
        made = trap(rng)
        return trap.__name__, made if isinstance(made, bytes) else made.SerializeToString()
    model = rng.choice(CORPUS)()
    changes = [MUTATIONS[(seed - seed // 4) % len(MUTATIONS)], *rng.choices(MUTATIONS, k=rng.choice([0, 0, 1, 2]))]
    for change in changes:
        try:
            data = change(model, rng)
        except (ValueError, IndexError, TypeError, MemoryError):  # an earlier change left nothing to change
            continue
        if data is not None:
            return change.__name__, data
    return changes[0].__name__, model.SerializeToString()


def populate(folder: Path, secret: Path) -> None:
    """What external data may name: a file, one in a folder, and ways out."""
    import os

    (folder / "w.bin").write_bytes(np.random.default_rng(0).random(4096).astype(np.float32).tobytes())
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(secret / "canary")
    (folder / "linked").symlink_to(secret)
    os.mkfifo(folder / "fifo")
