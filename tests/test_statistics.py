"""Normalisations, quantisation, and operators that need a whole axis."""

from __future__ import annotations

import pytest
from halving import groups, halve, keep_exactly, members, pinned, shapes
from nets import attribute, net
from onnx import ModelProto

import graphprune
from graphprune.cost import CostModel


def between(node: str, weights: str = "", opset: int = 17, out: int = 8, domains: tuple[str, ...] = ()) -> object:
    """A convolution to 8 channels, something in between, and a convolution that reads it."""
    return net(
        f"""
        between (float[N,3,6,6] x) => (float[N,4,M,K] y) <float[8,3,3,3] w1, float[4,{out},1,1] w2{weights}> {{
            a = Conv<pads = [1,1,1,1]>(x, w1)
            {node}
            y = Conv(b, w2)
        }}""",
        opset=opset,
        domains=domains,
    )


FOURIER = ", int64[1] last = {4}, int64 length = {6}"
TRANSFORM = "u = Unsqueeze(a, last)\nt = DFT%s\nb = ReduceSum<keepdims = 0>(t, last)"

FREE = {"w1:0 producer", "w2:1 consumer"}


def test_batch_normalisation() -> None:
    model = between("b = BatchNormalization(a, s, o, m, v)", ", float[8] s, float[8] o, float[8] m, float[8] v")
    assert members(model, "w1:0") == FREE | {f"{name}:0 carrier" for name in "somv"}
    halve(model)


def test_instance_normalisation() -> None:
    model = between("b = InstanceNormalization(a, s, o)", ", float[8] s, float[8] o")
    assert members(model, "w1:0") == FREE | {"s:0 carrier", "o:0 carrier"}
    halve(model)


@pytest.mark.parametrize(("opset", "per"), [(18, 4), (21, 8)])
def test_group_normalisation_loses_whole_groups(opset: int, per: int) -> None:
    model = between("b = GroupNormalization<num_groups = 4>(a, s, o)", f", float[{per}] s, float[{per}] o", opset)
    assert groups(model) == {"w1:0": 4}
    result = keep_exactly(model, {"w1:0": [0, 2, 3]})
    assert attribute(result.model, "GroupNormalization", "num_groups") == 3
    assert shapes(result.model)["w1"] == [6, 3, 3, 3]
    halve(model)


def test_layer_normalisation_pins_what_it_averages_over() -> None:
    model = net("""
        layer (float[N,T,5] x) => (float[N,T,3] y) <float[5,8] w1, float[8] s, float[8] o, float[8,6] w2, float[6,3] w3> {
            a = MatMul(x, w1)
            b = LayerNormalization(a, s, o)
            c = MatMul(b, w2)
            y = MatMul(c, w3)
        }""")
    assert groups(model) == {"w2:1": 6}
    assert "statistics over this axis" in pinned(model)["w1:1"]
    assert {"w1:1", "s:0", "o:0", "w2:0"} <= pinned(model).keys()
    halve(model)


@pytest.mark.parametrize("opset", [11, 13, 16])
def test_layer_normalisation_in_an_opset_that_has_none(opset: int) -> None:
    """ONNX Runtime fuses it into models of any opset, and runs them."""
    model = net(
        """
        early (float[N,T,5] x) => (float[N,T,3] y) <float[5,8] w1, float[8] s, float[8] o, float[8,6] w2, float[6,3] w3> {
            a = MatMul(x, w1)
            b = LayerNormalization<axis = -1>(a, s, o)
            c = MatMul(b, w2)
            y = MatMul(c, w3)
        }""",
        opset=opset,
    )
    model.ir_version = 8
    assert groups(model) == {"w2:1": 6}
    halve(model)


def test_layer_normalisation_over_space_leaves_the_channels_free() -> None:
    model = between("b = LayerNormalization<axis = 2>(a, s)", ", float[6,6] s")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_lp_normalisation_pins() -> None:
    """The norm counts every channel, and no weight could be zeroed to mask one."""
    model = between("b = LpNormalization<axis = 1, p = 2>(a)")
    assert groups(model) == {}
    assert "LpNormalization" in pinned(model)["w1:0"]


def test_local_response_normalisation_pins() -> None:
    model = between("b = LRN<size = 3>(a)")
    assert groups(model) == {}
    assert "LRN" in pinned(model)["w1:0"]


@pytest.mark.parametrize(
    ("node", "weights", "opset"),
    [
        ("b = MeanVarianceNormalization<axes = [0,2,3]>(a)", "", 17),
        ("b = CenterCropPad<axes = [-2,-1]>(a, size)", ", int64[2] size = {4,8}", 18),
        ("b = Compress<axis = 3>(a, some)", ", bool[5] some = {1,0,0,1,1}", 17),
        (
            TRANSFORM % "(u, length, two)",
            FOURIER + ", int64 two = {-2}",
            20,
        ),
        (TRANSFORM % "<axis = 3, onesided = 1>(u)", FOURIER, 17),
    ],
)
def test_channels_pass_what_works_along_other_axes(node: str, weights: str, opset: int) -> None:
    model = between(node, weights, opset)
    assert groups(model) == {"w1:0": 8}
    halve(model)


@pytest.mark.parametrize(
    ("node", "weights", "opset", "reason"),
    [
        ("b = MeanVarianceNormalization<axes = [1,2,3]>(a)", "", 17, "takes its statistics"),
        ("b = CenterCropPad(a, size)", ", int64[4] size = {2,8,4,4}", 18, "cuts this axis"),
        ("b = Compress<axis = 1>(a, some)", ", bool[8] some = {1,1,1,1,1,1,1,1}", 17, "chooses along this axis"),
        (
            "f = Compress(a, some)\nb = Reshape(f, back)",
            ", bool[2] some = {1,1}, int64[4] back = {1,1,1,2}",
            17,
            "among all elements",
        ),
        (TRANSFORM % "<axis = 1>(u)", FOURIER, 17, "mixes all places"),
        (
            TRANSFORM % "(u, length, at)",
            FOURIER + ", int64 at = {1}",
            20,
            "mixes",
        ),
    ],
)
def test_what_works_along_channels_pins_them(node: str, weights: str, opset: int, reason: str) -> None:
    model = between(node, weights, opset, out=1 if "back" in weights else 8)
    assert reason in pinned(model)["w1:0"]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("b = Softmax<axis = 1>(a)", "Softmax"),
        ("b = LogSoftmax<axis = -3>(a)", "LogSoftmax"),
        ("b = Hardmax<axis = 1>(a)", "Hardmax"),
        ("b = CumSum(a, at)", "CumSum"),
        ("b, i = TopK<axis = 1>(a, eight)", "TopK"),
    ],
)
def test_operators_that_compare_channels_pin_them(node: str, reason: str) -> None:
    model = between(node, ", int64 at = {1}, int64[1] eight = {8}")
    assert groups(model) == {}
    assert reason in pinned(model)["w1:0"]


def test_softmax_over_space_leaves_the_channels_free() -> None:
    halve(between("b = Softmax<axis = -1>(a)"))


def test_softmax_before_opset_13_is_over_all_that_follows() -> None:
    model = net(
        """
        old (float[N,3] x) => (float[N,4] y) <float[3,8] w1, float[8,4] w2> {
            a = MatMul(x, w1)
            b = Softmax<axis = 1>(a)
            y = MatMul(b, w2)
        }""",
        opset=11,
    )
    assert groups(model) == {}
    assert "Softmax" in pinned(model)["w1:1"]


def test_arg_max_over_channels_pins_them() -> None:
    model = net("""
        arg (float[N,3,6,6] x) => (int64[N,1,6,6] y) <float[8,3,1,1] w1, float[6,8,1,1] w2> {
            a = Conv(x, w1)
            b = Conv(a, w2)
            y = ArgMax<axis = 1>(b)
        }""")
    assert groups(model) == {"w1:0": 8}
    assert "ArgMax" in pinned(model)["w2:0"]
    halve(model)


@pytest.mark.parametrize(
    "operator", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp", "ReduceSum", "ReduceL1", "ReduceL2"]
)
def test_reductions_over_channels_pin(operator: str) -> None:
    model = net(
        f"""
        reduce (float[N,3,6,6] x) => (float[N,6,6] y) <float[8,3,1,1] w1, int64[1] at = {{-3}}> {{
            a = Conv(x, w1)
            y = {operator}<keepdims = 0>(a, at)
        }}""",
        opset=18,
    )
    assert groups(model) == {}
    assert f"{operator} reduces over this axis" in pinned(model)["w1:0"]


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax", "ReduceSum"])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_over_space_carry_the_channels(operator: str, keep: int) -> None:
    model = net(
        f"""
        space (float[N,3,6,6] x) => (float[N,4] y) <float[8,3,1,1] w1, float[8,4] w2, int64[2] at = {{2,3}}> {{
            a = Conv(x, w1)
            b = {operator}<keepdims = {keep}>(a, at)
            f = Flatten(b)
            y = MatMul(f, w2)
        }}""",
        opset=18,
    )
    assert members(model, "w1:0") == {"w1:0 producer", "w2:0 consumer"}
    halve(model)


def test_reduce_without_axes_reduces_all() -> None:
    model = net(
        """
        all (float[N,3,6,6] x) => (float y) <float[8,3,1,1] w1, float[6,8,1,1] w2> {
            a = Conv(x, w1)
            b = Conv(a, w2)
            y = ReduceMean<keepdims = 0>(b)
        }""",
        opset=18,
    )
    assert groups(model) == {"w1:0": 8}
    assert "ReduceMean" in pinned(model)["w2:0"]


def test_quantised_weights_with_a_scale_per_channel() -> None:
    model = between(
        "q = DequantizeLinear<axis = 0>(w8, step, zero)\n b = Conv(a, q)",
        ", int8[8,8,1,1] w8, float[8] step, int8[8] zero",
    )
    assert groups(model) == {"w1:0": 8, "w8:0": 8}
    assert members(model, "w8:0") == {"w8:0 producer", "step:0 carrier", "zero:0 carrier", "w2:1 consumer"}
    assert "w8:1 consumer" in members(model, "w1:0")
    after = shapes(halve(model).model)
    assert (after["w8"], after["step"], after["zero"]) == ([4, 4, 1, 1], [4], [4])


def test_quantised_activations_and_weights() -> None:
    """QDQ as quantisers export it: one scale for activations, one per channel for weights, int32 biases."""
    model = net("""
        qdq (float[N,3,6,6] x) => (float[N,4,4,4] y)
        <int8[8,3,3,3] w1, float[8] s1, int8[8] z1, int32[8] b1, float[8] t1, int32[8] u1,
         int8[4,8,1,1] w2, float[4] s2, int8[4] z2, float one = {0.04}, uint8 half = {128}> {
            xq = QuantizeLinear(x, one, half)
            xd = DequantizeLinear(xq, one, half)
            wd = DequantizeLinear<axis = 0>(w1, s1, z1)
            bd = DequantizeLinear<axis = 0>(b1, t1, u1)
            a = Conv(xd, wd, bd)
            r = Relu(a)
            rq = QuantizeLinear(r, one, half)
            rd = DequantizeLinear(rq, one, half)
            vd = DequantizeLinear<axis = 0>(w2, s2, z2)
            y = Conv(rd, vd)
        }""")
    assert members(model, "w1:0") == {
        *("w1:0 producer", "s1:0 carrier", "z1:0 carrier", "b1:0 carrier", "t1:0 carrier", "u1:0 carrier", "w2:1 consumer"),
    }
    halve(model)


def test_mean_and_deviation_of_a_layer_normalisation() -> None:
    model = net("""
        statistics (float[1,3,4,6] x) => (float[1,2,4,6] y) <float[8,3,1,1] w1, float[6] g, float[6] o, float[2,8,1,1] w2> {
            c = Conv(x, w1)
            n, mean, inv = LayerNormalization<axis = -1>(c, g, o)
            d = Sub(n, mean)
            y = Conv(d, w2)
        }""")
    assert members(model, "w1:0") == FREE
    halve(model)


def towers(score: str, weights: str = "") -> ModelProto:
    """Two towers whose vectors of 8 are compared."""
    return net(f"""
        towers (float[N,5] x, float[N,6] z) => (float[N] y)
        <float[5,8] w1, float[6,8] w2, float[8] v, int64[1] last = {{-1}}{weights}> {{
            a = MatMul(x, w1)
            r = Relu(a)
            b = MatMul(z, w2)
            {score}
        }}""")


@pytest.mark.parametrize(
    "score",
    [
        "p = Mul(r, b)\n y = ReduceSum<keepdims = 0>(p, last)",
        "p = Mul(r, b)\n q = Mul(v, p)\n y = ReduceSum<keepdims = 0>(q, last)",
        "s = Add(r, b)\n p = Mul(s, v)\n q = ReduceSum(p, last)\n y = Squeeze(q, last)",
    ],
)
def test_a_sum_of_products_is_a_contraction(score: str) -> None:
    """What removed channels would have added is zero, as in the products of queries and keys."""
    model = towers(score)
    assert groups(model) == {"w1:1": 8}
    halve(model, silence=True)


@pytest.mark.parametrize(
    ("score", "weights"),
    [
        ("s = Add(r, b)\n p = Mul(s, s)\n y = ReduceSum<keepdims = 0>(p, last)", ""),
        ("s = Add(r, b)\n p = Mul(s, c)\n y = ReduceSum<keepdims = 0>(p, last)", ", float c = {0.125}"),
        ("s = Add(r, b)\n p = Mul(s, c)\n y = ReduceSum<keepdims = 0>(p, last)", ", float[1,1] c = {0.125}"),
        ("s = Add(r, b)\n p = Add(s, v)\n y = ReduceSum<keepdims = 0>(p, last)", ""),
    ],
)
def test_a_sum_of_squares_or_of_a_scaled_value_is_a_statistic(score: str, weights: str) -> None:
    model = towers(score, weights)
    assert groups(model) == {}
    assert "ReduceSum reduces over this axis" in pinned(model)["w1:1"]


def test_a_sum_of_products_over_other_axes_leaves_the_channels_free() -> None:
    model = between("p = Mul(a, a)\n s = Sigmoid(a)\n q = Mul(p, s)\n b = ReduceSum(q, space)", ", int64[2] space = {2,3}")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_what_compress_chooses_by_keeps_its_places() -> None:
    model = net(
        """
        chosen (float[N,3,6,6] x, float[8,N] z) => (float[K,N] y, float[N,4] u)
        <float[8,3,1,1] w1, float[8,4] w2, float zero = {0}> {
            a = Conv(x, w1)
            p = ReduceMean<axes = [2,3], keepdims = 0>(a)
            u = MatMul(p, w2)
            q = ReduceMean<axes = [0], keepdims = 0>(p)
            c = Greater(q, zero)
            y = Compress<axis = 0>(z, c)
        }""",
        opset=17,
    )
    assert groups(model) == {}
    assert "Compress chooses by place" in pinned(model).values()


@pytest.mark.parametrize(
    ("norm", "opset"), [("MeanVarianceNormalization(a)", 17), ("GroupNormalization<num_groups = 4>(a, s, s)", 21)]
)
def test_sizes_are_known_behind_functions(norm: str, opset: int) -> None:
    """onnx infers no shape of their results: MACs behind them were counted for one position."""
    model = net(
        f"""
        norm (float[N,3,5,5] x) => (float[N,4,5,5] y) <float[16,3,1,1] w1, float[16] s, float[4,16,1,1] w2> {{
            a = Conv(x, w1)
            b = {norm}
            y = Conv(b, w2)
        }}""",
        opset=opset,
    )
    assert graphprune.load(model).shape("b") == ("N", 16, 5, 5)
    assert CostModel(graphprune.analyze(model)).original.macs == 25 * 16 * (3 + 4)
