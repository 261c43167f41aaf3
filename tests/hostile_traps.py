"""Models made to do harm: bombs, loops, recursion, giant sizes.  Start reading at `TRAPS`."""

# ruff: noqa: E501  (tables of traps)
from __future__ import annotations

from collections.abc import Callable
from random import Random

from hostile_networks import branched, with_function
from nets import net, plain
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper


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
