"""Which channels go, and where from."""

from __future__ import annotations

import numpy as np
import pytest
from nets import initializer, net, residual, set_initializer, wide
from onnx import ModelProto
from selecting import SELECTIONS, counts, prune

import graphprune
from graphprune import registry
from graphprune.budget import Problem, solve
from graphprune.convex import hull_slopes
from graphprune.cost import KINDS, CostModel
from graphprune.evidence import Evidence
from graphprune.targets import parse_target


def test_uniform_keeps_the_same_share_everywhere() -> None:
    result = prune("channels=0.5", selection="uniform")
    assert counts(result) == {"w1:0": 24, "w2:0": 32}


def faint(model: ModelProto, *names: str) -> ModelProto:
    """The same net with some weights a hundred times smaller."""
    for name in names:
        set_initializer(model, name, initializer(model, name) * np.float32(0.01))
    return model


def test_global_takes_the_worst_of_all() -> None:
    """With scores that are not normalised, the units of one group are worth less than all of the other."""
    result = prune("channels=0.75", model=faint(wide(), "w2", "w3"), selection="global", importance="magnitude{normalizer=none}")
    assert counts(result) == {"w1:0": 48, "w2:0": 36}


def test_global_leaves_every_group_its_floor() -> None:
    spec = "magnitude{normalizer=none}"
    result = prune("channels=0.5", model=faint(wide(), "w2", "w3"), selection="global{floor=0.25}", importance=spec)
    assert counts(result)["w2:0"] >= 16
    assert sum(counts(result).values()) == 56


def kinds() -> ModelProto:
    """Two convolutional groups, of which one is faint, and two of matrix products, both fainter than those."""
    return faint(
        net("""
        kinds (float[N,3,4,4] x) => (float[N,2] y)
        <float[20,3,1,1] c1, float[20,20,1,1] c2, float[20,20,1,1] c3, float[20,12] m1, float[12,12] m2, float[12,2] m3> {
            a = Conv(x, c1)
            b = Conv(a, c2)
            c = Conv(b, c3)
            p = GlobalAveragePool(c)
            f = Flatten(p)
            g = MatMul(f, m1)
            h = MatMul(g, m2)
            y = MatMul(h, m3)
        }"""),
        "m1",
        "m2",
        "m3",
    )


def test_isomorphic_keeps_the_same_share_of_every_kind() -> None:
    """Where one ranking over all would take from the matrix products alone."""
    spec = "magnitude{normalizer=none}"
    one = counts(prune("channels=0.75", model=kinds(), selection="global", importance=spec))
    assert one["c1:0"] + one["c2:0"] == 40
    each = counts(prune("channels=0.75", model=kinds(), selection="isomorphic", importance=spec))
    assert each["c1:0"] + each["c2:0"] == 30
    assert each["m1:1"] + each["m2:1"] == 18


@pytest.mark.parametrize("selection", SELECTIONS)
def test_within_a_group_the_best_stay(selection: str) -> None:
    result = prune("channels=0.6", selection=selection)
    analysis = graphprune.analyze(result.original)
    criterion, weights = registry.make("importance", "path"), Evidence.of(result.analysis)
    for group in analysis.groups:
        scores = criterion.score(group, weights)
        kept = result.plan.keep[group.id]
        gone = np.setdiff1d(np.arange(group.size), kept)
        assert len(gone)
        assert scores[kept].min() >= scores[gone].max()


# ---- least distortion -----------------------------------------------------------------------------


def test_hull_slopes_never_decrease_and_meet_the_ends() -> None:
    errors = np.array([0, 3, 3.5, 6, 6.1, 10])
    slopes = hull_slopes(errors)
    assert slopes.tolist() == pytest.approx([1.525] * 4 + [3.9])
    assert slopes.sum() == pytest.approx(10)


def check_least_error(selection: str, scores: list[np.ndarray]) -> None:
    """Two independent layers of equal cost, of which half may stay: brute force over all pairs of counts."""
    size = len(scores[0])
    model = net(f"""
        two (float[N,4] x) => (float[N,2] y, float[N,2] z)
        <float[{size},4] a, float[2,{size}] b, float[{size},4] c, float[2,{size}] d> {{
            p = Gemm<transB = 1>(x, a)
            y = Gemm<transB = 1>(p, b)
            q = Gemm<transB = 1>(x, c)
            z = Gemm<transB = 1>(q, d)
        }}""")
    analysis = graphprune.analyze(model)
    ones = np.ones(2, int)
    problem = Problem(analysis.groups, scores, ones, size * ones, ones, CostModel(analysis), [parse_target("macs=0.5")])
    kept = [len(units) for units in solve(problem, registry.make("selection", selection).path(problem)).values()]
    error = [np.concatenate([[0], np.cumsum(np.sort(each))]) for each in scores]
    assert sum(kept) == size
    best = min(error[0][size - k] + error[1][k] for k in range(1, size))
    assert error[0][size - kept[0]] + error[1][size - kept[1]] == pytest.approx(best)


def test_distortion_spends_error_where_it_saves_most() -> None:
    """The scores of one layer are a tenth of the other's."""
    rng = np.random.default_rng(0)
    check_least_error("distortion", [np.sort(rng.random(10)) * 0.1, np.sort(rng.random(10))])


def test_savings_are_the_slope_of_the_cost() -> None:
    analysis = graphprune.analyze(residual())
    present = np.ones(len(analysis.ledger.labels), dtype=bool)
    model = CostModel(analysis, {node: 1e3 * macs for node, macs in CostModel(analysis).node_macs(present).items()})
    for kind in KINDS:
        savings = model.savings(present, [kind])
        for group in analysis.groups:
            without = present.copy()
            without[group.labels[0]] = False
            saved = (model.original.of(kind) - model.cost(without).of(kind)) / model.original.of(kind)
            assert saved <= savings[group.labels[0]] + 1e-9
            assert savings[group.labels[0]] <= 1.3 * saved


def test_the_knapsack_is_the_best_of_all_choices() -> None:
    """Error curves that are not convex."""
    pytest.importorskip("scipy")
    check_least_error("knapsack", [np.random.default_rng(seed).random(8) ** 3 for seed in (1, 2)])


def test_the_knapsack_follows_what_neighbours_keep() -> None:
    """On a chain of layers costs are products; the budget is met and nearly used."""
    pytest.importorskip("scipy")
    result = prune("macs=0.5", "params=0.6", model=residual(), selection="knapsack", align=1)
    for target in result.realised:
        assert target.cost <= target.limit
    assert max(target.cost / target.limit for target in result.realised) > 0.9
