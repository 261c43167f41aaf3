"""--normalization kept: channels behind a normalisation leave, with the statistics of those that stay."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from halving import groups, members
from nets import net
from onnx import ModelProto, numpy_helper

import graphprune


def prune(model: ModelProto, **options: object) -> graphprune.Result:
    options = {"targets": ["channels=0.5"], "align": 1, "selection": "uniform", "normalization": "kept"} | options
    result = graphprune.prune(model, **options)
    assert result.proof is not None
    assert result.proof.passed
    return result


def stream(middle: str, weights: str = "", opset: int = 17, domains: tuple[str, ...] = ()) -> ModelProto:
    """An embedding, a residual block behind a normalisation, a head."""
    return net(
        f"""
        stream (float[2,6,5] x) => (float[2,6,3] y)
        <float[5,8] w1, float[8,12] up, float[12,8] down, float[8,3] head, float[8] s, float[8] o{weights}> {{
            a = MatMul(x, w1)
            {middle}
            u = MatMul(n, up)
            r = Relu(u)
            d = MatMul(r, down)
            z = Add(a, d)
            y = MatMul(z, head)
        }}""",
        opset=opset,
        domains=domains,
    )


DECOMPOSED = """m = ReduceMean<axes = [-1]>(a)
            c = Sub(a, m)
            q = Mul(c, c)
            v = ReduceMean<axes = [-1]>(q)
            e = Add(v, eps)
            t = Sqrt(e)
            i = Div(c, t)
            j = Mul(i, s)
            n = Add(j, o)"""


@pytest.mark.parametrize(
    ("middle", "weights", "opset", "domains"),
    [
        ("n = LayerNormalization(a, s, o)", "", 17, ()),
        ("n = LayerNormalization(a, s)", "", 17, ()),
        ("n = RMSNormalization(a, s)", "", 23, ()),
        ("n = LpNormalization(a)", "", 17, ()),
        ("q = Mul(a, a)\n t = ReduceSum(q, last)\n r0 = Sqrt(t)\n n = Div(a, r0)", ", int64[1] last = {-1}", 17, ()),
        (
            "q = Pow(a, two)\n t = ReduceSum(q, last)\n r0 = Sqrt(t)\n n = Div(a, r0)",
            ", float two = {2}, int64[1] last = {-1}",
            17,
            (),
        ),
        ("q = Abs(a)\n t = ReduceSum(q, last)\n n = Div(a, t)", ", int64[1] last = {-1}", 17, ()),
        ("t = ReduceSumSquare<axes = [-1]>(a)\n r0 = Sqrt(t)\n n = Div(a, r0)", "", 17, ()),
        ("t = ReduceL1<axes = [-1]>(a)\n n = Div(a, t)", "", 17, ()),
        (DECOMPOSED, ", float eps = {0.00001}", 17, ()),
        ("n = com.microsoft.SkipLayerNormalization(a, a, s, o)", "", 17, ("com.microsoft",)),
    ],
)
def test_the_residual_stream_is_one_group(middle: str, weights: str, opset: int, domains: tuple[str, ...]) -> None:
    model = stream(middle, weights, opset, domains)
    assert groups(model) == {"up:1": 12}
    free = graphprune.analyze(model, normalization="kept").groups
    assert [(group.id, group.size) for group in free] == [("w1:1", 8), ("up:1", 12)]
    prune(model)


TOGETHER = """t = Transpose<perm = [0,2,1]>(a)
            g = GroupNormalization<num_groups = 1>(t, s, o)
            n = Transpose<perm = [0,2,1]>(g)"""

APART = """t = Transpose<perm = [0,2,1]>(a)
            f = Reshape(t, joined)
            i = InstanceNormalization(f, one, none)
            b = Reshape(i, back)
            j = Mul(b, s2)
            k = Transpose<perm = [0,2,1]>(j)
            n = Add(k, o)"""


@pytest.mark.parametrize(
    ("middle", "weights", "opset"),
    [
        (
            "t = Transpose<perm = [0,2,1]>(a)\ng = GroupNormalization<num_groups = 1>(t, s, o)\nn = Transpose<perm = [0,2,1]>(g)",
            "",
            21,
        ),
        (APART, ", float[8,1] s2, float[1] one, float[1] none, int64[3] joined = {0,1,-1}, int64[3] back = {0,8,6}", 17),
        ("n = MeanVarianceNormalization<axes = [-1]>(a)", "", 17),
    ],
)
def test_one_group_of_all_channels(middle: str, weights: str, opset: int) -> None:
    """GroupNorm(1, C) normalises over channels and positions, in both writings."""
    model = stream(middle, weights, opset)
    assert groups(model) == {"up:1": 12}
    free = graphprune.analyze(model, normalization="kept").groups
    assert [(group.id, group.size) for group in free] == [("w1:1", 8), ("up:1", 12)]
    prune(model)


@pytest.mark.parametrize("mean", ["v = Div(t, eight)", "v = Mul(eight, t)"])
def test_a_sum_of_squares_that_a_constant_makes_a_mean_of_counts_all_channels(mean: str) -> None:
    middle = f"q = Mul(a, a)\n t = ReduceSum(q, last)\n {mean}\n r0 = Sqrt(v)\n n = Div(a, r0)"
    model = stream(middle, ", float eight = {8}, int64[1] last = {-1}")
    free = graphprune.analyze(model, normalization="kept").groups
    assert [(group.id, group.size) for group in free] == [("up:1", 12)]


def test_groups_written_apart_lose_whole_groups_and_channels_of_all() -> None:
    weights = ", float[8,1] s2, float[4] one, float[4] none, int64[3] joined = {0,4,-1}, int64[3] back = {0,8,6}"
    model = stream(APART, weights)
    assert groups(model) == {"w1:1": 4, "up:1": 12}
    result = prune(model)
    assert result.after.channels < result.before.channels


def test_it_equals_a_normalisation_over_the_kept_channels() -> None:
    """Checked in numpy, without the proof."""
    model = stream("n = LayerNormalization(a, s, o)")
    result = prune(model)
    kept, inner = result.keep["w1:1"], result.keep["up:1"]
    w = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    feeds = oracle.random_feeds(model)
    a = (feeds["x"].astype(np.float64) @ w["w1"])[..., kept]
    n = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * w["s"][kept] + w["o"][kept]
    d = np.maximum(n @ w["up"][np.ix_(kept, inner)], 0) @ w["down"][np.ix_(inner, kept)]
    expected = (a + d) @ w["head"][kept]
    np.testing.assert_allclose(oracle.run(result.model, feeds)["y"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_sums_stay_pinned_since_what_follows_counts_their_terms() -> None:
    model = stream("m = ReduceSum(a, last)\n n = Sub(a, m)", ", int64[1] last = {-1}")
    assert [group.id for group in graphprune.analyze(model, normalization="kept").groups] == ["up:1"]


def test_the_plan_remembers_and_replays() -> None:
    model = stream("n = LayerNormalization(a, s, o)")
    result = prune(model)
    assert result.plan.options["normalization"] == "kept"
    again = graphprune.apply_plan(model, result.plan)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    assert graphprune.verify(model, result.plan, result.model).passed


def test_a_wrong_statistic_fails_the_proof() -> None:
    model = stream("n = LayerNormalization(a, s, o)")
    result = prune(model)
    wrong = ModelProto.FromString(result.model.SerializeToString())
    node = next(node for node in wrong.graph.node if node.op_type == "LayerNormalization")
    node.attribute.add(name="epsilon", f=0.5, type=1)
    assert not graphprune.verify(model, result.plan, wrong).passed


def test_scale_and_bias_belong_to_the_group() -> None:
    model = stream("n = LayerNormalization(a, s, o)")
    group = graphprune.analyze(model, normalization="kept").groups[0]
    found = {f"{member.tensor}:{member.axis} {member.role}" for member in group.members}
    assert {"s:0 carrier", "o:0 carrier", "down:1 producer", "head:0 consumer"} <= found
    assert members(model, "up:1") == {"up:1 producer", "down:0 consumer"}
