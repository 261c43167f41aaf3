"""Bringing models into normal form: what changes, and that it changes once."""

from __future__ import annotations

import numpy as np
import onnx
import oracle
import pytest
from halving import groups, halve, shapes
from nets import fill_weights, initializer, net, operators, plain, residual
from onnx import ModelProto, TensorProto, helper, numpy_helper

import graphprune


def normal(model: ModelProto) -> ModelProto:
    """The normal form; the same outputs as before, and normal already."""
    imported = graphprune.load(model).model
    feeds = oracle.random_feeds(imported)
    for name, before in oracle.run(model, feeds).items():
        np.testing.assert_allclose(oracle.run(imported, feeds)[name], before, rtol=1e-5, atol=1e-6)
    once = imported.SerializeToString(deterministic=True)
    assert graphprune.load(imported).model.SerializeToString(deterministic=True) == once
    return imported


def test_a_normal_model_stays_as_it_is() -> None:
    imported = normal(plain())
    assert operators(imported) == operators(plain())
    assert shapes(imported) == shapes(plain())


def test_loading_does_not_touch_the_given_model() -> None:
    model = residual()
    before = model.SerializeToString(deterministic=True)
    graphprune.prune(model, targets=["channels=0.5"], align=1)
    assert model.SerializeToString(deterministic=True) == before


# ---- opsets -------------------------------------------------------------------------------------

OLD = """
    old (float[N,3,8,8] x) => (float[N,4] y)
    <float[8,3,3,3] w1, float[8] s, float[8] o, float[8] m, float[8] v, float[4,128] w2, float[4] b2> {
        c = Conv(x, w1)
        n = BatchNormalization(c, s, o, m, v)
        p, q = Split<axis = 1, split = [3, 5]>(n)
        k = Concat<axis = 1>(q, p)
        l = Slice<axes = [2], starts = [1], ends = [5]>(k)
        z = Pad<pads = [0,0,0,1,0,0,0,1]>(l)
        r = Relu(z)
        g = MaxPool<kernel_shape = [1,2], strides = [1,2]>(r)
        u = Unsqueeze<axes = [0]>(g)
        e = Squeeze<axes = [0]>(u)
        f = Flatten(e)
        d = Dropout(f)
        y = Gemm<transB = 1>(d, w2, b2)
    }"""


@pytest.mark.parametrize("opset", [8, 9])
def test_old_opsets_are_upgraded(opset: int) -> None:
    model = net(OLD, opset=opset)
    imported = normal(model)
    assert [entry.version for entry in imported.opset_import if not entry.domain] == [13]
    assert groups(model) == {"w1:0": 8}
    halve(model)


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_opsets_before_thirteen(opset: int) -> None:
    model = net(
        """
        old (float[N,3,8,8] x) => (float[N,4] y) <float[8,3,3,3] w1, float[8,4] w2> {
            c = Conv(x, w1)
            p, q = Split<axis = 1, split = [3, 5]>(c)
            k = Concat<axis = 1>(q, p)
            m = ReduceMean<axes = [2, 3], keepdims = 0>(k)
            u = Unsqueeze<axes = [2]>(m)
            s = Squeeze<axes = [2]>(u)
            y = MatMul(s, w2)
        }""",
        opset=opset,
    )
    normal(model)
    assert groups(model) == {"w1:0": 8}
    halve(model)


@pytest.mark.parametrize("opset", [13, 16, 19, 22])
def test_newer_opsets_are_left_alone(opset: int) -> None:
    text = "new (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[6,3,1,1] a, float[4,6,1,1] b> {h = Conv(x, a)\n y = Conv(h, b)}"
    model = net(text, opset)
    assert [entry.version for entry in normal(model).opset_import if not entry.domain] == [opset]
    halve(model)


def test_a_softmax_over_the_last_axis_survives_the_upgrade() -> None:
    model = net(
        """
        softmax (float[N,4,5] x) => (float[N,4,3] y) <float[5,6] w1, float[6,3] w2> {
            a = MatMul(x, w1)
            t = Transpose<perm = [0,2,1]>(a)
            s = Softmax<axis = 2>(t)
            u = Transpose<perm = [0,2,1]>(s)
            y = MatMul(u, w2)
        }""",
        opset=11,
    )
    assert operators(normal(model)) == ["MatMul", "Transpose", "Softmax", "Transpose", "MatMul"]
    assert groups(model) == {"w1:1": 6}
    halve(model)


# ---- constants ----------------------------------------------------------------------------------


def test_constant_nodes_become_initializers() -> None:
    model = net("""
        constants (float[N,3,4,4] x) => (float[N,2] y) <float[6,3,1,1] w1, float[96,2] w2> {
            a = Conv(x, w1)
            t = Constant<value_ints = [0, -1]>()
            f = Reshape(a, t)
            h = Constant<value_float = 0.5>()
            g = Mul(f, h)
            y = MatMul(g, w2)
        }""")
    imported = normal(model)
    assert operators(imported) == ["Conv", "Reshape", "Mul", "MatMul"]
    assert initializer(imported, "t").tolist() == [0, -1]
    assert initializer(imported, "h") == np.float32(0.5)
    halve(model)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("value_floats = [1.5, -2.0]", [1.5, -2.0]), ("value = float[2] {1.5, -2.0}", [1.5, -2.0])],
)
def test_constants_of_every_kind(attribute: str, value: list[float]) -> None:
    imported = normal(net(f"c (float[N,2] x) => (float[N,2] y) {{k = Constant<{attribute}>()\n y = Add(x, k)}}"))
    assert initializer(imported, "k").tolist() == value


def test_what_depends_on_constants_alone_is_computed() -> None:
    """A weight that the exporter left transposed, scaled and reshaped."""
    model = net("""
        fold (float[N,5] x) => (float[N,3] y) <float[8,5] w1, float two = {2}, float[3,2,4] w2, int64[2] flat = {3, 8}> {
            t = Transpose<perm = [1,0]>(w1)
            s = Mul(t, two)
            a = MatMul(x, s)
            r = Reshape(w2, flat)
            y = Gemm<transB = 1>(a, r)
        }""")
    imported = normal(model)
    assert operators(imported) == ["MatMul", "Gemm"]
    np.testing.assert_allclose(initializer(imported, "s"), 2 * initializer(model, "w1").T)
    assert list(groups(model).values()) == [8]
    halve(model)


def test_dequantisation_is_not_folded() -> None:
    model = net("""
        keep (float[N,5] x) => (float[N,3] y) <int8[5,3] w, float s = {0.1}, int8 z = {0}> {
            d = DequantizeLinear(w, s, z)
            y = MatMul(x, d)
        }""")
    assert operators(normal(model)) == ["DequantizeLinear", "MatMul"]


def test_arithmetic_on_shapes_is_folded_where_sizes_are_known() -> None:
    model = net(
        """
        arithmetic (float[2,3,4,6] x) => (float[2,6,12] y)
        <float[6,3,1,1] w1, int64[1] two = {2}, int64[1] end = {4}, int64[1] zero = {0}, int64[1] half = {2}> {
            a = Conv(x, w1)
            s = Shape(a)
            b = Slice(s, zero, two)
            hw = Slice(s, two, end)
            p = ReduceProd<keepdims = 1>(hw)
            q = Div(p, half)
            t = Concat<axis = 0>(b, q)
            m = MaxPool<kernel_shape = [1,2], strides = [1,2]>(a)
            y = Reshape(m, t)
        }""",
        opset=18,
    )
    assert operators(normal(model)) == ["Conv", "MaxPool", "Reshape"]


def test_dead_code_goes() -> None:
    model = net("""
        dead (float[N,3,4,4] x) => (float[N,2,4,4] y) <float[6,3,1,1] w1, float[7,6,1,1] w3, float[2,6,1,1] w2, float[9] nobody> {
            a = Conv(x, w1)
            d = Conv(a, w3)
            e = Relu(d)
            y = Conv(a, w2)
        }""")
    imported = normal(model)
    assert operators(imported) == ["Conv", "Conv"]
    assert set(shapes(imported)) == {"w1", "w2"}


# ---- inputs, names, order -----------------------------------------------------------------------


def test_initializers_that_are_listed_as_inputs() -> None:
    """IR version 3 asked for it; nobody wants to override every weight."""
    model = plain()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    imported = graphprune.load(model).model
    assert [value.name for value in imported.graph.input] == ["x"]
    assert imported.ir_version >= 4
    assert groups(model) == {"w1:0": 8, "w2:0": 12}
    halve(model)


def test_one_initializer_that_the_caller_may_override_is_pinned() -> None:
    model = plain()
    model.graph.input.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [8]))
    assert [value.name for value in graphprune.load(model).model.graph.input] == ["x", "b1"]
    assert groups(model) == {"w2:0": 12}
    reasons = {p.reason.text for p in graphprune.analyze(model).pinned if p.tensor == "w1" and p.axis == 0}
    assert reasons == {"the caller may override 'b1'"}
    halve(model)


def test_nodes_out_of_order_are_sorted() -> None:
    model = residual()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    imported = graphprune.load(model).model
    seen = {"x", *shapes(imported)}
    for node in imported.graph.node:
        assert set(node.input) <= seen
        seen |= set(node.output)
    assert groups(model) == groups(residual())
    halve(model)


def test_nodes_without_a_name_get_one_and_equal_names_are_told_apart() -> None:
    model = plain()
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Conv" else ""
    imported = normal(graphprune.load(model).model)
    names = [node.name for node in imported.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def test_local_functions_are_inlined() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        functions (float[N,3,4,4] x) => (float[N,2,4,4] y) <float[6,3,1,1] w1, float[6] b1, float[2,6,1,1] w2> {
            a = local.block(x, w1, b1)
            y = Conv(a, w2)
        }
        <domain: "local", opset_import: ["" : 17]>
        block (x, w, b) => (r) {
            c = Conv(x, w, b)
            r = Relu(c)
        }"""
    model = onnx.parser.parse_model(text)
    fill_weights(model)
    imported = normal(model)
    assert operators(imported) == ["Conv", "Relu", "Conv"]
    assert not imported.functions
    assert groups(model) == {"w1:0": 6}
    halve(model)


def test_stale_shapes_in_the_file_are_replaced() -> None:
    """What a tool left behind after it changed the model: wrong sizes of inner values."""
    model = plain()
    model.graph.value_info.append(helper.make_tensor_value_info("c1", TensorProto.FLOAT, ["N", 99, 6, 6]))
    imported = normal(model)
    found = next(value for value in imported.graph.value_info if value.name == "c1")
    assert [dim.dim_value for dim in found.type.tensor_type.shape.dim][1:] == [8, 6, 6]
    halve(model)


def test_dynamic_sizes_stay_symbolic() -> None:
    model = net("""
        dynamic (float[batch,3,H,W] x) => (float[batch,2] y) <float[6,3,3,3] w1, float[6,2] w2> {
            a = Conv(x, w1)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            y = MatMul(f, w2)
        }""")
    imported = halve(model).original.model
    dims = imported.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "H", "W"]
    assert imported.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_vectors_that_two_layers_share_are_copied_and_scalars_are_not() -> None:
    model = net("""
        shared (float[N,3,4,4] x) => (float[N,8,4,4] y)
        <float[8,3,1,1] w1, float[8] v, float[8,8,1,1] w2, float half = {0.5}> {
            a = Conv(x, w1, v)
            b = Mul(a, half)
            c = Conv(b, w2, v)
            y = Mul(c, half)
        }""")
    imported = normal(model)
    assert set(shapes(imported)) == {"w1", "w2", "v", "v_1", "half"}
    assert np.array_equal(initializer(imported, "v"), initializer(imported, "v_1"))


TIED = """
    tied (int64[N,6] tokens) => (float[N,6,20] y) <float[20,8] table, float[8,12] up, float[12,8] down> {
        e = Gather<axis = 0>(table, tokens)
        h = MatMul(e, up)
        r = Relu(h)
        o = MatMul(r, down)
        s = Add(e, o)
        turned = Transpose<perm = [1, 0]>(table)
        y = MatMul(s, turned)
    }"""


def test_a_tied_embedding_stays_one_weight() -> None:
    imported = normal(net(TIED))
    assert shapes(imported) == {"table": [20, 8], "up": [8, 12], "down": [12, 8]}


def test_an_embedding_that_is_only_turned_is_folded() -> None:
    imported = normal(
        net(
            TIED.replace("e = Gather<axis = 0>(table, tokens)", "e = Gather<axis = 0>(other, tokens)").replace(
                "> {", ", float[20,8] other> {"
            )
        )
    )
    assert sorted(shapes(imported).values()) == [[8, 12], [8, 20], [12, 8], [20, 8]]
    assert "Transpose" not in operators(imported)


def test_a_tied_embedding_is_pruned_once() -> None:
    result = graphprune.prune(net(TIED), targets=["channels=0.5"], align=1)
    assert result.proof is not None
    table = shapes(result.model)["table"]
    assert table[0] == 20
    assert table[1] == shapes(result.model)["up"][0] < 8
    members = {(m.tensor, m.axis, m.role) for group in result.plan.groups for m in group.members}
    assert {("table", 1, "producer"), ("table", 1, "consumer"), ("up", 0, "consumer")} <= members


def test_pads_and_sizes_that_share_one_constant_are_not_confused() -> None:
    """One Reshape target read by two nodes, of which pruning changes only one."""
    model = net("""
        target (float[2,3,4,4] x) => (float[2,2] y, float[2,48] z)
        <float[6,3,1,1] w1, float[3,3,1,1] w0, int64[2] flat = {2, -1}, int64[2] rows = {2, 48}, float[96,2] w2> {
            a = Conv(x, w1)
            f = Reshape(a, flat)
            y = MatMul(f, w2)
            b = Conv(x, w0)
            z = Reshape(b, rows)
        }""")
    halve(model)


def test_weights_in_every_storage_field() -> None:
    """float_data as well as raw_data."""
    model = plain()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel()))
    assert not any(tensor.raw_data for tensor in model.graph.initializer)
    halve(model)
