"""What a channel is worth: values computed by hand on tiny nets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from nets import net, residual, set_initializer
from onnx import ModelProto

import graphprune
from graphprune import registry
from graphprune.errors import UsageError
from graphprune.evidence import Evidence


def tiny() -> ModelProto:
    """Three hidden units: rows of `a` (3 x 2) write them, columns of `b` (1 x 3) read them.

    Written with weights (1, -2), (3, 4), (0, 5); read with 2, -1, 6; shifted by a bias that no criterion looks at.
    """
    return net("""
        tiny (float[N,2] x) => (float[N,1] y)
        <float[3,2] a = {1, -2, 3, 4, 0, 5}, float[3] bias = {100, 200, 300}, float[1,3] b = {2, -1, 6}> {
            h = Gemm<transB = 1>(x, a, bias)
            y = Gemm<transB = 1>(h, b)
        }""")


def score(spec: str, model: ModelProto | None = None, group: int = 0) -> list[float] | None:
    analysis = graphprune.analyze(model or tiny())
    found = registry.make("importance", spec).score(analysis.groups[group], Evidence.of(analysis))
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("magnitude{p=1,reduce=sum,normalizer=none}", [3 + 2, 7 + 1, 5 + 6]),
        ("magnitude{p=1,reduce=mean,normalizer=none}", [2.5, 4, 5.5]),
        ("magnitude{p=1,reduce=max,normalizer=none}", [3, 7, 6]),
        ("magnitude{p=2,reduce=sum,normalizer=none}", [5 + 4, 25 + 1, 25 + 36]),
        ("magnitude{p=2,reduce=mean,normalizer=none}", [4.5, 13, 30.5]),
        ("magnitude{p=2,reduce=max,normalizer=none}", [5, 25, 36]),
        ("magnitude{p=1,normalizer=mean}", [5 / 8, 8 / 8, 11 / 8]),
        ("magnitude{p=1,normalizer=max}", [5 / 11, 8 / 11, 1]),
        ("magnitude{p=1,normalizer=sum}", [5 / 24, 8 / 24, 11 / 24]),
        ("magnitude", [5 / 11, 8 / 11, 1]),
        ("path", [6 / 30, 7 / 30, 1]),
        ("path{p=2,normalizer=none}", [5 * 4, 25 * 1, 25 * 36]),
        ("lamp", [9 / 96, 26 / 87, 61 / 61]),
    ],
)
def test_values(spec: str, expected: list[float]) -> None:
    assert score(spec) == pytest.approx(expected, rel=1e-6)


def test_a_path_does_not_change_with_where_the_scale_is() -> None:
    """A channel times 8 in front and by 8 behind is as it was: what folding a normalisation does."""
    model = tiny()
    set_initializer(model, "a", np.array([[8, -16], [3, 4], [0, 5]], np.float32))
    set_initializer(model, "b", np.array([[0.25, -1, 6]], np.float32))
    assert score("path", model) == pytest.approx(score("path"))
    assert score("magnitude", model) != pytest.approx(score("magnitude"))


def test_fpgm_sums_the_distances_to_the_other_filters() -> None:
    """Filters (1, -2), (3, 4), (0, 5): distances sqrt(40), sqrt(50) and sqrt(10)."""
    d01, d02, d12 = math.sqrt(40), math.sqrt(50), math.sqrt(10)
    expected = [d01 + d02, d01 + d12, d02 + d12]
    assert score("fpgm{normalizer=none}") == pytest.approx(expected, rel=1e-6)
    assert score("fpgm{normalizer=sum}") == pytest.approx([v / sum(expected) for v in expected], rel=1e-6)


def scaled() -> ModelProto:
    """Two convolutions into one sum, each with a batch normalisation of its own."""
    return net("""
        scaled (float[N,1,2,2] x) => (float[N,1,2,2] y)
        <float[3,1,1,1] w1, float[3,1,1,1] w2, float[1,3,1,1] w3, float[3] o, float[3] m, float[3] v,
         float[3] g1 = {1, -4, 2}, float[3] g2 = {-3, 1, 0.5}> {
            a = Conv(x, w1)
            b = BatchNormalization(a, g1, o, m, v)
            c = Conv(x, w2)
            d = BatchNormalization(c, g2, o, m, v)
            e = Add(b, d)
            y = Conv(e, w3)
        }""")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bn_scale", [2, 2.5, 1.25]),
        ("bn_scale{reduce=sum}", [4, 5, 2.5]),
        ("bn_scale{reduce=max}", [3, 4, 2]),
        ("bn_scale{reduce=max,normalizer=max}", [0.75, 1, 0.5]),
    ],
)
def test_bn_scale(spec: str, expected: list[float]) -> None:
    assert score(spec, scaled()) == pytest.approx(expected, rel=1e-6)


def test_bn_scale_has_no_say_about_groups_without_a_normalisation() -> None:
    assert score("bn_scale") is None


def test_a_group_without_a_score_is_kept_whole() -> None:
    model = net("""
        half (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[8,3,1,1] w1, float[8] s, float[8] o, float[8] m, float[8] v, float[6,8,1,1] w2, float[2,6,1,1] w3> {
            a = Conv(x, w1)
            n = BatchNormalization(a, s, o, m, v)
            b = Conv(n, w2)
            y = Conv(b, w3)
        }""")
    result = graphprune.prune(model, targets=["params=0.7"], importance="bn_scale", align=1)
    kept = {group.id: len(group.keep) for group in result.plan.groups}
    assert kept["w2:0"] == 6
    assert kept["w1:0"] < 8


def test_a_criterion_without_any_say_is_an_error() -> None:
    with pytest.raises(graphprune.errors.UnreachableError, match=r"bn_scale.*no say"):
        graphprune.prune(tiny(), targets=["channels=0.5"], importance="bn_scale", align=1)


def test_biases_and_statistics_do_not_count() -> None:
    model, other = residual(), residual()
    for name in ("o1", "m1", "v1", "o3"):
        set_initializer(other, name, np.full(8, 1000, np.float32) * np.arange(1, 9))
    assert score("magnitude", model) == score("magnitude", other)
    set_initializer(other, "s1", np.full(8, 1000, np.float32))
    assert score("magnitude", model) != score("magnitude", other)


def test_a_unit_that_occurs_several_times_counts_with_all_its_weights() -> None:
    """Flatten: each channel is read at 2 positions."""
    model = net("""
        flat (float[N,1,1,2] x) => (float[N,1] y)
        <float[3,1,1,1] a = {1, 2, 3}, float[6,1] b = {1, -1, 2, 2, -3, 1}> {
            h = Conv(x, a)
            f = Flatten(h)
            y = MatMul(f, b)
        }""")
    assert score("magnitude{p=1,normalizer=none}", model) == pytest.approx([1 + 2, 2 + 4, 3 + 4])
    assert score("magnitude{p=2,normalizer=none}", model) == pytest.approx([1 + 2, 4 + 8, 9 + 10])


def test_heads_are_scored_by_all_their_weights() -> None:
    """4 = (2 heads x 2): the head sums over its two columns, the head size over both heads."""
    model = net("""
        heads (float[N,1,1] x) => (float[N,1,2,1] y)
        <float[1,4] a = {1, 2, 4, 8}, int64[4] split = {0, 1, 2, 2}, float[2,2] g = {1, 1, 1, 1}, int64[3] join = {0, 1, 4},
         float[4,1] b = {10, 20, 40, 80}, int64[4] out = {0, 1, 1, 1}> {
            h = MatMul(x, a)
            s = Reshape(h, split)
            m = Mul(s, g)
            j = Reshape(m, join)
            k = MatMul(j, b)
            y = Reshape(k, out)
        }""")
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 1
    analysis = graphprune.analyze(model)
    criterion = registry.make("importance", "magnitude{p=1,normalizer=none}")
    found = [criterion.score(group, Evidence.of(analysis)).tolist() for group in analysis.groups]
    assert sorted(found) == sorted([[33.0, 132.0], [55.0, 110.0]])


def test_random_is_the_same_for_the_same_seed_and_group() -> None:
    one = score("random{seed=3}", residual())
    assert one == score("random{seed=3}", residual())
    assert one != score("random{seed=4}", residual())
    assert one is not None
    assert len(set(one)) == 8
    assert one[:6] != score("random{seed=3}", residual(), group=1)


def test_the_seed_of_the_run_reaches_the_random_criterion() -> None:
    kept = [
        graphprune.prune(residual(), targets=["channels=0.5"], importance="random", align=1, seed=seed).plan.keep
        for seed in (0, 1, 1)
    ]
    assert kept[0] != kept[1]
    assert kept[1] == kept[2]


def test_the_least_important_units_go() -> None:
    result = graphprune.prune(tiny(), targets=["channels=0.67"], align=1)
    assert result.plan.keep == {"a:0": [1, 2]}
    result = graphprune.prune(tiny(), targets=["channels=0.4"], align=1, importance="fpgm")
    assert result.plan.keep == {"a:0": [0]}, "the filter that is farthest from the others"


# ---- specs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["importance", "selection"])
def test_every_printed_spec_parses_back(kind: str) -> None:
    for name in registry.registered(kind):
        spec, text = registry.describe(kind, name)
        assert text
        assert registry.make(kind, spec) == registry.make(kind, name)
        assert registry.spec_of(registry.make(kind, spec)) == name


def test_a_spec_with_changed_options_prints_and_parses_back() -> None:
    made = registry.make("importance", " magnitude{ p=2, reduce = max } ")
    assert (made.p, made.reduce, made.normalizer) == (2, "max", "max")
    assert registry.spec_of(made) == "magnitude{p=2,reduce=max}"
    assert registry.make("importance", registry.spec_of(made)) == made


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "magnitud",
            "no importance is called 'magnitud'; there are: activation, attention, bn_scale, crop, fisher, fluctuation, ",
        ),
        ("magnitude{p=3}", "option p='3'"),
        ("magnitude{reduce=median}", "option reduce='median'"),
        ("magnitude{q=1}", "has no option 'q'; it has: p, reduce, normalizer"),
        ("magnitude{p}", "option 'p' is not of the form option=value"),
        ("magnitude{p=1", "is not of the form name or name{option=value,...}"),
        ("", "is not of the form"),
        ("random{seed=many}", "option seed='many'"),
        ("lamp{p=1}", "has no option 'p'; it has: none"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        registry.make("importance", spec)
    assert message in str(error.value)
