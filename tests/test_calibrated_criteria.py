"""Criteria that look at activations, against numbers worked out from the samples by hand."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from nets import initializer, net, set_initializer
from numpy.typing import NDArray
from onnx import ModelProto

import graphprune
from graphprune import evidence, registry
from graphprune.calibration import Calibration
from graphprune.depth import with_residuals
from graphprune.errors import CalibrationError
from graphprune.evidence import Evidence
from graphprune.inference import Analysis
from graphprune.options import Options
from graphprune.recipes import resolved
from graphprune.runtime import run
from graphprune.samples import runs_of

Wide = NDArray[np.float64]

RNG = np.random.default_rng(3)


def dense() -> ModelProto:
    return net("""
        dense (float[N,6] x) => (float[N,3] y, float[N,7] q)
        <float[7,6] a, float[7] b, float[3,7] c, float[3] d> {
            p = Gemm<transB = 1>(x, a, b)
            q = Relu(p)
            y = Gemm<transB = 1>(q, c, d)
        }""")


def two_groups() -> ModelProto:
    return net("""
        two (float[N,6] x) => (float[N,3] y) <float[7,6] a, float[5,7] b, float[3,5] c> {
            p = Gemm<transB = 1>(x, a)
            q = Relu(p)
            r = Gemm<transB = 1>(q, b)
            s = Relu(r)
            y = Gemm<transB = 1>(s, c)
        }""")


def images() -> ModelProto:
    return net("""
        images (float[N,2,6,5] x) => (float[N,3,6,5] y, float[N,4,6,5] q)
        <float[4,2,3,3] a, float[4] b, float[3,4,1,1] c> {
            p = Conv<pads = [1, 1, 1, 1]>(x, a, b)
            q = Relu(p)
            y = Conv(q, c)
        }""")


def scores(model: ModelProto, spec: str, feeds: dict[str, np.ndarray], labels: np.ndarray | None = None) -> Wide:
    """The scores of the only inner group."""
    analysis = graphprune.analyze(without_probe(model))
    (group,) = analysis.groups
    found = registry.make("importance", spec).score(group, seen(analysis, feeds, labels))
    assert found is not None
    return np.asarray(found, np.float64)


def seen(analysis: Analysis, feeds: dict[str, np.ndarray], labels: np.ndarray | None = None) -> Evidence:
    return Evidence.of(analysis, Calibration(analysis.graph, runs_of(feeds, analysis.graph, 16), labels=labels))


def without_probe(model: ModelProto) -> ModelProto:
    """The model without its second output, which pins what it shows."""
    plain = ModelProto()
    plain.CopyFrom(model)
    del plain.graph.output[1]
    return plain


def rows(count: int = 48) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(count, 6)).astype(np.float32)}


def test_activation_norm() -> None:
    feeds = rows()
    hidden = run(dense(), feeds)["q"].astype(np.float64)
    np.testing.assert_allclose(
        scores(dense(), "activation{normalizer=none}", feeds), np.sqrt((hidden**2).mean(axis=0)), rtol=1e-4
    )


def test_variance() -> None:
    feeds = rows()
    hidden = run(dense(), feeds)["q"].astype(np.float64)
    np.testing.assert_allclose(scores(dense(), "variance", feeds), hidden.var(axis=0), rtol=1e-4, atol=1e-7)


def test_fluctuation() -> None:
    feeds, model = rows(), dense()
    hidden = run(model, feeds)["q"].astype(np.float64)
    plain = hidden.var(axis=0) * (initializer(model, "c").astype(np.float64) ** 2).sum(axis=0)
    np.testing.assert_allclose(scores(model, "fluctuation{standardize=false}", feeds), plain, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(scores(model, "fluctuation", feeds), (plain - plain.mean()) / plain.std(), atol=1e-4)


def test_wanda() -> None:
    feeds, model = rows(), dense()
    hidden = run(model, feeds)["q"].astype(np.float64)
    expected = np.abs(initializer(model, "c")).sum(axis=0) * np.sqrt((hidden**2).mean(axis=0))
    np.testing.assert_allclose(scores(model, "wanda{normalizer=none}", feeds), expected, rtol=1e-4)


def test_attention() -> None:
    feeds, model = {"x": RNG.normal(size=(5, 2, 6, 5)).astype(np.float32)}, images()
    squares = run(model, feeds)["q"].astype(np.float64).reshape(5, 4, 30) ** 2
    expected = np.zeros(4)
    for sample in squares:
        attention = sample.sum(axis=0)
        expected += sample @ (attention / np.linalg.norm(attention)) / 5
    np.testing.assert_allclose(scores(model, "attention{normalizer=none}", feeds), expected, rtol=1e-4)


def test_hrank() -> None:
    feeds, model = {"x": RNG.normal(size=(5, 2, 6, 5)).astype(np.float32)}, images()
    hidden = run(model, feeds)["q"]
    expected = [np.mean([np.linalg.matrix_rank(hidden[s, c]) for s in range(5)]) for c in range(4)]
    np.testing.assert_allclose(scores(model, "hrank{normalizer=none}", feeds), expected)
    feeds, model = rows(5), dense()
    expected = [np.linalg.matrix_rank(run(model, feeds)["q"][:, [c]]) for c in range(7)]
    np.testing.assert_allclose(scores(model, "hrank{normalizer=none}", feeds), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("importance", ["hrank", "magnitude", "path"])
def test_weights_that_are_no_numbers_end_in_an_error_of_ours(importance: str, bad: float) -> None:
    """Not in numpy's, for who calls from Python: no warning, no LinAlgError."""
    model, feeds = without_probe(images()), {"x": RNG.normal(size=(5, 2, 6, 5)).astype(np.float32)}
    set_initializer(model, "a", np.full_like(initializer(model, "a"), bad))
    with pytest.raises(CalibrationError, match=f"importance '{importance}' gives scores for 'a:0' that are no numbers"):
        graphprune.prune(model, targets=["channels=0.5"], importance=importance, repair=(), align=1, calibration=feeds)


# ---- gradients ----------------------------------------------------------------------------------


def weights_of(model: ModelProto) -> dict[str, Wide]:
    return {name: initializer(model, name).astype(np.float64) for name in "abcd"}


def gradients(weights: dict[str, Wide], x: np.ndarray, labels: np.ndarray) -> dict[str, Wide]:
    """The gradients of the cross-entropy for the dense network, from the chain rule."""
    before = x.astype(np.float64) @ weights["a"].T + weights["b"]
    hidden = np.maximum(before, 0)
    logits = hidden @ weights["c"].T + weights["d"]
    soft = np.exp(logits - logits.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    back = (soft - np.eye(3)[labels]) / len(x)
    inner = (back @ weights["c"]) * (before > 0)
    return {"a": inner.T @ x, "b": inner.sum(axis=0), "c": back.T @ hidden, "d": back.sum(axis=0)}


@pytest.mark.torch
def test_gradient_criteria_by_the_chain_rule() -> None:
    """One batch with labels: SNIP, Fisher and Taylor from gradients worked out by hand."""
    model, feeds, labels = dense(), rows(16), RNG.integers(0, 3, 16)
    weights = weights_of(model)
    gradient = gradients(weights, feeds["x"], labels)
    a, c, ga, gc = weights["a"], weights["c"], gradient["a"], gradient["c"]
    snip = np.abs(a * ga).sum(axis=1) + np.abs(c * gc).sum(axis=0)
    fisher = 0.5 * (((a * ga) ** 2).sum(axis=1) + ((c * gc) ** 2).sum(axis=0))
    np.testing.assert_allclose(scores(model, "snip", feeds, labels), snip, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(scores(model, "fisher", feeds, labels), fisher, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(scores(model, "taylor", feeds, labels), (a * ga).sum(axis=1) ** 2, rtol=1e-3, atol=1e-9)


@pytest.mark.torch
def test_flow_criteria_by_finite_differences() -> None:
    """H g from gradients at two points along g; no ReLU changes sides over so small a step."""
    model, feeds, labels = dense(), rows(16), RNG.integers(0, 3, 16)
    weights = weights_of(model)
    here = gradients(weights, feeds["x"], labels)
    up, down = (
        gradients({name: weights[name] + step * here[name] for name in "abcd"}, feeds["x"], labels) for step in (1e-6, -1e-6)
    )
    curved = {name: (up[name] - down[name]) / 2e-6 for name in "ac"}
    change = (weights["a"] * curved["a"]).sum(axis=1) + (weights["c"] * curved["c"]).sum(axis=0)
    np.testing.assert_allclose(scores(model, "grasp", feeds, labels), change, rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(scores(model, "crop", feeds, labels), np.abs(change), rtol=1e-2, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["taylor", "snip", "fisher", "grasp", "crop"])
def test_gradients_without_labels(name: str) -> None:
    found = scores(dense(), name, rows())
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == 7


@pytest.mark.torch
@pytest.mark.parametrize(("name", "first", "second"), [("taylor", 1, 0), ("snip", 1, 0), ("fisher", 1, 0), ("grasp", 0, 1)])
def test_a_criterion_costs_one_pass_of_the_order_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, name: str, first: int, second: int
) -> None:
    passes = {"batch_gradients": 0, "batch_curvatures": 0}

    def counted(order: str, function: Callable[[Calibration], object], calibration: Calibration) -> object:
        passes[order] += 1
        return function(calibration)

    for order in passes:
        monkeypatch.setattr(evidence, order, partial(counted, order, getattr(evidence, order)))
    analysis = graphprune.analyze(two_groups())
    seen = Evidence.of(analysis, Calibration(analysis.graph, runs_of(rows(16), analysis.graph, 8)))
    found = [registry.make("importance", name).score(group, seen) for group in analysis.groups]
    assert [len(each) for each in found] == [7, 5]
    assert passes == {"batch_gradients": first, "batch_curvatures": second}


@pytest.mark.torch
@pytest.mark.parametrize("labels", [np.array(["a"] * 16), np.full(16, 3), np.full(16, -1), np.full(16, 0.5)])
def test_labels_that_are_no_classes(labels: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="must be one integer from 0 to 2 each, or be left out"):
        scores(dense(), "snip", rows(16), labels)


def test_sensitivity_is_the_convex_curve_of_what_the_outputs_lose() -> None:
    """Every width of the group is measured by zeroing; the curve is the lower hull of four of them."""
    model, feeds = without_probe(dense()), rows()
    found = scores(dense(), "sensitivity{points=3}", feeds)
    ranking = scores(dense(), "path", feeds)
    worst_first = np.argsort(ranking, kind="stable")
    assert np.argsort(found, kind="stable").tolist() == worst_first.tolist()
    wanted = run(model, feeds)["y"].astype(np.float64)

    def error(gone: int) -> float:
        cut = ModelProto()
        cut.CopyFrom(model)
        weight = initializer(model, "c").copy()
        weight[:, worst_first[:gone]] = 0
        set_initializer(cut, "c", weight)
        return float(np.mean((run(cut, feeds)["y"] - wanted) ** 2) / wanted.var())

    points = [(0, 0.0), *((gone, error(gone)) for gone in (2, 4, 6))]
    points.append((7, points[-1][1] * 7 / 6))
    sums = np.concatenate([[0.0], np.cumsum(found[worst_first])])
    for at, value in points:
        lines = [
            low[1] + (high[1] - low[1]) * (at - low[0]) / (high[0] - low[0])
            for low in points
            for high in points
            if low[0] <= at <= high[0] and low[0] < high[0]
        ]
        assert sums[at] == pytest.approx(min([value, *lines]), rel=1e-4)


def test_shapley_is_exact_where_the_error_is_quadratic() -> None:
    """Of a linear branch that may leave: the mean product of what a unit gives and what all give, over the variance."""
    model = net("""
        linear (float[N,6] x) => (float[N,6] y) <float[6,7] a, float[7,6] b> {
            p = MatMul(x, a)
            q = MatMul(p, b)
            y = Add(x, q)
        }""")
    feeds = rows()
    analysis = with_residuals(graphprune.analyze(model))
    (group,) = analysis.may_leave
    found = registry.make("importance", "shapley{orders=1,points=7}").score(group, seen(analysis, feeds))
    a, b, x = (np.asarray(each, np.float64) for each in (initializer(model, "a"), initializer(model, "b"), feeds["x"]))
    parts = (x @ a).T[:, :, None] * b[:, None, :]
    whole = parts.sum(0)
    wanted = (parts * whole).mean((1, 2)) / (x + whole).var()
    np.testing.assert_allclose(found, np.maximum(wanted, 0), rtol=1e-3, atol=1e-6)
    assert found.sum() == pytest.approx((whole**2).mean() / (x + whole).var(), rel=1e-3)


def test_shapley_follows_the_measured_rises() -> None:
    """Units that leave in one step share its rise; the last of each order cannot leave, and counts as often as it could."""
    model, feeds = without_probe(dense()), rows()
    found = scores(dense(), "shapley{orders=2,points=3,seed=5}", feeds)
    analysis = graphprune.analyze(model)
    evidence = seen(analysis, feeds)
    (group,) = analysis.groups
    rng = np.random.default_rng([5, zlib.crc32(group.id.encode())])
    total, count = np.zeros(7), np.zeros(7)
    for _ in range(2):
        forward = rng.permutation(7)
        for order in (forward, forward[::-1]):
            for gone in (0, 2, 4):
                keep = [evidence.error_keeping({group.id: sorted(order[k:].tolist())}) for k in (gone, gone + 2)]
                total[order[gone : gone + 2]] += (keep[1] - keep[0]) / 2
                count[order[gone : gone + 2]] += 1
    np.testing.assert_allclose(found, np.maximum(total / count, 0))


def test_probed_scores_add_up_to_what_the_outputs_lose() -> None:
    """Without the quarter that leaves first, the readers repaired; the order is that of the other criterion."""
    model, feeds = dense(), rows()
    analysis = graphprune.analyze(model)
    evidence = Evidence.of(analysis, Calibration(analysis.graph, runs_of(feeds, analysis.graph, 64)))
    for group in analysis.groups:
        other = registry.make("importance", "obspa").score(group, evidence)
        found = registry.make("importance", "probed").score(group, evidence)
        np.testing.assert_allclose(found / found.sum(), other / other.sum())
        order = np.argsort(other, kind="stable")
        gone = max(1, round(group.size / 4))
        measured = evidence.error_keeping({group.id: sorted(order[gone:].tolist())}, "obs")
        assert found[order[:gone]].sum() == pytest.approx(measured)
        assert not np.allclose(found, other)


def test_idle_units_do_not_decide_about_the_scale_of_their_group() -> None:
    """What they add up to is rounding: the measurement goes on to units that are worth something."""
    model = two_groups()
    weight = np.array(initializer(model, "b"))
    weight[:, :4] *= 1e-5
    set_initializer(model, "b", weight)
    analysis = graphprune.analyze(model)
    evidence = seen(analysis, rows())
    group = analysis.groups[0]
    found = registry.make("importance", "probed").score(group, evidence)
    order = np.argsort(found, kind="stable")
    assert sorted(order[:4].tolist()) == [0, 1, 2, 3]
    measured = evidence.error_keeping({group.id: sorted(order[5:].tolist())}, "obs")
    assert found[order[:5]].sum() == pytest.approx(measured)
    assert found[order[:4]].sum() < 1e-3 * measured


def test_outputs_that_cannot_be_compared_leave_scores_as_they_are() -> None:
    model = net("""chosen (float[N,6] x) => (int64[N,1] y, float[N,7] q) <float[7,6] a, float[3,7] c> {
        p = Gemm<transB = 1>(x, a)
        q = Relu(p)
        r = Gemm<transB = 1>(q, c)
        y = ArgMax <axis = 1> (r)
    }""")
    feeds = rows()
    np.testing.assert_array_equal(scores(model, "probed", feeds), scores(model, "obspa", feeds))
    result = graphprune.prune(without_probe(model), targets=["channels=0.6"], calibration=feeds, align=1)
    assert result.options["recipe"] == "balanced"
    assert result.options["importance"] == "probed"


@pytest.mark.parametrize(
    ("given", "importance"),
    [
        ({"calibration": "samples.npz"}, "probed"),
        ({"calibration": "random"}, "obspa"),
        ({"repair": ("reconstruct",)}, "obspa"),
        ({"calibration": "random", "importance": "probed"}, "probed"),
        ({"recipe": "depth", "calibration": "random"}, "removal"),
    ],
)
def test_what_recipes_score_by(given: dict[str, object], importance: str) -> None:
    assert resolved(Options(**given)).importance == importance  # type: ignore[arg-type]


def test_sensitivity_ranks_by_any_criterion() -> None:
    found = scores(dense(), "sensitivity{rank=magnitude,points=2}", rows())
    assert np.argsort(found).tolist() == np.argsort(scores(dense(), "magnitude", rows()), kind="stable").tolist()
    assert (np.diff(np.sort(found)) > 0).all()
