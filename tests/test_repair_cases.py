"""Repair where it is easily wrong: reordered channels, several passes, large means, rows whose number hangs on the data."""

from __future__ import annotations

import numpy as np
import pytest
from nets import initializer, net, set_initializer
from onnx import ModelProto

import graphprune
from graphprune import registry
from graphprune.errors import CalibrationError, UsageError
from graphprune.evidence import Evidence
from graphprune.problem import _scored
from graphprune.runtime import run

MLP = """net (float[N,16] x) => (float[N,6] y)
<float[16,32] w1, float[32] b1, float[32,24] w2, float[24] b2, float[24,6] w3, float[6] b3> {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Relu(b)
    d = MatMul(c, w2)
    e = Add(d, b2)
    f = Relu(e)
    g = MatMul(f, w3)
    y = Add(g, b3)
}"""

SEVERAL_READERS = """net (float[N,3,8,8] x) => (float[N,5] y)
<float[16,3,3,3] w1, float[16] b1, float[12,16,3,3] w2, float[12] b2, float[12,16,1,1] w3, float[12] b3, float[5,24] w4,
 float[5] b4> {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    r = Relu(a)
    p = Conv<pads = [1, 1, 1, 1]>(r, w2, b2)
    q = Conv(r, w3, b3)
    c = Concat<axis = 1>(p, q)
    s = Relu(c)
    m = GlobalAveragePool(s)
    f = Flatten(m)
    y = Gemm<transB = 1>(f, w4, b4)
}"""

CHOSEN_ROWS = """net (float[N,8] x) => (float[M,5] y)
<float[8,16] w1, float[16] b1, float[16,12] w2, float[12] b2, float[12,5] w3, float[5] b3, float[16,1] gate, float least = {0},
 int64[1] one = {1}, int64[1] first = {0}> {
    a = MatMul(x, w1)
    s = Add(a, b1)
    r = Relu(s)
    g = MatMul(r, gate)
    flat = Squeeze(g, one)
    keep = Greater(flat, least)
    found = NonZero(keep)
    rows = Squeeze(found, first)
    t = Gather<axis = 0>(r, rows)
    c = MatMul(t, w2)
    d = Add(c, b2)
    e = Relu(d)
    h = MatMul(e, w3)
    y = Add(h, b3)
}"""


def normal(*shape: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def pruned(model: ModelProto, repair: tuple[str, ...], feeds: dict[str, np.ndarray], **options: object) -> graphprune.Result:
    named = {"targets": "channels=0.6", "importance": "obspa", "selection": "uniform", "align": 1} | options
    return graphprune.prune(model, calibration=feeds, repair=repair, **named)


def error(result: graphprune.Result, model: ModelProto, feeds: dict[str, np.ndarray]) -> float:
    wanted, given = run(model, feeds)["y"], run(result.model, feeds)["y"]
    return float(((wanted - given) ** 2).mean() / wanted.var())


@pytest.mark.parametrize("masks", ["independent", "nested"])
def test_kept_weights_stay_in_the_order_of_the_plan(masks: str) -> None:
    """`absorb` moves intercepts alone, so what it writes is what the plan takes."""
    model = net(SEVERAL_READERS)
    result = pruned(model, ("absorb",), normal(64, 3, 8, 8), mode="unconstrained", masks=masks)
    orders = [indices for cut in result.plan.tensors.values() for indices in cut.values() if not isinstance(indices, int)]
    assert any(list(order) != sorted(order) for order in orders)
    for name in ("w2", "w3"):
        wanted = initializer(model, name)
        for axis, indices in result.plan.tensors[name].items():
            wanted = np.take(wanted, indices, int(axis))
        np.testing.assert_allclose(result.weights[name], wanted, atol=1e-6)


@pytest.mark.parametrize("repair", ["obs", "interpolate"])
def test_closed_forms_are_as_good_where_channels_are_reordered(repair: str) -> None:
    model, feeds = net(SEVERAL_READERS), normal(128, 3, 8, 8)
    without, with_ = (pruned(model, passes, feeds, mode="unconstrained") for passes in ((), (repair,)))
    unseen = normal(128, 3, 8, 8, seed=1)
    assert error(with_, model, unseen) < 0.1 * error(without, model, unseen)


@pytest.mark.parametrize("repair", ["absorb", "obs", "interpolate", "statistics", "reconstruct"])
@pytest.mark.parametrize("before", ["absorb", "obs", "statistics", "reconstruct"])
def test_a_second_repair_does_no_harm(before: str, repair: str) -> None:
    """No intercept is counted twice."""
    model = net(MLP)
    feeds, unseen = ({"x": normal(256, 16, seed=seed)["x"] + 1} for seed in (0, 1))
    alone, after = (error(pruned(model, passes, feeds), model, unseen) for passes in ((repair,), (before, repair)))
    assert after < 1.1 * alone


@pytest.mark.parametrize("repair", ["obs", "reconstruct"])
@pytest.mark.parametrize("offset", [1e2, 3e3])
def test_a_small_spread_around_a_large_mean(repair: str, offset: float) -> None:
    """The second half of the hidden units is a mixture of the first, so readers can make up for it."""
    model = net("""net (float[N,8] x) => (float[N,4] y) <float[8,24] w1, float[24] b1, float[24,4] w2, float[4] b2> {
        a = MatMul(x, w1)
        h = Add(a, b1)
        c = MatMul(h, w2)
        y = Add(c, b2)
    }""")
    mixture = np.random.default_rng(3).normal(size=(12, 12)).astype(np.float32) / 4
    w1 = initializer(model, "w1").copy()
    w1[:, 12:] = w1[:, :12] @ mixture
    set_initializer(model, "w1", w1)
    set_initializer(model, "b1", np.full(24, offset, np.float32))
    result = pruned(model, (repair,), normal(512, 8), targets=(), ratios="^w1$=0.5")
    assert error(result, model, normal(256, 8, seed=1)) < 1e-3


@pytest.mark.parametrize("least", [0.0, 1e6])
@pytest.mark.parametrize("repair", ["absorb", "obs", "statistics", "reconstruct"])
def test_rows_whose_number_hangs_on_the_data(repair: str, least: float) -> None:
    """Pruning moves the gate; with a high one no row is chosen at all."""
    model = net(CHOSEN_ROWS)
    set_initializer(model, "least", np.array(least, np.float32))
    result = pruned(model, (repair,), normal(64, 8), importance="path", normalization="kept")
    assert result.proof is not None
    assert result.proof.passed


@pytest.mark.parametrize("importance", ["sensitivity{points=2}", "shapley{orders=1,points=2}"])
def test_outputs_whose_size_hangs_on_the_data(importance: str) -> None:
    result = pruned(net(CHOSEN_ROWS), (), normal(64, 8), importance=importance)
    assert all(np.isfinite(scores).all() for scores in result.scores.values())


@pytest.mark.parametrize("importance", ["obspa", "wanda", "activation", "variance", "fluctuation", "hrank", "attention"])
def test_units_that_nothing_linear_reads_are_not_worthless(importance: str) -> None:
    """A transposed convolution of unknown padding reads the second half, whose weights are as large as those of the first."""
    model = net(
        """net (float[N,3,8,8] x) => (float[N,4,8,8] y)
        <float[16,3,3,3] w1, float[16] b1, float[4,8,3,3] w2, float[4] b2, float[8,4,3,3] w3, float[4] b3> {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
            r = Relu(a)
            p, q = Split<axis = 1, num_outputs = 2>(r)
            c = Conv<pads = [1, 1, 1, 1]>(p, w2, b2)
            d = ConvTranspose<auto_pad = "SAME_UPPER">(q, w3, b3)
            y = Add(c, d)
        }""",
        opset=18,
    )
    scores = pruned(model, (), normal(64, 3, 8, 8), importance=importance).scores["w1:0"]
    read, unread = scores[:8], scores[8:]
    assert (unread >= read.min()).all()
    assert (unread <= read.max()).all()
    assert unread.max() > read.min()


@pytest.mark.parametrize("attributes", ["pads = [1, 1, 1, 1]", "dilations = [2, 1], output_padding = [1, 0]"])
@pytest.mark.parametrize("repair", ["obs{damping=1e-9}", "interpolate{damping=1e-9}", "reconstruct{ridge=1e-9}"])
def test_a_transposed_convolution_makes_up_for_copies(repair: str, attributes: str) -> None:
    """Every second channel is the one before, twice as large; those that stay carry both."""
    model = net(f"""net (float[N,3,6,6] x) => (float[N,5,H,W] y)
        <float[12,3,3,3] w1, float[12] b1, float[12,8,4,3] w2, float[8] b2, float[5,8,1,1] w3> {{
            a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
            r = Relu(a)
            t = ConvTranspose<strides = [2, 2], {attributes}>(r, w2, b2)
            s = Relu(t)
            y = Conv(s, w3)
        }}""")
    for name in ("w1", "b1"):
        array = initializer(model, name).copy()
        array[1::2] = 2 * array[::2]
        set_initializer(model, name, array)
    feeds, others = normal(48, 3, 6, 6), normal(16, 3, 6, 6, seed=1)
    common: dict[str, object] = {"targets": (), "ratios": "^w1$=0.5", "importance": "obspa"}
    repaired, not_repaired = pruned(model, (repair,), feeds, **common), pruned(model, (), feeds, **common)
    assert repaired.keep["w1:0"] == [1, 3, 5, 7, 9, 11]
    assert error(repaired, model, others) < 1e-4
    assert error(not_repaired, model, others) > 1e-2


def test_scores_that_are_no_numbers() -> None:
    class Broken:
        name, sees = "broken", "weights"

        def score(self, group: object, evidence: object) -> np.ndarray:
            return np.array([1.0, np.nan])

    analysis = graphprune.analyze(net(MLP))
    with pytest.raises(CalibrationError, match=r"importance 'broken' gives scores for 'w1:1' that are no numbers"):
        _scored(Broken(), analysis.groups[0], Evidence.of(analysis))


def test_a_ratio_for_a_group_without_a_score() -> None:
    with pytest.raises(UsageError, match=r"--ratio: importance 'bn_scale' has no say about 'w2:0'; name another, such as path"):
        graphprune.prune(
            net("""net (float[N,3,8,8] x) => (float[N,5,8,8] y)
            <float[8,3,1,1] w1, float[8] s, float[8] o, float[8] m, float[8] v, float[6,8,1,1] w2, float[5,6,1,1] w3> {
                a = Conv(x, w1)
                b = BatchNormalization(a, s, o, m, v)
                c = Conv(b, w2)
                y = Conv(c, w3)
            }"""),
            ratios="^w2$=0.5",
            importance="bn_scale",
        )


def test_the_seed_of_a_spec_counts() -> None:
    def kept(importance: str, seed: int) -> object:
        return graphprune.prune(
            net(MLP), targets="channels=0.6", importance=importance, selection="uniform", seed=seed, align=1, verify=False
        ).keep

    assert kept("random{seed=5}", 3) == kept("random{seed=5}", 0) == kept("random", 5)
    assert kept("random", 3) != kept("random", 5)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("importance", "sensitivity{points=0}"),
        ("importance", "shapley{orders=0}"),
        ("importance", "shapley{points=-3}"),
        ("selection", "knapsack{rounds=0}"),
        ("repair", "polish{steps=0}"),
        ("repair", "polish{epochs=-1}"),
        ("repair", "polish{vary=2}"),
    ],
)
def test_options_out_of_range(kind: str, spec: str) -> None:
    with pytest.raises(UsageError, match="Input should be"):
        registry.make(kind, spec)


def test_evolution_drops_branches_where_its_start_does() -> None:
    selection = registry.make("selection", "evolution{start=blocks}")
    assert selection.drops_branches
    assert not registry.make("selection", "evolution").drops_branches
