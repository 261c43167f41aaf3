"""What ties channels together: broadcasting, tied weights, shared biases; and what nobody knows, which pins."""

from __future__ import annotations

import pytest
from halving import groups, halve, members, pinned, shapes
from nets import net
from onnx import TensorProto, helper

import graphprune


def between(node: str, weights: str = "", opset: int = 17, domains: tuple[str, ...] = ()) -> object:
    return net(
        f"""
        between (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] w1, float[4,8,1,1] w2{weights}> {{
            a = Conv(x, w1)
            {node}
            y = Conv(b, w2)
        }}""",
        opset=opset,
        domains=domains,
    )


# ---- element by element -------------------------------------------------------------------------

UNARY = "Relu Sigmoid Tanh HardSwish HardSigmoid LeakyRelu Elu Selu Softplus Softsign Neg Abs Exp Erf Identity Sin Mish Gelu"


@pytest.mark.parametrize("operator", UNARY.split())
def test_unary_operators_carry_all_axes(operator: str) -> None:
    model = between(f"b = {operator}(a)", opset=20)
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer"}
    halve(model)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("other", ["float[8,1,1] c", "float[1,8,6,6] c", "float[6] c", "float c = {0.3}", "float[1,1,1,1] c"])
def test_binary_operators_with_a_constant(operator: str, other: str) -> None:
    model = between(f"b = {operator}(c, a)" if operator in ("Add", "Max") else f"b = {operator}(a, c)", f", {other}")
    axis = {"float[8,1,1] c": 0, "float[1,8,6,6] c": 1}.get(other)
    assert groups(model) == {"w1:0": 8}
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer"} | ({f"c:{axis} carrier"} if axis is not None else set())
    halve(model)


@pytest.mark.parametrize("slope", ["float[8,1,1]", "float[1]", "float[1,8,1,1]", "float[8,6,6]"])
def test_prelu_with_a_slope_per_channel(slope: str) -> None:
    model = between("b = PRelu(a, slope)", f", {slope} slope")
    assert ("slope" in str(members(model, "w1:0"))) == ("8" in slope)
    halve(model)


def test_where_and_comparison() -> None:
    model = between("c = Greater(a, threshold)\n b = Where(c, a, other)", ", float[8,1,1] threshold, float[8,1,1] other")
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer", "threshold:0 carrier", "other:0 carrier"}
    halve(model)


def test_clip_with_and_without_bounds() -> None:
    halve(between("c = Clip(a, low, high)\n d = Clip(c)\n b = Clip(d, , high)", ", float low = {-0.5}, float high = {0.6}"))


def test_dropout_is_nothing() -> None:
    halve(between("b, mask = Dropout(a)"))


def test_pow_and_cast() -> None:
    halve(between("c = Pow(a, two)\n d = Cast<to = 11>(c)\n b = Cast<to = 1>(d)", ", float two = {2}"))


def test_squeeze_and_excitation() -> None:
    model = net("""
        excite (float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[4,8,1,1] down, float[4] b1, float[8,4,1,1] up, float[8] b2, float[4,8,1,1] w2> {
            a = Conv(x, w1)
            p = GlobalAveragePool(a)
            s = Conv(p, down, b1)
            r = Relu(s)
            t = Conv(r, up, b2)
            g = HardSigmoid(t)
            b = Mul(g, a)
            y = Conv(b, w2)
        }""")
    assert groups(model) == {"w1:0": 8, "down:0": 4}
    assert members(model, "w1:0") == {
        *("w1:0 producer", "up:0 producer", "b2:0 carrier", "down:1 consumer", "w2:1 consumer"),
    }
    halve(model)


def test_a_channel_of_size_one_is_broadcast_not_coupled() -> None:
    """Spatial attention: one map times all channels."""
    model = net("""
        spatial (float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[1,8,1,1] w2, float[4,8,1,1] w3> {
            a = Conv(x, w1)
            m = Conv(a, w2)
            b = Mul(a, m)
            y = Conv(b, w3)
        }""")
    assert groups(model) == {"w1:0": 8}
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer", "w3:1 consumer"}
    halve(model)


def test_a_constant_operand_of_the_contraction_axis_may_differ_per_index() -> None:
    """A gain on both channel and position: its channel axis follows."""
    model = between("b = Mul(a, gain)", ", float[8,6,6] gain")
    assert shapes(halve(model).model)["gain"] == [4, 6, 6]


# ---- sharing ------------------------------------------------------------------------------------


def test_a_weight_applied_twice_couples_input_and_output() -> None:
    model = net("""
        recurrent (float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[8,8,1,1] w2, float[8] b2, float[4,8,1,1] w3> {
            a = Conv(x, w1)
            b = Conv(a, w2, b2)
            c = Tanh(b)
            d = Conv(c, w2, b2)
            y = Conv(d, w3)
        }""")
    assert groups(model) == {"w1:0": 8}
    result = halve(model)
    assert shapes(result.model) == {"w1": [4, 3, 1, 1], "w2": [4, 4, 1, 1], "b2": [4], "w3": [4, 4, 1, 1]}


def test_a_weight_shared_by_two_branches() -> None:
    model = net("""
        siamese (float[N,3,6,6] x, float[N,3,6,6] z) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[8] b1, float[4,16,1,1] w2> {
            a = Conv(x, w1, b1)
            b = Conv(z, w1, b1)
            c = Concat<axis = 1>(a, b)
            y = Conv(c, w2)
        }""")
    assert groups(model) == {"w1:0": 8}
    assert shapes(halve(model).model)["w2"] == [4, 8, 1, 1]


def test_a_bias_that_two_layers_share_by_chance_is_not_coupling() -> None:
    """Exporters merge equal vectors; the two layers must stay independent."""
    model = net("""
        merged (float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[8,3,1,1] w1, float[8] bias, float[8,8,1,1] w2, float[4,8,1,1] w3> {
            a = Conv(x, w1, bias)
            b = Conv(a, w2, bias)
            y = Conv(b, w3)
        }""")
    assert groups(model) == {"w1:0": 8, "w2:0": 8}
    result = halve(model, selection="global")
    assert sorted(name for name in shapes(result.original.model) if name.startswith("bias")) == ["bias", "bias_1"]


def test_one_vector_as_scale_and_variance_of_one_layer() -> None:
    model = between("b = BatchNormalization(a, one, zero, zero, one)", ", float[8] one, float[8] zero")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_an_embedding_tied_to_the_output_keeps_its_rows() -> None:
    model = net("""
        tied (int64[N,T] x) => (float[N,T,20] y) <float[20,8] table, float[8,8] w1> {
            e = Gather(table, x)
            h = MatMul(e, w1)
            t = Transpose<perm = [1,0]>(table)
            y = MatMul(h, t)
        }""")
    assert groups(model) == {"table:1": 8}
    assert pinned(model)["table:0"] == "Gather selects from this axis"
    halve(model, channels=0.6)


# ---- what nobody knows --------------------------------------------------------------------------


def test_an_operator_without_a_rule_pins_what_it_touches() -> None:
    model = between("b = SampleOp<alpha = 1.0>(a)".replace("SampleOp", "com.microsoft.SampleOp"), domains=("com.microsoft",))
    assert groups(model) == {}
    assert pinned(model)["w1:0"] == "operator com.microsoft::SampleOp has no rule"


def test_a_custom_domain_pins_only_what_it_touches() -> None:
    model = net(
        """
        custom (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[6,3,1,1] w0, float[8,6,1,1] w1, float[4,8,1,1] w2> {
            c = Conv(x, w0)
            a = Conv(c, w1)
            b = my.domain.Wobble(a)
            y = Conv(b, w2)
        }""",
        domains=("my.domain",),
    )
    assert groups(model) == {"w0:0": 6}
    assert pinned(model)["w1:0"] == "operator my.domain::Wobble has no rule"
    result = graphprune.prune(model, targets=["channels=0.5"], align=1, verify=False)
    assert shapes(result.model)["w0"] == [3, 3, 1, 1]


def test_a_value_that_branches_capture_is_carried() -> None:
    def branch(name: str, operator: str) -> object:
        node = helper.make_node(operator, ["a"], [f"{name}_out"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)])

    model = net("""
        capture (float[N,3,6,6] x, bool flag) => (float[N,4,6,6] y)
        <float[6,3,1,1] w0, float[8,6,1,1] w1, float[4,8,1,1] w2> {
            c = Conv(x, w0)
            a = Conv(c, w1)
            b = Identity(a)
            y = Conv(b, w2)
        }""")
    node = helper.make_node("If", ["flag"], ["b"], then_branch=branch("yes", "Relu"), else_branch=branch("no", "Neg"))
    model.graph.node[2].CopyFrom(node)
    assert groups(model) == {"w0:0": 6, "w1:0": 8}
    halve(model)


def test_every_pinned_axis_names_its_node() -> None:
    model = between("b = com.microsoft.SampleOp(a)", domains=("com.microsoft",))
    found = {(p.tensor, p.axis): p.reason.node for p in graphprune.analyze(model).pinned}
    assert found["w1", 0] == found["w2", 1] == "SampleOp_b"
