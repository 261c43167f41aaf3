"""Depth: residual branches that leave as a whole, against the oracle and against what is left by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oracle
import pytest
from click.testing import CliRunner
from nets import block, initializer, net, operators, residual, set_initializer, write
from onnx import ModelProto

import graphprune
from graphprune.cli import main
from graphprune.cost import CostModel
from graphprune.depth import with_residuals
from graphprune.errors import UnreachableError, UsageError
from graphprune.plan import parse_plan


def bottlenecks() -> ModelProto:
    """Three blocks of three layers on one stream, and a head."""
    return net("""
        bottlenecks (float[N,3,8,8] x) => (float[N,5] y)
        <float[8,3,3,3] s, float[8] t,
         float[4,8,1,1] a1, float[6,4,3,3] b1, float[8,6,1,1] c1, float[8] d1,
         float[4,8,1,1] a2, float[6,4,3,3] b2, float[8,6,1,1] c2, float[8] d2,
         float[4,8,1,1] a3, float[6,4,3,3] b3, float[8,6,1,1] c3, float[8] d3, float[5,8] h> {
            u0 = Conv<pads = [1,1,1,1]>(x, s, t)
            v0 = Relu(u0)
            p1 = Conv(v0, a1)  q1 = Relu(p1)  r1 = Conv<pads = [1,1,1,1]>(q1, b1)  t1 = Relu(r1)  w1 = Conv(t1, c1, d1)
            z1 = Add(v0, w1)  v1 = Relu(z1)
            p2 = Conv(v1, a2)  q2 = Relu(p2)  r2 = Conv<pads = [1,1,1,1]>(q2, b2)  t2 = Relu(r2)  w2 = Conv(t2, c2, d2)
            z2 = Add(w2, v1)  v2 = Relu(z2)
            p3 = Conv(v2, a3)  q3 = Relu(p3)  r3 = Conv<pads = [1,1,1,1]>(q3, b3)  t3 = Relu(r3)  w3 = Conv(t3, c3, d3)
            z3 = Add(v2, w3)  v3 = Relu(z3)
            g = GlobalAveragePool(v3)
            f = Flatten(g)
            y = Gemm<transB = 1>(f, h)
        }""")


def transformer() -> ModelProto:
    """One attention and one MLP, both behind a normalisation, with the output of the attention moved before the sum."""
    return net("""
        transformer (float[N,6,8] x) => (float[N,6,8] y)
        <float[8] g1, float[8] o1, float[8,12] q, float[8,12] k, float[8,12] v, float[12,8] o, float[8] ob,
         float[8] g2, float[8] o2, float[8,20] m, float[20] mb, float[20,8] n, float[8] nb,
         int64[4] heads = {0, 0, 3, 4}, int64[3] joined = {0, 0, 12}, int64[2] rows = {-1, 12}, int64[3] back = {-1, 6, 8}> {
            h = LayerNormalization<axis = -1>(x, g1, o1)
            q0 = MatMul(h, q)  q1 = Reshape(q0, heads)  q2 = Transpose<perm = [0,2,1,3]>(q1)
            k0 = MatMul(h, k)  k1 = Reshape(k0, heads)  k2 = Transpose<perm = [0,2,3,1]>(k1)
            v0 = MatMul(h, v)  v1 = Reshape(v0, heads)  v2 = Transpose<perm = [0,2,1,3]>(v1)
            s = MatMul(q2, k2)  p = Softmax<axis = -1>(s)
            c = MatMul(p, v2)  d = Transpose<perm = [0,2,1,3]>(c)  e = Reshape(d, joined)
            flat = Reshape(e, rows)
            a = MatMul(flat, o)  ab = Add(a, ob)
            wide = Reshape(ab, back)
            r = Add(x, wide)
            i = LayerNormalization<axis = -1>(r, g2, o2)
            m0 = MatMul(i, m)  m1 = Add(m0, mb)  m2 = Relu(m1)
            n0 = MatMul(m2, n)  n1 = Add(n0, nb)
            y = Add(r, n1)
        }""")


def emptied(model: ModelProto, *names: str) -> tuple[graphprune.Result, dict[str, list[int]]]:
    """The model without the branches that the named groups belong to, by way of a plan."""
    graph = graphprune.load(model)
    analysis = with_residuals(graphprune.analyze(graph))
    keep = analysis.kept(analysis.present({name: [] for name in names}))
    from graphprune.replay import make_plan

    plan = make_plan(graph, analysis, keep, {}, graphprune.Options().as_dict())
    return graphprune.apply_plan(model, parse_plan(plan.to_json())), keep


def branches(model: ModelProto) -> dict[str, list[str]]:
    """For each branch that can leave its group, with the groups that leave with it."""
    return {
        residual.group.id: [group.id for group in residual.inner]
        for residual in with_residuals(graphprune.analyze(model)).residuals
    }


def test_a_block_leaves_with_all_its_groups() -> None:
    model = bottlenecks()
    assert branches(model) == {"b1:0": ["a1:0"], "b2:0": ["a2:0"], "b3:0": ["a3:0"]}
    result, keep = emptied(model, "b2:0")
    assert keep["a2:0"] == []
    assert operators(result.model).count("Conv") == 7
    assert not {"a2", "b2", "c2"} & {tensor.name for tensor in result.model.graph.initializer}
    assert {tensor.name for tensor in result.model.graph.initializer} >= {"a1", "a3"}
    assert result.proof is not None
    assert result.proof.passed
    oracle.check(graphprune.load(model).model, json.loads(result.plan.to_json()), result.model)


def test_what_it_adds_is_its_bias() -> None:
    model = bottlenecks()
    result, _ = emptied(model, "b1:0")
    np.testing.assert_array_equal(initializer(result.model, "z1_constant").ravel(), initializer(model, "d1"))


def test_a_branch_without_bias_leaves_nothing() -> None:
    model = bottlenecks()
    set_initializer(model, "d3", np.zeros(8, np.float32))
    result, _ = emptied(model, "b3:0")
    assert operators(result.model).count("Add") == 2
    assert operators(result.model).count("Identity") == 1


def test_all_branches_of_a_network() -> None:
    model = bottlenecks()
    result, _ = emptied(model, "b1:0", "b2:0", "b3:0")
    assert operators(result.model).count("Conv") == 1
    oracle.check(graphprune.load(model).model, json.loads(result.plan.to_json()), result.model)


def test_batch_normalisation_behind_the_last_layer_goes_into_the_constant() -> None:
    model = residual()
    result, _ = emptied(model, "inner:0")
    assert operators(result.model).count("BatchNormalization") == 1
    scale, offset, mean, variance = (initializer(model, name).astype(np.float64) for name in ("s3", "o3", "m3", "v3"))
    expected = offset - mean * scale / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(initializer(result.model, "sum_constant").ravel(), expected, rtol=1e-5)


def test_attention_and_mlp_leave_by_their_heads_and_width() -> None:
    model = transformer()
    found = branches(model)
    assert set(found) == {"q:1", "m:1"}
    result, _ = emptied(model, "q:1", "m:1")
    assert operators(result.model) == ["Add", "Add"]
    oracle.check(graphprune.load(model).model, json.loads(result.plan.to_json()), result.model)


def test_a_branch_that_others_read_stays() -> None:
    model = net("""
        shared (float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,3,8,8] z)
        <float[4,4,1,1] s, float[6,4,1,1] a, float[4,6,1,1] b, float[3,6,1,1] c> {
            u = Conv(x, s)
            p = Conv(u, a)
            q = Relu(p)
            r = Conv(q, b)
            y = Add(u, r)
            z = Conv(q, c)
        }""")
    assert branches(model) == {}


def test_of_two_branches_into_one_sum_only_one_can_leave() -> None:
    model = net("""
        both (float[N,4,8,8] x) => (float[N,4,8,8] y)
        <float[6,4,1,1] a, float[4,6,1,1] b, float[6,4,3,3] c, float[4,6,1,1] d> {
            p = Conv(x, a)  q = Relu(p)  r = Conv(q, b)
            s = Conv<pads = [1,1,1,1]>(x, c)  t = Relu(s)  u = Conv(t, d)
            y = Add(r, u)
        }""")
    assert list(branches(model)) == ["a:0"]
    result, _ = emptied(model, "a:0")
    assert operators(result.model) == ["Conv", "Relu", "Conv", "Identity"]


def test_costs_count_what_is_left() -> None:
    model = bottlenecks()
    result, keep = emptied(model, "b1:0", "b3:0")
    analysis = graphprune.analyze(result.model)
    left = CostModel(analysis).original
    before = with_residuals(graphprune.analyze(model))
    assert CostModel(before).cost(before.present(keep)).macs == left.macs == result.after.macs


def test_costs_of_what_is_pinned_inside_a_branch_go_too() -> None:
    model = net("""
        pinned (float[N,4,8,8] x) => (float[N,4,8,8] y)
        <float[4,1,3,3] w, float[6,4,1,1] a, float[4,6,1,1] b> {
            d = Conv<group = 4, pads = [1,1,1,1]>(x, w)
            p = Conv(d, a)  q = Relu(p)  r = Conv(q, b)
            y = Add(x, r)
        }""")
    result, _ = emptied(model, "a:0")
    assert operators(result.model) == ["Identity"]
    assert result.after.macs == 0


def test_no_width_is_left_to_a_plan_that_contradicts_itself() -> None:
    model = bottlenecks()
    result, _ = emptied(model, "b2:0")
    document = json.loads(result.plan.to_json())
    for group in document["groups"]:
        if group["id"] == "a2:0":
            group["keep"] = [0, 1]
    with pytest.raises(UsageError, match="contradicts itself"):
        graphprune.apply_plan(model, parse_plan(json.dumps(document)))
    for group in document["groups"]:
        if group["id"] == "s:0":
            group["keep"] = []
    with pytest.raises(UsageError, match="keeps nothing of group 's:0'; at least one unit must stay"):
        graphprune.apply_plan(model, parse_plan(json.dumps(document)))


@pytest.mark.parametrize("mode", ["coupled", "unconstrained"])
@pytest.mark.parametrize("target", ["macs=0.6", "macs=0.3", "params=0.4"])
def test_min_channels_0_spreads_a_budget_over_width_and_depth(mode: str, target: str) -> None:
    model = bottlenecks()
    result = graphprune.prune(model, targets=[target], min_channels=0, align=1, importance="magnitude", mode=mode)  # type: ignore[arg-type]
    assert result.realised[0].fraction <= float(target.partition("=")[2])
    oracle.check(graphprune.load(model).model, json.loads(result.plan.to_json()), result.model)
    again = graphprune.apply_plan(model, parse_plan(result.plan.to_json()))
    assert again.model.SerializeToString() == result.model.SerializeToString()


def weakened(name: str, by: float = 1e-3) -> ModelProto:
    """The three blocks, one of which hardly does anything."""
    model = bottlenecks()
    set_initializer(model, name, initializer(model, name) * np.float32(by))
    return model


@pytest.mark.parametrize("number", [1, 2, 3])
def test_blocks_drops_the_branch_that_matters_least(number: int) -> None:
    model = weakened(f"c{number}")
    result = graphprune.prune(model, targets=["macs=0.9"], importance="removal", selection="blocks")
    gone = {name for name, units in result.keep.items() if not units}
    assert gone == {f"a{number}:0", f"b{number}:0"}
    others = {name: len(units) for name, units in result.keep.items() if name not in gone}
    assert others == {group.id: group.size for group in result.analysis.groups if group.id not in gone}


def test_removal_is_the_change_of_the_outputs_branch_after_branch() -> None:
    model = bottlenecks()
    x = np.random.default_rng(5).normal(size=(40, 3, 8, 8)).astype(np.float32)
    result = graphprune.prune(model, targets=["macs=0.9"], recipe="depth", repair=(), calibration={"x": x})
    wanted = oracle.run(model, {"x": x})["y"].astype(np.float64)

    def error(*names: str) -> float:
        without = oracle.run(emptied(model, *names)[0].model, {"x": x})["y"]
        return float(np.mean((without - wanted) ** 2) / wanted.var())

    order: list[str] = []
    last = 0.0
    while len(order) < 3:
        rest = {name: error(*order, name) - (error(*order) if order else 0) for name in {"b1:0", "b2:0", "b3:0"} - set(order)}
        best = min(rest, key=lambda name: rest[name])
        last = max(last, rest[best])
        assert result.scores[best].sum() == pytest.approx(last, rel=1e-4)
        order.append(best)


def test_reconstruction_sets_the_constant_to_the_mean_of_what_is_missing() -> None:
    model = block()
    x = np.random.default_rng(5).normal(size=(64, 6, 8, 8)).astype(np.float32)
    options = {"targets": ["macs=0.7"], "selection": "blocks", "importance": "removal", "calibration": {"x": x}}
    result = graphprune.prune(model, repair=("reconstruct{rounds=0}",), **options)  # type: ignore[arg-type]
    assert result.keep["a:0"] == []
    from graphprune.calibration import run_with

    graph = graphprune.load(model)
    (values,) = run_with(graph, ["r"], [{"x": x}])
    constant = initializer(result.model, "w_constant")
    np.testing.assert_allclose(constant.ravel(), values["r"].mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(result.weights["d"], constant.ravel())


def test_repair_brings_the_outputs_nearer() -> None:
    model = bottlenecks()
    x = np.random.default_rng(6).normal(size=(256, 3, 8, 8)).astype(np.float32)
    wanted = oracle.run(model, {"x": x})["y"]
    errors = []
    for repair in ((), ("reconstruct",)):
        result = graphprune.prune(model, targets=["macs=0.6"], recipe="depth", repair=repair, calibration={"x": x})
        errors.append(float(np.mean((oracle.run(result.model, {"x": x})["y"] - wanted) ** 2)))
    assert errors[1] < 0.5 * errors[0]


def test_repaired_constants_are_in_the_plan(tmp_path: Path) -> None:
    model = write(residual(), tmp_path / "m.onnx")
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    plan = tmp_path / "plan.json"
    run = CliRunner().invoke
    outcome = run(main, ["prune", str(model), "-o", str(first), "--target", "macs=0.9", "--recipe", "depth", "--plan", str(plan)])
    assert outcome.exit_code == 0, outcome.output
    assert run(main, ["apply", str(model), str(plan), "-o", str(second)]).exit_code == 0
    assert run(main, ["verify", str(model), str(plan), str(second)]).exit_code == 0
    from onnx import load

    assert load(first).graph == load(second).graph
    assert run(main, ["diff", str(model), str(first)]).exit_code == 0


def test_nothing_to_drop_is_said() -> None:
    from nets import plain

    with pytest.raises(UnreachableError, match="removal"):
        graphprune.prune(plain(), targets=["macs=0.5"], recipe="depth")
