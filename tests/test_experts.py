"""--experts prune: whole experts of a mixture leave, and are never chosen then."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from click.testing import CliRunner
from halving import groups, pinned, shapes
from mixtures import (
    ADDRESSED,
    CORRECTED,
    FLATTENED,
    FREE,
    GATHERED,
    IN_A_BRANCH,
    IN_GROUPS,
    INNER_AXIS,
    LOGARITHM,
    READ_BY_OTHERS,
    ROUTERS,
    SOFTMAX_CORRECTED,
    SOFTMAX_FIRST,
    SPLIT,
    TOPK_FIRST,
    TRANSPOSED,
    TWO_GATES,
    free,
    mixture,
)
from nets import net, set_initializer
from onnx import ModelProto, numpy_helper, save

import graphprune
from graphprune.cli import main
from graphprune.errors import UnreachableError, UsageError


def prune(model: ModelProto, routers: dict[str, tuple[str, int]] = ROUTERS, **options: Any) -> graphprune.Result:
    """Prune with free experts, and check the result in every way there is."""
    options = {"targets": ["channels=0.5"], "align": 1, "experts": "prune", "selection": "uniform"} | options
    result = graphprune.prune(model, **options)
    assert result.proof is not None
    assert result.proof.passed
    plan = json.loads(result.plan.to_json())
    oracle.check(result.original.model, plan, result.model, tolerance=2e-5, silence=True, routers=routers)
    again = graphprune.apply_plan(model, result.plan)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    assert graphprune.verify(model, result.plan, result.model).passed
    measured = graphprune.analyze(result.model, experts="prune")
    assert {g.id: g.size for g in measured.groups} == {g.id: len(g.keep) for g in result.plan.groups if len(g.keep) > 1}
    return result


def keep_experts(model: ModelProto, kept: list[int]) -> graphprune.Result:
    """Keep these experts, and all channels."""
    result = prune(model, targets=[], ratios=[f"^gate:1$={len(kept) / 5}"])
    chosen = [replace(group, keep=kept) if group.id == "gate:1" else group for group in result.plan.groups]
    tensors = {"gate": {"1": kept}, "up": {"0": kept}, "down": {"0": kept}}
    again = graphprune.apply_plan(model, replace(result.plan, groups=chosen, tensors=tensors))
    oracle.check(
        result.original.model, json.loads(again.plan.to_json()), again.model, tolerance=2e-5, silence=True, routers=ROUTERS
    )
    return again


# ---- what leaves, and what is computed then -------------------------------------------------------


@pytest.mark.parametrize(
    ("routing", "routers", "taking"),
    [
        (SOFTMAX_FIRST, ("logits",), GATHERED),
        (SOFTMAX_FIRST, ("logits",), ADDRESSED),
        (TOPK_FIRST, ("logits",), FLATTENED),
        (LOGARITHM, ("logits",), GATHERED),
        (TRANSPOSED, ("logits",), FLATTENED),
        (CORRECTED, ("q",), ADDRESSED),
        (SOFTMAX_CORRECTED, ("logits", "q"), GATHERED),
    ],
)
def test_experts_leave_everywhere_alike(routing: str, routers: tuple[str, ...], taking: str) -> None:
    model = mixture(routing, taking)
    assert groups(model) == {"w0:1": 12, "up:2": 7}
    assert free(model) == {"w0:1": 12, "gate:1": 5, "up:2": 7}
    result = prune(model, dict.fromkeys(routers, ("gate", 1)))
    kept = len(result.keep["gate:1"])
    assert 2 <= kept < 5
    sizes = shapes(result.model)
    assert sizes["gate"][1] == sizes["up"][0] == sizes["down"][0] == kept


def test_by_default_experts_stay_and_the_reason_names_the_option() -> None:
    reasons = pinned(mixture())
    assert {name for name, text in reasons.items() if text == FREE} == {"gate:1", "up:0", "down:0"}
    result = graphprune.prune(mixture(), targets=["params=0.6"], align=1)
    assert shapes(result.model)["up"][0] == 5


def test_only_weights_are_saved_while_as_many_experts_are_chosen() -> None:
    result = prune(mixture(), targets=[], ratios=["^gate:1$=0.4"])
    assert result.before.macs - result.after.macs == 6 * 12 * 3, "three columns of the gate for six tokens"
    assert result.before.params - result.after.params == 3 * (12 + 2 * 12 * 7)


def test_it_equals_a_router_without_the_left_experts() -> None:
    """Checked in numpy, without proof and oracle."""
    model, kept = mixture(), [0, 3, 4]
    result = keep_experts(model, kept)
    w = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    feeds = oracle.random_feeds(model)
    h = np.maximum(feeds["x"].astype(np.float64) @ w["w0"], 0)
    logits = h @ w["gate"]
    logits[:, [1, 2]] = -np.inf
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    chosen = np.argsort(-p, axis=1)[:, :2]
    z = h.copy()
    for token, experts in enumerate(chosen):
        share = p[token, experts] / p[token, experts].sum()
        for weight, expert in zip(share, experts, strict=True):
            z[token] += weight * np.maximum(h[token] @ w["up"][expert], 0) @ w["down"][expert]
    expected = z @ w["head"]
    np.testing.assert_allclose(oracle.run(result.model, feeds)["y"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_quantised_experts_leave_with_their_scales() -> None:
    steps = """e = DequantizeLinear<axis = 0>(up8, steps)
            u = Gather<axis = 0>(e, i)
            d = Gather<axis = 0>(down, i)"""
    model = mixture(taking=steps, weights=", int8[5,12,7] up8, float[5] steps")
    set_initializer(model, "steps", np.linspace(0.01, 0.03, 5, dtype=np.float32))
    assert free(model)["gate:1"] == 5
    result = prune(model)
    assert shapes(result.model)["up8"][0] == shapes(result.model)["steps"][0] == len(result.keep["gate:1"]) < 5


def test_layers_that_share_experts_lose_the_same() -> None:
    again = """gates = MatMul(z, gate2)
            v2, i2 = TopK<axis = -1>(gates, three)
            d2 = Gather<axis = 0>(down, i2)
            t2 = ReduceSum<keepdims = 0>(d2, inner)
            e2 = Add(z, t2)
            y = MatMul(e2, head)"""
    model = mixture(more=again, weights=", float[12,5] gate2, int64[1] three = {3}")
    assert free(model) == {"w0:1": 12, "gate:1": 5}
    result = graphprune.prune(model, targets=[], ratios=["^gate:1$=0.2"], experts="prune")
    assert result.proof is not None
    assert result.proof.passed
    assert len(result.keep["gate:1"]) == 3, "the second TopK takes three"
    assert shapes(result.model)["gate2"][1] == 3


@pytest.mark.parametrize("mode", ["coupled", "unconstrained"])
@pytest.mark.parametrize(
    ("model", "experts"),
    [
        (mixture(taking=SPLIT), {"gate:1"}),
        (mixture(taking=INNER_AXIS), {"gate:1"}),
        (mixture(TOPK_FIRST.replace("axis = -1>(logits", "axis = -1, largest = 0>(logits")), {"gate:1"}),
        (mixture(more=READ_BY_OTHERS, weights=", float[5,4] shares, float[12,5] side"), {"gate:1"}),
        (net(TWO_GATES), {"gate1:1", "gate2:1"}),
        (net(IN_GROUPS), {"gate:1", "gate:1/2"}),
        (net(IN_A_BRANCH), {"gate:1"}),
    ],
    ids=["split numbers", "an inner axis", "the smallest", "other readers", "two gates", "groups of experts", "a branch"],
)
def test_the_proof_passes_whatever_leaves(model: ModelProto, experts: set[str], mode: str) -> None:
    assert experts <= free(model).keys()
    gone = 0
    for seed, share in enumerate((0.7, 0.5, 0.4)):
        options: dict[str, Any] = {"selection": "uniform", "importance": "random", "seed": seed, "align": 1, "mode": mode}
        result = graphprune.prune(model, targets=[f"channels={share}"], experts="prune", **options)
        assert result.proof is not None
        assert result.proof.passed
        sizes = {group.id: group.size for group in result.plan.groups}
        gone += sum(sizes[name] - len(result.keep[name]) for name in experts)
        again = graphprune.apply_plan(model, result.plan)
        assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    assert gone > 0


def test_experts_in_groups_stay_as_many_as_are_chosen() -> None:
    options: dict[str, Any] = {"targets": ["channels=0.35"], "selection": "uniform", "importance": "random", "align": 1}
    results = [graphprune.prune(net(IN_GROUPS), experts="prune", seed=seed, **options) for seed in range(3)]
    assert {shapes(result.model)["up"][0] for result in results} == {4, 6}
    assert all(result.proof is not None and result.proof.passed for result in results)


# ---- as many as are chosen must stay --------------------------------------------------------------


def test_as_many_stay_as_are_chosen() -> None:
    assert len(prune(mixture(), targets=[], ratios=["gate=0.01"]).keep["gate:1"]) == 2
    assert len(prune(mixture(), targets=["channels=0.18"]).keep["gate:1"]) == 2
    assert len(prune(mixture(), targets=["params=0.7"], min_channels=4).keep["gate:1"]) == 4


def test_all_stay_where_all_are_chosen() -> None:
    model = mixture()
    set_initializer(model, "two", np.array([5], np.int64))
    assert prune(model, targets=["params=0.8"]).keep["gate:1"] == [0, 1, 2, 3, 4]


def test_alignment_is_for_channels_not_for_experts() -> None:
    assert len(prune(mixture(), targets=[], ratios=["gate=0.6"], align=4).keep["gate:1"]) == 3


def test_branches_that_may_leave_still_choose_enough_experts() -> None:
    assert len(prune(mixture(), targets=["channels=0.18"], min_channels=0).keep["gate:1"]) == 2


def test_widths_that_are_tried_choose_enough_experts() -> None:
    result = graphprune.prune(
        mixture(), targets=["params=0.5"], align=1, experts="prune", importance="sensitivity", calibration="random"
    )
    assert result.proof is not None
    assert result.proof.passed
    assert len(result.keep["gate:1"]) >= 2


def test_a_criterion_that_has_no_say_about_experts_is_refused() -> None:
    options = {"targets": ["params=0.9"], "align": 1, "calibration": "random", "importance": "wanda"}
    wanted = "--experts prune: importance 'wanda' has no say about experts, so all would stay; name one that has, such as --imp"
    with pytest.raises(UsageError, match=wanted):
        graphprune.prune(mixture(), experts="prune", **options)
    assert graphprune.prune(mixture(), **options).proof is not None


def test_a_plan_with_too_few_experts_is_refused() -> None:
    model = mixture()
    plan = prune(model, targets=[], ratios=["gate=0.4"]).plan
    few = [replace(group, keep=[1]) if group.id == "gate:1" else group for group in plan.groups]
    with pytest.raises(UsageError, match="the plan leaves fewer experts than the model chooses; keep as many as its TopK takes"):
        graphprune.apply_plan(model, replace(plan, groups=few))


def test_ratios_that_leave_too_few_experts_in_groups_are_refused() -> None:
    with pytest.raises(UnreachableError, match="--ratio leaves nothing of some axis, or fewer experts than are chosen; raise it"):
        graphprune.prune(net(IN_GROUPS), ratios=["^gate:1=0.4"], align=1, experts="prune")


# ---- order ----------------------------------------------------------------------------------------


def test_experts_keep_their_order_for_ties() -> None:
    model = mixture()
    gate = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "gate")).copy()
    gate[:] = gate[:, :1]
    set_initializer(model, "gate", gate)
    for kept in ([1, 3, 4], [0, 2, 4]):
        assert keep_experts(model, kept).proof.passed  # type: ignore[union-attr]


def test_a_plan_with_experts_in_another_order_is_refused() -> None:
    model = mixture()
    plan = prune(model, targets=[], ratios=["gate=0.6"]).plan
    other = [replace(group, keep=[4, 1, 2]) if group.id == "gate:1" else group for group in plan.groups]
    with pytest.raises(UsageError, match="its units cannot change places"):
        graphprune.apply_plan(model, replace(plan, groups=other))


def test_experts_numbered_otherwise_fail_the_proof() -> None:
    model = mixture()
    result = prune(model, targets=[], ratios=["gate=0.6"])
    wrong = ModelProto.FromString(result.model.SerializeToString())
    gate = numpy_helper.to_array(next(t for t in wrong.graph.initializer if t.name == "gate"))
    set_initializer(wrong, "gate", gate[:, [1, 2, 0]])
    assert not graphprune.verify(model, result.plan, wrong).passed


@pytest.mark.parametrize("routing", [SOFTMAX_FIRST, SOFTMAX_CORRECTED])
def test_readers_may_take_channels_of_their_own(routing: str) -> None:
    model = mixture(routing, ADDRESSED)
    options: dict[str, Any] = {"targets": ["channels=0.5"], "selection": "uniform", "align": 1, "mode": "unconstrained"}
    result = graphprune.prune(model, experts="prune", **options)
    assert result.proof is not None
    assert result.proof.passed
    assert shapes(result.model)["up"][0] == shapes(result.model)["down"][0] < 5
    again = graphprune.apply_plan(model, result.plan)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


# ---- the command line -----------------------------------------------------------------------------


def test_the_command_line(tmp_path: Any) -> None:
    path = tmp_path / "mixture.onnx"
    save(mixture(), path)
    run = CliRunner().invoke
    shown = run(main, ["analyze", str(path), "--experts", "prune", "--json", "-"])
    assert "gate:1" in {group["id"] for group in json.loads(shown.output)["groups"]}
    done = run(
        main,
        [
            "prune",
            str(path),
            "-o",
            str(tmp_path / "o.onnx"),
            "--plan",
            str(tmp_path / "p.json"),
            "--target",
            "params=0.6",
            "--experts",
            "prune",
        ],
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "p.json").read_text())["options"]["experts"] == "prune"
    assert run(main, ["verify", str(path), str(tmp_path / "p.json"), str(tmp_path / "o.onnx")]).exit_code == 0
