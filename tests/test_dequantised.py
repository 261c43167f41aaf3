"""Networks with QuantizeLinear and DequantizeLinear are ranked and repaired as real ones, and stay quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result as Outcome
from nets import net, set_initializer, weights, write
from onnx import ModelProto, TensorProto, helper

import graphprune
from graphprune.calibration import linear_nodes
from graphprune.dequantised import rounded, with_real_weights
from graphprune.linear import Linear
from graphprune.real_values import Scaled
from graphprune.runtime import run
from graphprune.tails import tail_of

DATA, HIDDEN, RESULT = 0.03, 0.05, 0.06
"""The scales of activations."""


def samples(count: int = 96, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 6, 8, 8)).astype(np.float32)}


def integers(scales: int = 1, kind: str = "int8", point: int = 0) -> ModelProto:
    """A residual block as quantisers write it: the ReLU behind the first convolution is the zero point 0 of what follows.

    `scales` is 1 for one scale for each weight, or 0 for one for each result.
    """
    first, second, third = ([1, 1, 1] if scales else [24, 6, 5])[:3]
    model = net(
        f"""
        integers (float[N,6,8,8] x) => (float[N,5] y)
        <float sx = {{{DATA}}}, uint8 zx = {{128}}, float sh = {{{HIDDEN}}}, uint8 zh = {{0}},
         float sr = {{{RESULT}}}, uint8 zr = {{120}},
         {kind}[24,6,3,3] n1, float[{first}] s1, {kind}[{first}] z1, int32[24] m1, float[{first}] t1, int32[{first}] o1,
         {kind}[6,24,3,3] n2, float[{second}] s2, {kind}[{second}] z2, int32[6] m2, float[{second}] t2, int32[{second}] o2,
         {kind}[5,6] n3, float[{third}] s3, {kind}[{third}] z3> {{
            xq = QuantizeLinear(x, sx, zx)
            xd = DequantizeLinear(xq, sx, zx)
            w1 = DequantizeLinear<axis = 0>(n1, s1, z1)
            b1 = DequantizeLinear<axis = 0>(m1, t1, o1)
            a = Conv<pads = [1, 1, 1, 1]>(xd, w1, b1)
            hq = QuantizeLinear(a, sh, zh)
            hd = DequantizeLinear(hq, sh, zh)
            w2 = DequantizeLinear<axis = 0>(n2, s2, z2)
            b2 = DequantizeLinear<axis = 0>(m2, t2, o2)
            c = Conv<pads = [1, 1, 1, 1]>(hd, w2, b2)
            rq = QuantizeLinear(c, sr, zr)
            rd = DequantizeLinear(rq, sr, zr)
            sum = Add(rd, xd)
            p = GlobalAveragePool(sum)
            f = Flatten(p)
            w3 = DequantizeLinear<axis = 0>(n3, s3, z3)
            y = Gemm<transB = 1>(f, w3)
        }}"""
    )
    rng = np.random.default_rng(11)
    for name, data in (("1", DATA), ("2", HIDDEN), ("3", 1.0)):
        found = weights(model)
        scale = rng.uniform(0.5, 2, found[f"s{name}"].shape) * (0.004 if name != "3" else 0.02)
        set_initializer(model, f"s{name}", scale.astype(np.float32))
        set_initializer(model, f"z{name}", np.full_like(found[f"z{name}"], point))
        numbers = rng.integers(-90, 90, found[f"n{name}"].shape) + point
        set_initializer(model, f"n{name}", numbers.astype(found[f"n{name}"].dtype))
        if f"t{name}" in found:
            set_initializer(model, f"t{name}", (scale * data).astype(np.float32))
            set_initializer(model, f"o{name}", np.zeros_like(found[f"o{name}"]))
            set_initializer(model, f"m{name}", rng.integers(-3000, 3000, found[f"m{name}"].shape).astype(np.int32))
    return model


def made_at_run_time(model: ModelProto) -> ModelProto:
    """The same with weights of real numbers behind a QuantizeLinear, as after training that knows of quantisation."""
    for name in ("1", "2", "3"):
        found = weights(model)
        axes = (-1, *(1,) * (found[f"n{name}"].ndim - 1))
        real = (found[f"n{name}"].astype(np.float32) - found[f"z{name}"].reshape(axes)) * found[f"s{name}"].reshape(axes)
        set_initializer(model, f"n{name}", real)
        at = next(k for k, node in enumerate(model.graph.node) if node.input[0] == f"n{name}")
        operands = [f"n{name}", f"s{name}", f"z{name}"]
        model.graph.node.insert(at, helper.make_node("QuantizeLinear", operands, [f"q{name}"], axis=0))
        model.graph.node[at + 1].input[0] = f"q{name}"
    return model


KINDS = pytest.mark.parametrize(("scales", "kind", "point"), [(0, "int8", 0), (1, "int8", 0), (1, "uint8", 131)])


def pruned(model: ModelProto, repair: str | tuple[str, ...] = "reconstruct", **options: object) -> graphprune.Result:
    defaults = {"targets": "channels=0.7", "calibration": samples(), "repair": repair, "align": 1, "importance": "obspa"}
    return graphprune.prune(model, **defaults | options)


def error(result: graphprune.Result, model: ModelProto) -> float:
    feeds = samples(seed=5)
    wanted, given = run(model, feeds)["y"], run(result.model, feeds)["y"]
    return float(((wanted - given) ** 2).mean() / wanted.var())


@KINDS
def test_the_twin_computes_the_same(scales: int, kind: str, point: int) -> None:
    analysis = graphprune.analyze(integers(scales, kind, point))
    twin = with_real_weights(analysis)
    types = {tensor.name: tensor.data_type for tensor in twin.graph.model.graph.initializer}
    assert {types[name] for name in ("n1", "m1", "n2", "m2", "n3")} == {TensorProto.FLOAT}
    assert len(twin.graph.nodes) == len(analysis.graph.nodes)
    feeds = samples(4)
    np.testing.assert_allclose(
        run(twin.graph.model, feeds)["y"], run(analysis.graph.model, feeds)["y"], atol=2e-2
    )  # kernels on integers may round a step differently


def test_weights_of_half_precision_scales_are_of_half_precision() -> None:
    model = net(
        """
        half (float16[N,6] x) => (float16[N,5] y) <int8[6,12] n1, float16[12] s1, int8[12] z1, float16[12,5] w2> {
            w1 = DequantizeLinear<axis = 1>(n1, s1, z1)
            h = MatMul(x, w1)
            r = Relu(h)
            y = MatMul(r, w2)
        }""",
        opset=19,
    )
    feeds = {"x": np.random.default_rng(3).normal(size=(64, 6)).astype(np.float16)}
    result = pruned(model, "obs", calibration=feeds)
    assert result.proof is not None
    assert weights(result.model)["w2"].dtype == np.float16


def layers(model: ModelProto) -> dict[str, Linear]:
    graph = with_real_weights(graphprune.analyze(model)).graph
    return {node.weight: node for node in linear_nodes(graph).values()}


def test_layers_of_the_twin_have_their_weights_and_biases() -> None:
    found = layers(integers())
    assert {name: node.bias for name, node in found.items()} == {"n1": "m1", "n2": "m2", "n3": ""}


def test_what_is_quantised_on_the_way_to_a_sum_is_seen_there() -> None:
    model = integers()
    graph = with_real_weights(graphprune.analyze(model)).graph
    tail = tail_of(graph, layers(model)["n2"])
    assert (tail.total, tail.other) == ("sum", "xd")


def test_a_scale_in_a_vector_of_one_is_one_scale() -> None:
    model = integers()
    for name in ("sr", "zr", "sh", "zh"):
        set_initializer(model, name, weights(model)[name].reshape(1))
    graph = with_real_weights(graphprune.analyze(model)).graph
    assert tail_of(graph, layers(model)["n2"]).total == "sum"
    assert tail_of(graph, layers(model)["n1"]).range[0] == 0


def test_a_zero_point_at_the_end_hides_what_a_relu_would() -> None:
    model = integers()
    graph = with_real_weights(graphprune.analyze(model)).graph
    tail = tail_of(graph, layers(model)["n1"])
    assert (tail.total, tail.other) == ("a", "")
    np.testing.assert_allclose(tail.range, (0, 255 * HIDDEN), rtol=1e-6)


@KINDS
@pytest.mark.parametrize("repair", ["reconstruct", "obs", "interpolate", "absorb", "statistics"])
def test_repairs_help_and_leave_the_network_quantised(repair: str, scales: int, kind: str, point: int) -> None:
    model = integers(scales, kind, point)
    result = pruned(model, repair)
    assert result.proof is not None
    assert result.proof.passed
    before = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {tensor.name: tensor.data_type for tensor in result.model.graph.initializer} == before
    assert "n2" in result.weights
    assert error(result, model) < (0.9 if repair in ("absorb", "statistics") else 0.6) * error(pruned(model, ()), model)


@KINDS
@pytest.mark.parametrize("repair", ["reconstruct", "obs"])
def test_weights_that_are_quantised_at_run_time_are_repaired_as_stored_ones_are(
    repair: str, scales: int, kind: str, point: int
) -> None:
    """Up to what is rounded twice."""
    stored = integers(scales, kind, point)
    made = made_at_run_time(integers(scales, kind, point))
    feeds = samples(4)
    np.testing.assert_allclose(run(made, feeds)["y"], run(stored, feeds)["y"], atol=1e-5)
    one, other = (pruned(each, repair, importance="magnitude") for each in (stored, made))
    assert other.keep == one.keep
    numbers, real = weights(one.model), weights(other.model)
    for name in ("n1", "n2", "n3"):
        np.testing.assert_allclose(real[f"s{name[1]}"], numbers[f"s{name[1]}"], rtol=1e-4)
        axes = (-1, *(1,) * (real[name].ndim - 1))
        again = np.rint(real[name] / real[f"s{name[1]}"].reshape(axes)) + real[f"z{name[1]}"].reshape(axes)
        assert np.abs(again - numbers[name].astype(int)).max() <= 1
    assert error(other, made) < 0.6 * error(pruned(made, (), importance="magnitude"), made)


def test_other_pairs_of_nodes_are_left_alone() -> None:
    """Other scales on the way back, and rounded weights that somebody else reads."""
    apart = made_at_run_time(integers())
    node = next(node for node in apart.graph.node if node.output[0] == "w2")
    node.input[1] = "s1"
    assert "n2" not in layers(apart)
    shared = made_at_run_time(integers())
    shared.graph.node.append(helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["more"], axis=0))
    shared.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [6, 24, 3, 3]))
    assert set(layers(shared)) == {"n1", "n3"}


@pytest.mark.torch
@KINDS
def test_gradients_go_through_rounding(scales: int, kind: str, point: int) -> None:
    model = integers(scales, kind, point)
    assert error(pruned(model, "polish{steps=60}"), model) < 0.6 * error(pruned(model, ()), model)
    assert pruned(model, (), importance="taylor").proof is not None


@KINDS
def test_biases_count_in_steps_of_data_and_weight(scales: int, kind: str, point: int) -> None:
    """Kernels on integers add them as they are."""
    found = weights(pruned(integers(scales, kind, point)).model)
    np.testing.assert_allclose(found["t2"], found["s2"] * np.float32(HIDDEN), rtol=1e-5)


def test_scales_fit_the_range_that_the_numbers_had() -> None:
    """Numbers that leave room (here 38 of 128) may do so for kernels that would overflow."""
    result = pruned(integers(0))
    numbers = weights(result.model)["n2"].astype(int)
    assert -90 <= numbers.min() <= numbers.max() <= 90
    assert (np.abs(numbers).reshape(6, -1).max(axis=1) >= 89).all()


def test_what_others_share_stays() -> None:
    """A scale of two weights does not move, and a weight that two nodes read is not changed."""
    model = integers()
    del model.graph.node[7].input[1]
    model.graph.node[7].input.insert(1, "s1")
    model.graph.initializer.remove(next(each for each in model.graph.initializer if each.name == "s2"))
    set_initializer(model, "t2", weights(model)["s1"] * np.float32(HIDDEN))
    result = pruned(model)
    assert "n2" in result.weights
    assert "s1" not in result.weights
    assert error(result, model) < error(pruned(model, ()), model)


def test_unchanged_weights_are_rounded_to_what_they_were() -> None:
    analysis = graphprune.analyze(integers(0, "int8", 0))
    twin = with_real_weights(analysis).graph
    kept = {name: np.array(twin.constant(name)) for name in ("n1", "m1", "n2")}
    found = rounded(analysis, kept, lambda name, axis: None)
    for name in ("n1", "n2"):
        scale = found[f"s{name[1]}"].reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(found[name] * scale, kept[name], atol=float(scale.max()) * 0.51)
    np.testing.assert_allclose(found["m1"] * found["t1"], kept["m1"], rtol=1e-3)


def test_numbers_are_stored_as_quantizelinear_rounds() -> None:
    model = net("""
        rounds (float[3,4] x) => (uint8[3,4] y) <float[4] s = {0.5, 0.25, 1, 2}, uint8[4] z = {0, 3, 200, 255}> {
            y = QuantizeLinear<axis = 1>(x, s, z)
        }""")
    real = np.array([[0.25, -0.125, 60, 5], [0.75, 100, -300, -1], [-1, 0.125, 0.5, -1000]], np.float32)
    found = Scaled("s", "z", 1).stored(real, np.dtype(np.uint8), weights(model).get)
    assert found.tolist() == run(model, {"x": real})["y"].tolist()


def test_a_scale_of_zero_is_stored_as_zero_point() -> None:
    constants = {"s": np.zeros(1, np.float32), "z": np.array([7], np.int8)}
    assert Scaled("s", "z", 0).stored(np.array([0.0, 1.0]), np.dtype(np.int8), constants.get).tolist() == [7, 8]


def test_networks_without_quantised_weights_are_their_own_twin() -> None:
    analysis = graphprune.analyze(net("n (float[2,3] x) => (float[2,4] y) <float[3,4] w> { y = MatMul(x, w) }"))
    assert with_real_weights(analysis) is analysis


def test_apply_gives_the_same_bytes(tmp_path: Path, graphprune_cli: Callable[..., Outcome]) -> None:
    model, out, again = (tmp_path / name for name in ("model.onnx", "out.onnx", "again.onnx"))
    write(integers(), model)
    np.savez(tmp_path / "samples.npz", **samples())
    options = "--target", "channels=0.7", "--recipe", "balanced", "--calibration", str(tmp_path / "samples.npz")
    plan = str(tmp_path / "plan.json")
    graphprune_cli("prune", str(model), "-o", str(out), "--plan", plan, *options)
    graphprune_cli("apply", str(model), plan, "-o", str(again))
    assert out.read_bytes() == again.read_bytes()
    graphprune_cli("verify", str(model), str(out), plan)


def test_one_scale_in_a_vector_needs_no_axis() -> None:
    """A bias has one axis, and the axis of DequantizeLinear is 1 unless it says otherwise."""
    model = net(
        """
        biased (float[4,6] x) => (float[4,5] y) <float[6,12] n, int32[12] b, float[1] s, int32[1] z, float[12,5] v> {
            w = DequantizeLinear(b, s, z)
            h = Gemm(x, n, w)
            r = Relu(h)
            y = MatMul(r, v)
        }""",
        opset=19,
    )
    analysis = graphprune.analyze(model)
    assert [group.size for group in analysis.groups] == [12]
    assert "b" in analysis.ledger.numbers


@pytest.mark.parametrize(
    ("declared", "axis"),
    [("float[7] s", 1), ("float[0] s", 1), ("float[12] s", 5), ("float[12] s", -3), ("float[6,12] s", 1), ("float[1,12] s", 1)],
)
def test_scales_that_do_not_fit_pin_and_are_not_computed_with(declared: str, axis: int) -> None:
    model = net(
        f"""
        wrong (float[4,6] x) => (float[4,5] y) <int8[6,12] n, {declared}, float[12,5] v> {{
            w = DequantizeLinear<axis = {axis}>(n, s)
            h = MatMul(x, w)
            r = Relu(h)
            y = MatMul(r, v)
        }}""",
        opset=19,
    )
    analysis = graphprune.analyze(model)
    assert analysis.groups == []
    assert analysis.ledger.numbers == {}
    assert with_real_weights(analysis) is analysis
