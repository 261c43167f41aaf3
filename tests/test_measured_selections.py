"""Selections that run the network: against greedy descents and neighbours that are worked out here, by zeroing weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nets import initializer, net, residual, set_initializer, wide
from onnx import ModelProto
from selecting import counts
from test_latency import chain, steady  # noqa: F401 - a fixture

import graphprune
from graphprune import pipeline, registry
from graphprune.budget import Problem
from graphprune.errors import CalibrationError, UnreachableError, UsageError
from graphprune.evidence import Evidence
from graphprune.options import Options
from graphprune.runtime import run
from graphprune.targets import parse_target

FEEDS = {"x": np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)}

IMAGES = {"x": np.random.default_rng(6).normal(size=(8, 3, 8, 8)).astype(np.float32)}

LAYERS = {"a:0": ("a", "b"), "b:0": ("b", "c"), "c:0": ("c", "d")}
"""For each group the weights that write and read it."""


def layers(seed: int = 0) -> ModelProto:
    """Three groups, of 8, 7 and 6 units."""
    return net(
        """layers (float[N,6] x) => (float[N,3] y) <float[8,6] a, float[7,8] b, float[6,7] c, float[3,6] d> {
            p = Gemm<transB = 1>(x, a)
            q = Relu(p)
            r = Gemm<transB = 1>(q, b)
            s = Relu(r)
            t = Gemm<transB = 1>(s, c)
            u = Relu(t)
            y = Gemm<transB = 1>(u, d)
        }""",
        seed=seed,
    )


WIDTHS = (8, 7, 6)


def macs(kept: Sequence[int]) -> int:
    a, b, c = kept
    return 6 * a + a * b + b * c + c * 3


def problem_of(model: ModelProto, *targets: str, **options: Any) -> Problem:
    """What a selection sees."""
    values = {"importance": "path", "selection": "performance", "align": 1, "calibration": FEEDS} | options
    scored = pipeline.score(model, Options().updated(values))
    chosen = [parse_target(target) for target in targets]
    return replace(scored.problem, targets=chosen, error=scored.evidence.error_keeping, required={})


def masked_error(model: ModelProto) -> Callable[[Sequence[int]], float]:
    """The error with so many of the best units of each group of `layers`, the others zeroed where they are read."""
    analysis = graphprune.analyze(model)
    criterion, evidence = registry.make("importance", "path"), Evidence.of(analysis)
    groups = {group.id: group for group in analysis.groups}
    orders = {name: np.argsort(-criterion.score(groups[name], evidence), kind="stable") for name in LAYERS}
    wanted = run(model, FEEDS)["y"].astype(np.float64)

    def error(kept: Sequence[int]) -> float:
        cut = ModelProto()
        cut.CopyFrom(model)
        for count, (name, (_, reader)) in zip(kept, LAYERS.items(), strict=True):
            weight = initializer(model, reader).copy()
            weight[:, orders[name][count:]] = 0
            set_initializer(cut, reader, weight)
        return float(np.mean((run(cut, FEEDS)["y"] - wanted) ** 2) / wanted.var())

    return error


def counted(problem: Problem) -> list[dict[str, list[int]]]:
    """A list of all that the problem's error is asked for, from now on."""
    asked: list[dict[str, list[int]]] = []
    error = problem.error
    assert error is not None

    def noted(keep: Any) -> float:
        asked.append(dict(keep))
        return error(keep)

    problem.error = noted
    return asked


def sizes(keep: dict[str, list[int]]) -> tuple[int, ...]:
    return tuple(len(keep[name]) for name in LAYERS)


# ---- performance ----------------------------------------------------------------------------------


def greedy(model: ModelProto, budget: float, step: int = 1) -> list[tuple[int, ...]]:
    """Every group is tried in every step, until the budget is met."""
    error = masked_error(model)
    history, now = [WIDTHS], 0.0
    while macs(history[-1]) > budget * macs(WIDTHS):
        kept = history[-1]
        tried = []
        for k in range(3):
            smaller = tuple(max(1, count - step) if j == k else count for j, count in enumerate(kept))
            if smaller != kept:
                found = error(smaller)
                tried.append(((found - now) / (macs(kept) - macs(smaller)), smaller, found))
        _, smaller, now = min(tried)
        history.append(smaller)
    return history


@pytest.mark.parametrize("seed", range(4))
def test_performance_is_the_greedy_descent(seed: int) -> None:
    model = layers(seed)
    problem = problem_of(model, "macs=0.4")
    asked = counted(problem)
    path = registry.make("selection", "performance{step=0}").path(problem)
    expected = greedy(model, 0.4)
    last = len(expected) - 1
    assert [tuple(path(1 - k / last).astype(int)) for k in range(last + 1)] == expected
    assert len(asked) < 3 * last, "lazy: not every group in every step"


def test_performance_takes_a_share_of_a_group_at_a_time() -> None:
    model = layers()
    problem = problem_of(model, "macs=0.4")
    path = registry.make("selection", "performance{step=0.3}").path(problem)
    expected = greedy(model, 0.4, step=2)
    assert tuple(path(0).astype(int)) == expected[-1]
    assert tuple(path(1).astype(int)) == WIDTHS


def test_performance_judges_layers_together() -> None:
    """Curves that are measured with all other groups whole, as those of `sensitivity`, lead elsewhere."""
    model = layers()
    error = masked_error(model)
    kept, budget = WIDTHS, 0.4 * macs(WIDTHS)
    while macs(kept) > budget:
        tried = []
        for k in (k for k in range(3) if kept[k] > 1):
            alone = [tuple(count if j == k else w for j, w in enumerate(WIDTHS)) for count in (kept[k], kept[k] - 1)]
            smaller = tuple(count - (j == k) for j, count in enumerate(kept))
            tried.append(((error(alone[1]) - error(alone[0])) / (macs(kept) - macs(smaller)), smaller))
        kept = min(tried)[1]
    together = greedy(model, 0.4)[-1]
    assert together != kept
    assert error(together) < error(kept)


def test_performance_measures_nothing_where_the_target_is_out_of_reach() -> None:
    problem = problem_of(layers(), "macs=0.01")
    asked = counted(problem)
    with pytest.raises(UnreachableError, match=r"macs=0.01 asks for at most 2 macs"):
        registry.make("selection", "performance").keep(problem)
    assert not asked


def test_a_second_target_begins_where_the_first_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured for one budget is known for the next."""
    made = []
    measure = Evidence._error_of
    monkeypatch.setattr(Evidence, "_error_of", lambda self, *rest: made.append(1) or measure(self, *rest))
    options = Options(importance="path", selection="performance{step=0}", align=1, calibration=FEEDS, repair=())
    scored = pipeline.score(layers(), options)
    pipeline.prune_scored(scored, "macs=0.6")
    first = len(made)
    pipeline.prune_scored(scored, "macs=0.5")
    again = len(made) - first
    fresh = pipeline.score(layers(), options)
    pipeline.prune_scored(fresh, "macs=0.5")
    assert len(made) - first - again == first + again
    assert 0 < again < first


# ---- evolution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_evolution_is_never_worse_than_its_start(seed: int) -> None:
    model = layers(seed)
    error = masked_error(model)
    problem = problem_of(model, "macs=0.5")
    asked = counted(problem)
    start = sizes(registry.make("selection", "uniform").keep(problem))
    found = sizes(registry.make("selection", f"evolution{{start=uniform,evaluations=15,seed={seed}}}").keep(problem))
    assert error(found) <= error(start)
    assert macs(found) <= 0.5 * macs(WIDTHS)
    assert len(asked) <= 16
    tried = [sizes(keep) for keep in asked]
    assert tried[0] == start
    assert len(set(tried)) == len(tried), "no network is measured twice"
    assert error(found) == pytest.approx(min(map(error, tried)))


def test_evolution_is_better_where_the_start_is_not_the_best() -> None:
    model = layers(5)
    error, problem = masked_error(model), problem_of(model, "macs=0.5")
    start = sizes(registry.make("selection", "uniform").keep(problem))
    found = sizes(registry.make("selection", "evolution{start=uniform,evaluations=15,seed=5}").keep(problem))
    assert error(found) < error(start)


def test_evolution_ends_where_no_trade_is_better() -> None:
    """By brute force over all networks that a trade between two groups leads to and to which nothing can be added."""
    model = layers()
    error = masked_error(model)
    problem = problem_of(model, "macs=0.5")
    found = sizes(registry.make("selection", "evolution{evaluations=1000}").keep(problem))
    budget = 0.5 * macs(WIDTHS)

    def full(kept: tuple[int, ...]) -> bool:
        wider = [tuple(c + (j == k) for j, c in enumerate(kept)) for k in range(3)]
        return macs(kept) <= budget and all(macs(w) > budget or max(np.subtract(w, WIDTHS)) > 0 for w in wider)

    for kept in filter(full, itertools.product(*(range(1, size + 1) for size in WIDTHS))):
        change = np.subtract(kept, found)
        if (change == 1).sum() == 1 and (change < 0).sum() == 1 and (change == 0).sum() == 1:
            assert error(found) <= error(kept) + 1e-12


def test_the_same_seed_and_evaluations_give_the_same_plan() -> None:
    options: dict[str, Any] = {"targets": ["macs=0.5", "params=0.6"], "align": 1, "calibration": FEEDS, "repair": ()}
    specs = {"selection": "evolution{start=uniform,evaluations=2}", "importance": "path"}
    first, again, other = (graphprune.prune(layers(1), seed=seed, **specs, **options) for seed in (3, 3, 5))
    assert first.plan.to_json() == again.plan.to_json()
    assert counts(other) != counts(first)
    named = graphprune.prune(layers(1), **specs | {"selection": "evolution{start=uniform,evaluations=2,seed=3}"}, **options)
    assert counts(named) == counts(first)
    for target in first.realised:
        assert target.cost <= target.limit


def test_the_time_limit_holds() -> None:
    problem = problem_of(layers(), "macs=0.5")
    error = problem.error
    assert error is not None
    problem.error = lambda keep: time.sleep(0.05) or error(keep)  # type: ignore[func-returns-value]
    asked = counted(problem)
    registry.make("selection", "evolution{seconds=0.3}").keep(problem)
    assert 2 <= len(asked) <= 1 + 6


def test_evolution_without_a_target_or_a_choice_gives_its_start() -> None:
    problem = problem_of(layers())
    assert sizes(registry.make("selection", "evolution").keep(problem)) == WIDTHS
    one = problem_of(layers(), "macs=0.6", keep=("^a$", "^d$"))
    asked = counted(one)
    assert registry.make("selection", "evolution").keep(one) == registry.make("selection", "distortion").keep(one)
    assert len(asked) == 1


def test_evolution_starts_from_any_selection_with_its_options() -> None:
    spec = "evolution{start=global{floor=0.3}}"
    made = registry.make("selection", spec)
    assert registry.spec_of(made) == spec
    problem = problem_of(layers(), "macs=0.5")
    expected = registry.make("selection", "global{floor=0.3}").path(problem)
    assert np.array_equal(made.path(problem)(0.4), expected(0.4))


# ---- both -----------------------------------------------------------------------------------------

BOTH = ["performance", "evolution{evaluations=8}"]


@pytest.mark.parametrize("selection", BOTH)
def test_several_targets_bounds_and_alignment(selection: str) -> None:
    targets = ["macs=0.6", "params=0.6", "bytes=0.7"]
    options: dict[str, Any] = {"importance": "path", "align": 4, "min_channels": 8, "repair": (), "calibration": IMAGES}
    result = graphprune.prune(wide(), targets=targets, selection=selection, **options)
    for target in result.realised:
        assert target.cost <= target.limit
    assert max(target.cost / target.limit for target in result.realised) > 0.9
    assert all(count % 4 == 0 and count >= 8 for count in counts(result).values())
    assert result.proof is not None
    assert result.proof.passed


@pytest.mark.parametrize("selection", BOTH)
@pytest.mark.parametrize("options", [{"mode": "unconstrained"}, {"min_channels": 0}, {"ratios": ("w1=0.5",)}])
def test_modes(selection: str, options: dict[str, Any]) -> None:
    model = wide() if "ratios" in options else residual()
    common: dict[str, Any] = {"importance": "path", "align": 1, "repair": (), "calibration": IMAGES}
    result = graphprune.prune(model, targets=["macs=0.5"], selection=selection, **common, **options)
    assert result.realised[0].fraction <= 0.5
    assert result.proof is not None
    assert result.proof.passed
    if "ratios" in options:
        assert counts(result)["w1:0"] == 24


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("selection", BOTH)
def test_latency_targets(selection: str) -> None:
    samples = {"x": np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)}
    options: dict[str, Any] = {"importance": "path", "align": 1, "repair": (), "calibration": samples}
    result = graphprune.prune(chain(16), targets=["latency=0.5"], selection=selection, **options)
    assert 0.45 <= result.realised[0].fraction <= 0.5


def test_networks_are_measured_as_they_are_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error with `obs` is that of the network that the repair `obs` gives; without room for all moments, that without it."""
    model = layers()
    result = graphprune.prune(model, targets=["macs=0.5"], selection="uniform", repair=("obs",), calibration=FEEDS, align=1)
    wanted, given = run(model, FEEDS)["y"].astype(np.float64), run(result.model, FEEDS)["y"]
    expected = float(np.mean((given - wanted) ** 2) / wanted.var())

    def evidence() -> Evidence:
        options = Options(importance="path", selection="performance", calibration=FEEDS, repair=())
        return pipeline.score(model, options).evidence

    found = evidence()
    keep = {name: units for name, units in result.keep.items() if name in LAYERS}
    assert found.error_keeping(keep, "obs") == pytest.approx(expected, rel=1e-4)
    assert found.error_keeping(keep) > 1.2 * expected
    monkeypatch.setattr("graphprune.evidence.MOMENT_BYTES", 1000)
    assert evidence().error_keeping(keep, "obs") == evidence().error_keeping(keep)


@pytest.mark.parametrize(("repair", "measured"), [((), ""), (("reconstruct",), "obs")])
def test_measured_with_a_repair_where_one_follows(
    repair: tuple[str, ...], measured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set()
    measure = Evidence._error_of
    monkeypatch.setattr(Evidence, "_error_of", lambda self, kept, by, count: asked.add(by) or measure(self, kept, by, count))
    options: dict[str, Any] = {"importance": "path", "calibration": FEEDS, "align": 1, "repair": repair}
    graphprune.prune(layers(), targets=["macs=0.5"], selection="performance", **options)
    assert asked == {measured}


@pytest.mark.parametrize("selection", BOTH)
def test_progress(selection: str) -> None:
    texts: list[str] = []
    options: dict[str, Any] = {"importance": "path", "calibration": FEEDS, "align": 1, "repair": ()}
    graphprune.prune(layers(), targets=["macs=0.5"], selection=selection, step=texts.append, **options)
    shares = [int(text.split(": ")[1].rstrip("%")) for text in texts if text.startswith("selecting channels: ")]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 30 <= shares[-1] <= 100


@pytest.mark.parametrize("selection", BOTH)
def test_without_samples(selection: str) -> None:
    problem = replace(problem_of(layers(), "macs=0.5"), error=None)
    name = selection.partition("{")[0]
    message = f"selection '{name}' runs the network: give samples, with --calibration FILE.npz or random"
    with pytest.raises(UsageError, match=message):
        registry.make("selection", selection).keep(problem)


@pytest.mark.parametrize("selection", BOTH)
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("int64[N] y = ArgMax<axis = 1, keepdims = 0>(z)", "how far outputs move cannot be measured: none holds floating-point"),
        ("float[N,3] y = Log(z)", "output 'y' is not finite on the calibration samples; check their scale"),
    ],
)
def test_outputs_that_cannot_be_measured(selection: str, end: str, message: str) -> None:
    declared, operation = end.split(" y = ")
    model = net(f"""
        unfit (float[N,6] x) => ({declared} y) <float[7,6] a, float[3,7] b> {{
            p = Gemm<transB = 1>(x, a)
            z = Gemm<transB = 1>(p, b)
            y = {operation}
        }}""")
    options: dict[str, Any] = {"importance": "path", "calibration": FEEDS, "align": 1, "repair": ()}
    with pytest.raises(CalibrationError, match=message):
        graphprune.prune(model, targets=["macs=0.5"], selection=selection, **options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("performance{step=1.5}", "option step='1.5': Input should be less than or equal to 1"),
        ("performance{step=-1}", "option step='-1': Input should be greater than or equal to 0"),
        ("evolution{seconds=0}", "option seconds='0': Input should be greater than 0"),
        ("evolution{evaluations=-1}", "option evaluations='-1': Input should be greater than or equal to 0"),
        (
            "evolution{start=evolution}",
            "selection 'evolution' cannot start from itself; give another one, such as start=distortion",
        ),
        ("evolution{start=none}", "no selection is called 'none'"),
    ],
)
def test_options_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        registry.make("selection", spec)
