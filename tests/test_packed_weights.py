"""MatMulNBits and blocks of DequantizeLinear: weights of less than 8 bits, where a block of inputs has one scale."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, members, pinned, shapes
from nets import attribute, net, set_initializer, weights
from onnx import ModelProto, TensorProto, helper

import graphprune
from graphprune.real_values import Packed, Scaled, unpacked
from graphprune.runtime import run


def layers(points: str = "", second: str = "", bits: int = 4, scales: str = "32,6", width: int = 96) -> ModelProto:
    """Two products of packed weights with a hidden layer of 96 channels, in six blocks of 16."""
    size = 16 * bits // 8
    return net(
        f"""
        packed (float[B,5,64] x) => (float[B,5,32] y)
        <uint8[{width},4,{size}] w1, float[{width},4] s1, float[{width}] b1, uint8[32,6,{size}] w2, float[{scales}] s2{points}> {{
            h = com.microsoft.MatMulNBits<K = 64, N = {width}, bits = {bits}, block_size = 16>(x, w1, s1, , , b1)
            r = Relu(h)
            y = com.microsoft.MatMulNBits<K = {width}, N = 32, bits = {bits}, block_size = 16>(r, w2, s2{second})
        }}""",
        opset=21,
        domains=("com.microsoft",),
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks_leave_as_a_whole(bits: int) -> None:
    model = layers(bits=bits)
    assert groups(model) == {"w1:0": 6}
    assert members(model, "w1:0") == {"w1:0 producer", "s1:0 carrier", "b1:0 carrier", "w2:1 consumer", "s2:1 carrier"}
    result = halve(model)
    found = shapes(result.model)
    assert (found["w1"][:2], found["w2"][:2], found["s2"], found["b1"]) == ([48, 4], [32, 3], [32, 3], [48])
    assert [attribute(result.model, "MatMulNBits", name, 0) for name in "NK"] == [48, 64]
    assert [attribute(result.model, "MatMulNBits", name, 1) for name in "NK"] == [32, 48]
    assert result.before.macs == 5 * (64 * 96 + 96 * 32)


def test_zero_points_that_share_a_byte_leave_together() -> None:
    model = layers(", uint8[32,3] z2", ", z2")
    assert groups(model) == {"w1:0": 3}
    assert shapes(halve(model, channels=0.7).model)["z2"] == [32, 2]


def test_zero_points_of_the_scales_type_are_one_for_each_block() -> None:
    model = layers(", float[32,6] z2", ", z2")
    assert groups(model) == {"w1:0": 6}
    assert shapes(halve(model).model)["z2"] == [32, 3]


def test_older_files_have_scales_and_points_in_one_axis() -> None:
    model = layers(", uint8[96] z2", ", z2", scales="192")
    assert groups(model) == {"w1:0": 3}
    found = shapes(halve(model, channels=0.7).model)
    assert (found["s2"], found["z2"]) == ([128], [64])


def test_a_block_that_is_not_full_pins_inputs_alone() -> None:
    model = layers(width=90)
    assert groups(model) == {}
    assert "needs every index of this axis" in pinned(model)["w1:0"]


def test_an_order_of_inputs_pins_them() -> None:
    model = layers(", int32[96] order", ", , order")
    assert groups(model) == {}


def test_zero_points_of_blocks_that_share_no_byte_evenly_pin_inputs() -> None:
    """Five blocks of 16 have three bytes of zero points."""
    model = net(
        """
        odd (float[B,64] x) => (float[B,32] y)
        <uint8[80,4,8] w1, float[80,4] s1, uint8[32,5,8] w2, float[32,5] s2, uint8[32,3] z2> {
            h = com.microsoft.MatMulNBits<K = 64, N = 80, bits = 4, block_size = 16>(x, w1, s1)
            y = com.microsoft.MatMulNBits<K = 80, N = 32, bits = 4, block_size = 16>(h, w2, s2, z2)
        }""",
        opset=21,
        domains=("com.microsoft",),
    )
    assert groups(model) == {}


@pytest.mark.parametrize("declared", ["float[7] s", "float[7,4] s", "float[7,3,1] s", "float[20] s"])
def test_scales_of_another_size_are_refused(declared: str) -> None:
    model = net(
        f"""
        wrong (float[B,48] x) => (float[B,7] y) <uint8[7,3,8] w, {declared}> {{
            y = com.microsoft.MatMulNBits<K = 48, N = 7, bits = 4, block_size = 16>(x, w, s)
        }}""",
        opset=21,
        domains=("com.microsoft",),
    )
    assert pinned(model)["w:0"] == "this form of com.microsoft::MatMulNBits has no rule"


def test_other_forms_are_refused() -> None:
    model = layers(bits=4)
    model.graph.node[2].attribute.append(helper.make_attribute("weight_prepacked", 1))
    assert pinned(model)["w1:0"] == "this form of com.microsoft::MatMulNBits has no rule"


def test_a_decoder_of_four_bits_loses_query_heads_and_neurons() -> None:
    """As onnxruntime-genai writes it: 4 query heads and 2 key/value heads of size 32, in blocks of 32."""
    product = "com.microsoft.MatMulNBits<bits = 4, block_size = 32, "
    model = net(
        f"""
        decoder (float[B,S,64] x, float[B,2,P,32] pk, float[B,2,P,32] pv, int32[B] lengths, int32 total)
         => (float[B,S,64] y, float[B,2,T,32] nk, float[B,2,T,32] nv)
        <uint8[128,2,16] q, float[128,2] qs, uint8[64,2,16] k, float[64,2] ks, uint8[64,2,16] v, float[64,2] vs,
         uint8[64,4,16] o, float[64,4] os, uint8[192,2,16] gate, float[192,2] gs, uint8[192,2,16] up, float[192,2] us,
         uint8[64,6,16] down, float[64,6] ds> {{
            qp = {product}K = 64, N = 128>(x, q, qs)
            kp = {product}K = 64, N = 64>(x, k, ks)
            vp = {product}K = 64, N = 64>(x, v, vs)
            a, nk, nv = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(qp, kp, vp, pk, pv, lengths, total)
            p = {product}K = 128, N = 64>(a, o, os)
            g = {product}K = 64, N = 192>(p, gate, gs)
            u = {product}K = 64, N = 192>(p, up, us)
            act = Sigmoid(g)
            silu = Mul(g, act)
            m = Mul(silu, u)
            y = {product}K = 192, N = 64>(m, down, ds)
        }}""",
        opset=21,
        domains=("com.microsoft",),
    )
    assert sorted(groups(model).values()) == [2, 2, 6]  # query heads, what the attention gives, neurons
    result = graphprune.prune(model, targets=["channels=0.5"], selection="uniform", align=1, verify=False)
    assert attribute(result.model, "GroupQueryAttention", "num_heads") == 2
    assert shapes(result.model)["o"] == [32, 2, 16]
    assert shapes(result.model)["down"] == [64, 3, 16]


# ---- DequantizeLinear with blocks ----------------------------------------------------------------


def blocked(width: int = 12, axis: int = 0) -> ModelProto:
    """Weights of four bits, [inputs, results], with a scale for each four inputs."""
    return net(
        f"""
        blocked (float[B,8] x) => (float[B,5] y)
        <int8[8,{width}] w1, float[2,{width}] s1, int8[2,{width}] z1, int8[{width},5] w2, float[3,5] s2> {{
            a = DequantizeLinear<axis = 0, block_size = 4>(w1, s1, z1)
            h = MatMul(x, a)
            r = Relu(h)
            b = DequantizeLinear<axis = {axis}, block_size = 4>(w2, s2)
            y = MatMul(r, b)
        }}""",
        opset=21,
    )


def test_blocks_of_dequantizelinear() -> None:
    model = blocked()
    assert groups(model) == {"w1:1": 3}
    assert members(model, "w1:1") == {"w1:1 producer", "s1:1 carrier", "z1:1 carrier", "w2:0 consumer", "s2:0 carrier"}
    found = shapes(halve(model, channels=0.7).model)
    assert (found["w1"], found["s1"], found["w2"], found["s2"]) == ([8, 8], [2, 8], [8, 5], [2, 5])


def test_a_negative_axis_of_blocks() -> None:
    assert groups(blocked(axis=-2)) == {"w1:1": 3}


def test_blocks_that_do_not_fit_pin() -> None:
    model = blocked(width=11)
    assert groups(model) == {}
    assert pinned(model)["w2:0"] == "DequantizeLinear has blocks that do not fit this axis"


def test_weights_of_four_bits_in_a_file_of_four_bits() -> None:
    model = blocked()
    for name in ("w1", "w2"):
        array = weights(model)[name]
        tensor = helper.make_tensor(name, TensorProto.INT4, array.shape, (array.ravel() % 16 - 8).tolist())
        next(each for each in model.graph.initializer if each.name == name).CopyFrom(tensor)
    points = next(each for each in model.graph.initializer if each.name == "z1")
    points.CopyFrom(helper.make_tensor("z1", TensorProto.INT4, points.dims, (weights(model)["z1"].ravel() % 16 - 8).tolist()))
    assert shapes(halve(model, channels=0.7).model)["w2"] == [8, 5]


# ---- real values ---------------------------------------------------------------------------------


def test_numbers_are_unpacked_from_the_lowest_bits_on() -> None:
    assert unpacked(np.array([[0x21, 0x43]], np.uint8), 4).tolist() == [[1, 2, 3, 4]]
    assert unpacked(np.array([[0b11100100]], np.uint8), 2).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("points", ["", "packed", "float"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_numbers_are_what_onnx_runtime_computes_with(bits: int, points: str) -> None:
    """The product with the unit matrix is the weight."""
    if (bits, points) == (8, "float"):
        pytest.skip("not in ONNX Runtime's CPU kernels")
    size = 16 * bits // 8
    declared = {"": "", "packed": f", uint8[7,{-(-3 * bits // 8)}] z", "float": ", float[7,3] z"}[points]
    model = net(
        f"""
        product (float[48,48] x) => (float[48,7] y)
        <uint8[7,3,{size}] w, float[7,3] s{declared}> {{
            y = com.microsoft.MatMulNBits<K = 48, N = 7, bits = {bits}, block_size = 16>(x, w, s{", z" if points else ""})
        }}""",
        opset=21,
        domains=("com.microsoft",),
    )
    expected = run(model, {"x": np.eye(48, dtype=np.float32)})["y"].T
    found = Packed("s", "z" if points else "", bits).real(weights(model)["w"], weights(model).get)
    np.testing.assert_allclose(found.reshape(7, 48), expected, atol=1e-6)


@pytest.mark.parametrize(("shape", "axis", "block"), [((), 0, 0), ((1,), 1, 0), ((6,), 1, 0), ((4,), 0, 0), ((2, 6), 0, 2)])
def test_scaled_numbers_are_what_onnx_runtime_computes_with(shape: tuple[int, ...], axis: int, block: int) -> None:
    rng = np.random.default_rng(3)
    model = net(
        f"""
        scaled (float z) => (float[4,6] y)
        <uint8[4,6] w, float s = {{0}}, uint8 p = {{0}}> {{
            d = DequantizeLinear<axis = {axis}{f", block_size = {block}" if block else ""}>(w, s, p)
            y = Add(d, z)
        }}""",
        opset=21,
    )
    set_initializer(model, "s", rng.uniform(0.1, 1, shape).astype(np.float32))
    set_initializer(model, "p", rng.integers(0, 255, shape).astype(np.uint8))
    expected = run(model, {"z": np.zeros((), np.float32)})["y"]
    found = Scaled("s", "p", axis, block).real(weights(model)["w"], weights(model).get)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ---- criteria see real values --------------------------------------------------------------------

REAL = """<float[12,3,3,3] w1, float[5,12,3,3] w2> {
    a = Conv(x, w1)
    r = Relu(a)
    y = Conv(r, w2)
}"""
IN_TURN = """<uint8[12,3,3,3] n1, float[12] s1, uint8[12] z1, uint8[5,12,3,3] n2, float[5] s2, uint8[5] z2> {
    w1 = DequantizeLinear<axis = 0>(n1, s1, z1)
    w2 = DequantizeLinear<axis = 0>(n2, s2, z2)
    a = Conv(x, w1)
    r = Relu(a)
    y = Conv(r, w2)
}"""
INTEGERS = """<uint8[12,3,3,3] n1, float[12] s1, uint8[12] z1, uint8[5,12,3,3] n2, float[5] s2, uint8[5] z2, float s = {0.1},
         uint8 z = {99}> {
    q = QuantizeLinear(x, s, z)
    a = QLinearConv(q, s, z, n1, s1, z1, s, z)
    b = QLinearConv(a, s, z, n2, s2, z2, s, z)
    y = DequantizeLinear(b, s, z)
}"""


def scores(model: ModelProto, criterion: str) -> np.ndarray:
    scored = graphprune.pipeline.score(model, graphprune.Options(importance=criterion))
    (found,) = scored.scores.values()
    return found


def with_numbers(model: ModelProto) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Numbers around zero points that differ, with scales that differ a lot; and what they stand for."""
    rng, real = np.random.default_rng(5), {}
    for name, array in weights(model).items():
        if name in ("n1", "n2"):
            count = array.shape[0]
            scale, zero = rng.uniform(0.01, 1, count).astype(np.float32), rng.integers(90, 160, count).astype(np.uint8)
            numbers = rng.integers(0, 255, array.shape).astype(np.uint8)
            for key, values in ((name, numbers), (f"s{name[1]}", scale), (f"z{name[1]}", zero)):
                set_initializer(model, key, values)
            shape = (-1, *(1,) * (array.ndim - 1))
            real[f"w{name[1]}"] = (numbers.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape)
    return model, real


@pytest.mark.parametrize("criterion", ["magnitude", "path", "lamp", "fpgm"])
@pytest.mark.parametrize("body", [IN_TURN, INTEGERS])
def test_quantised_convolutions_are_ranked_by_what_their_numbers_stand_for(body: str, criterion: str) -> None:
    head = "scored (float[2,3,9,9] x) => (float[2,5,5,5] y)"
    quantised, real = with_numbers(net(f"{head} {body}", opset=21))
    plain = net(f"{head} {REAL}", opset=21)
    for name, array in real.items():
        set_initializer(plain, name, array)
    np.testing.assert_allclose(scores(quantised, criterion), scores(plain, criterion), rtol=1e-4)


@pytest.mark.parametrize("turned", [0, 1])
def test_quantised_products_are_ranked_by_what_their_numbers_stand_for(turned: int) -> None:
    """One layer of QGemm, one of QLinearMatMul."""
    quantised = net(
        f"""
        products (float[2,6] x) => (float[2,4] y)
        <int8[{"12,6" if turned else "6,12"}] n1, float[12] s1, int8[12] z1, int8[12,4] n2, float[4] s2, int8[4] z2,
         float s = {{0.1}}, uint8 z = {{99}}> {{
            q = QuantizeLinear(x, s, z)
            a = com.microsoft.QGemm<transB = {turned}>(q, s, z, n1, s1, z1, , s, z)
            b = QLinearMatMul(a, s, z, n2, s2, z2, s, z)
            y = DequantizeLinear(b, s, z)
        }}""",
        opset=21,
        domains=("com.microsoft",),
    )
    rng = np.random.default_rng(6)
    for name in ("s1", "s2"):
        set_initializer(quantised, name, rng.uniform(0.01, 1, weights(quantised)[name].shape).astype(np.float32))
    found = weights(quantised)
    columns = found["s1"][:, None] if turned else found["s1"]
    plain = net(f"""
        products (float[2,6] x) => (float[2,4] y)
        <float[{"12,6" if turned else "6,12"}] w1, float[12,4] w2> {{
            a = Gemm<transB = {turned}>(x, w1)
            y = MatMul(a, w2)
        }}""")
    set_initializer(plain, "w1", found["n1"] * columns)
    set_initializer(plain, "w2", found["n2"] * found["s2"])
    np.testing.assert_allclose(scores(quantised, "magnitude"), scores(plain, "magnitude"), rtol=1e-4)


def test_packed_weights_are_ranked_by_what_their_numbers_stand_for() -> None:
    quantised = layers(", uint8[32,3] z2", ", z2")
    found = weights(quantised)
    plain = net(
        "plain (float[B,5,64] x) => (float[B,5,32] y) <float[64,96] w1, float[96] b, float[96,32] w2> { h = MatMul(x, w1)"
        " i = Add(h, b) r = Relu(i) y = MatMul(r, w2) }"
    )
    first = Packed("s1", "", 4).real(found["w1"], found.get).reshape(96, 64)
    second = Packed("s2", "z2", 4).real(found["w2"], found.get).reshape(32, 96)
    set_initializer(plain, "w1", first.T.copy())
    set_initializer(plain, "w2", second.T.copy())
    expected = graphprune.pipeline.score(plain, graphprune.Options(importance="magnitude{normalizer=none}"))
    (channels,) = expected.scores.values()
    found_scores = scores(quantised, "magnitude{normalizer=none}")
    np.testing.assert_allclose(found_scores, channels.reshape(3, 32).sum(axis=1), rtol=1e-4)


def test_a_scale_that_is_computed_counts_as_one() -> None:
    body = IN_TURN.replace("w1 = Deq", "t = Mul(s1, x0)\n    w1 = Deq").replace("n1, s1, z1)", "n1, t, z1)")
    model = net(f"scored (float[2,3,9,9] x, float[12] x0) => (float[2,5,5,5] y) {body}", opset=21)
    assert groups(model) == {}


def test_real_weights_that_are_quantised_when_the_network_runs_stay_real() -> None:
    body = """<float[12,3,3,3] w1, float[12] s1, int8[12] z1, float[5,12,3,3] w2> {
    n = QuantizeLinear<axis = 0>(w1, s1, z1)
    d = DequantizeLinear<axis = 0>(n, s1, z1)
    a = Conv(x, d)
    r = Relu(a)
    y = Conv(r, w2)
}"""
    trained = net(f"trained (float[2,3,9,9] x) => (float[2,5,5,5] y) {body}", opset=21)
    plain = net(f"trained (float[2,3,9,9] x) => (float[2,5,5,5] y) {REAL}", opset=21)
    set_initializer(plain, "w1", weights(trained)["w1"])
    np.testing.assert_allclose(scores(trained, "magnitude"), scores(plain, "magnitude"), rtol=1e-6)
