"""Quantised graphs: the graph stays quantised, scales per channel shrink with their channels."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, members, pinned, shapes
from nets import net
from onnx import ModelProto, TensorProto, helper, numpy_helper

import graphprune

POINT = "uint8 p = {131}"


def convolutions(scales: str = "8", group: int = 1) -> ModelProto:
    """QuantizeLinear, three QLinearConv (the second perhaps in groups), DequantizeLinear."""
    return net(f"""
        integers (float[2,3,6,6] x) => (float[2,4,M,K] y)
        <float s0 = {{0.02}}, {POINT}, int8[8,3,3,3] w1, float[{scales}] s1, int8[{scales}] z1, float s2 = {{0.05}}, int32[8] b1,
         int8[8,{8 // group},3,3] w2, float[8] s3, int8[8] z2, int8[4,8,1,1] w3, float s4 = {{0.03}}, int8 z3 = {{3}},
         int32[4] b3> {{
            q = QuantizeLinear(x, s0, p)
            a = QLinearConv(q, s0, p, w1, s1, z1, s2, p, b1)
            b = QLinearConv<group = {group}>(a, s2, p, w2, s3, z2, s2, p)
            c = QLinearConv(b, s2, p, w3, s4, z3, s2, p, b3)
            y = DequantizeLinear(c, s2, p)
        }}""")


def test_scales_and_biases_are_carriers() -> None:
    model = convolutions()
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer", "s1:0 carrier", "z1:0 carrier", "b1:0 carrier"}
    result = halve(model)
    found = shapes(result.model)
    assert found["w1"][0] == found["s1"][0] == found["b1"][0] == found["w2"][1]
    types = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert (types["w1"], types["b1"], types["s1"]) == (TensorProto.INT8, TensorProto.INT32, TensorProto.FLOAT)


def test_one_scale_for_all_stays() -> None:
    model = convolutions("1")
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer", "b1:0 carrier"}
    halve(model)


@pytest.mark.parametrize("group", [2, 8])
def test_groups_of_quantised_convolutions(group: int) -> None:
    result = halve(convolutions(group=group))
    node = [node for node in result.model.graph.node if node.op_type == "QLinearConv"][1]
    written = next(a.i for a in node.attribute if a.name == "group")
    found = shapes(result.model)
    assert written * found["w2"][1] == found["w1"][0]


def test_macs_of_quantised_convolutions() -> None:
    assert halve(convolutions()).before.macs == 2 * (16 * 8 * 3 * 9 + 4 * 8 * 8 * 9 + 4 * 4 * 8)


def test_quantised_matrix_products() -> None:
    model = net(f"""
        integers (float[2,5,6] x) => (float[2,5,4] y)
        <float s0 = {{0.02}}, {POINT}, int8[6,8] w1, float[8] s1, int8[8] z1, float s2 = {{0.5}}, int8[8,4] w2, float[1] s3,
         int8[1] z2> {{
            q = QuantizeLinear(x, s0, p)
            a = QLinearMatMul(q, s0, p, w1, s1, z1, s2, p)
            b = QLinearMatMul(a, s2, p, w2, s3, z2, s2, p)
            y = DequantizeLinear(b, s2, p)
        }}""")
    assert members(model, "w1:1") == {"w1:1 producer", "w2:0 consumer", "s1:0 carrier", "z1:0 carrier"}
    halve(model)


def test_operators_of_onnx_runtime() -> None:
    model = net(
        f"""
        integers (float[2,3,6,6] x) => (float[2,5] y)
        <float s0 = {{0.02}}, {POINT}, int8[8,3,3,3] w1, float[8] s1, int8[8] z1, float s2 = {{0.05}}, int8[8,3,3,3] w2,
         int8[16,5] g, float[5] gs, int8[5] gz, int32[5] gb> {{
            q = QuantizeLinear(x, s0, p)
            a = QLinearConv(q, s0, p, w1, s1, z1, s2, p)
            b = QLinearConv(q, s0, p, w2, s1, z1, s2, p)
            c = com.microsoft.QLinearAdd(a, s2, p, b, s2, p, s2, p)
            d = com.microsoft.QLinearLeakyRelu<alpha = 0.1>(c, s2, p, s2, p)
            e = com.microsoft.QLinearConcat<axis = 1>(s2, p, d, s2, p, a, s2, p)
            f = com.microsoft.QLinearGlobalAveragePool<channels_last = 0>(e, s2, p, s2, p)
            h = Flatten(f)
            i = com.microsoft.QGemm(h, s2, p, g, gs, gz, gb, s2, p)
            y = DequantizeLinear(i, s2, p)
        }}""",
        domains=("com.microsoft",),
    )
    assert set(groups(model).values()) == {8}
    assert {"w1:0 producer", "w2:0 producer", "g:0 consumer"} <= members(model, "w1:0")
    halve(model)


@pytest.mark.parametrize("opset", [13, 17])
def test_dynamic_quantisation_pins_what_its_scale_comes_from(opset: int) -> None:
    text = """
        dynamic (float[4,6] x) => (float[4,3] y) <float[6,8] w1, int8[8,7] w2, int8 z = {0}, float[7,3] w3, float s = {0.01}> {
            a = MatMul(x, w1)
            q, t, p = DynamicQuantizeLinear(a)
            b = MatMulInteger(q, w2, p, z)
            c = Cast<to = 1>(b)
            d = Mul(c, s)
            e = Mul(d, t)
            y = MatMul(e, w3)
        }"""
    model = net(text, opset=opset)
    assert groups(model) == {"w2:1": 7}
    assert "takes its scale from all of this axis" in pinned(model)["w1:1"]
    halve(model)
    kept = graphprune.prune(model, targets=["channels=0.5"], align=1, normalization="kept", selection="uniform")
    assert kept.proof is not None
    assert kept.proof.passed
    assert len(kept.keep["w1:1"]) == 4


def quantised_chain(layers: int) -> ModelProto:
    """Many layers with QuantizeLinear and DequantizeLinear between them: one flipped rounding would travel."""
    rng = np.random.default_rng(5)
    nodes, weights, last = [], [], "x"
    scalars = {"s": np.float32(0.03), "ws": np.float32(0.01), "p": np.uint8(128), "wp": np.int8(0)}
    weights += [numpy_helper.from_array(np.asarray(value), name) for name, value in scalars.items()]
    for k in range(layers):
        weights.append(numpy_helper.from_array(rng.integers(-40, 40, (24, 24, 3, 3)).astype(np.int8), f"w{k}"))
        nodes += [
            helper.make_node("QuantizeLinear", [last, "s", "p"], [f"q{k}"]),
            helper.make_node("DequantizeLinear", [f"q{k}", "s", "p"], [f"d{k}"]),
            helper.make_node("DequantizeLinear", [f"w{k}", "ws", "wp"], [f"f{k}"]),
            helper.make_node("Conv", [f"d{k}", f"f{k}"], [f"c{k}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{k}"], [f"r{k}"]),
        ]
        last = f"r{k}"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 24, 16, 16]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_one_flipped_rounding_does_not_fail_the_proof_of_a_deep_network() -> None:
    result = graphprune.prune(quantised_chain(12), targets=["channels=0.6"], align=1)
    assert result.proof is not None
    assert result.proof.passed


def test_a_wrong_channel_does() -> None:
    result = graphprune.prune(quantised_chain(6), targets=["channels=0.6"], align=1)
    wrong = ModelProto.FromString(result.model.SerializeToString())
    weight = next(tensor for tensor in wrong.graph.initializer if tensor.name == "w3")
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.roll(array, 1, axis=1), "w3"))
    assert not graphprune.verify(result.original, result.plan, wrong).passed


def test_kernels_that_saturate_do_not_fail_the_proof() -> None:
    """Large signed weights: without VNNI the processor saturates sums of pairs of products, and pruning makes other pairs."""
    model = convolutions()
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "w2", "w3"):
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.sign(array) * np.int8(127), tensor.name))
    result = graphprune.prune(model, targets=["channels=0.5"], align=1)
    assert result.proof is not None
    assert result.proof.passed


@pytest.mark.parametrize(("opset", "free"), [(12, {}), (13, {"w1:1": 8})])
def test_quantised_softmax_follows_an_opset(opset: int, free: dict[str, int]) -> None:
    model = net(
        f"""
        softmax (float[1,4,6] x) => (float[1,4,3] y)
        <float[6,8] w1, float s = {{0.05}}, uint8 z = {{128}}, float t = {{0.00390625}}, uint8 o = {{0}}, float[8,3] w2> {{
            h = MatMul(x, w1)
            q = QuantizeLinear(h, s, z)
            p = com.microsoft.QLinearSoftmax<axis = 1, opset = {opset}>(q, s, z, t, o)
            d = DequantizeLinear(p, t, o)
            y = MatMul(d, w2)
        }}""",
        domains=("com.microsoft",),
    )
    assert groups(model) == free
    if free:
        halve(model)


def test_kernels_of_dequantised_weights_are_no_pinned_channels() -> None:
    model = net("""
        n (float[N,3,8,8] x) => (float[N,4,4,4] y) <int8[6,3,3,3] n1, float s1 = {0.1}, float[4,6,3,3] w2> {
            w1 = DequantizeLinear(n1, s1)
            a = Conv(x, w1)
            y = Conv(a, w2)
        }""")
    assert set(pinned(model)) == {"n1:1", "w2:0"}
