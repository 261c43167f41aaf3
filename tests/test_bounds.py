"""What bounds the number of kept channels: what the user fixes, alignment, axes that must not be empty."""

from __future__ import annotations

import numpy as np
import pytest
from halving import halve
from nets import initializer, net, plain, residual, set_initializer, wide
from onnx import ModelProto
from selecting import SELECTIONS, counts, prune

import graphprune
from graphprune.alignment import steps_of
from graphprune.errors import UnreachableError, UsageError
from graphprune.pipeline import analyze


def test_a_ratio_per_layer() -> None:
    result = prune(ratios=["w1=0.25"])
    assert counts(result) == {"w1:0": 12, "w2:0": 64}
    result = prune("channels=0.5", ratios=["^w2$=0.75"])
    assert counts(result)["w2:0"] == 48
    assert sum(counts(result).values()) == 56


def test_a_ratio_of_a_node_by_its_name() -> None:
    model = plain()
    for number, node in enumerate(model.graph.node):
        node.name = f"layer{number}"
    assert counts(prune(ratios=["layer2=0.5"], model=model)) == {"w1:0": 8, "w2:0": 6}


def test_keep_leaves_a_group_as_it_is() -> None:
    result = prune("channels=0.6", keep=["w2:0"])
    assert counts(result)["w2:0"] == 64
    assert sum(counts(result).values()) == 67
    with pytest.raises(UnreachableError, match=r"nothing|reach"):
        prune("channels=0.6", keep=["w"])


def test_keep_matches_readers_and_carriers_too() -> None:
    with pytest.raises(UnreachableError, match="the smallest network has 112"):
        prune("channels=0.6", keep=["^w2$"])
    assert counts(prune("channels=0.9", keep=["^b2$"]))["w2:0"] == 64


@pytest.mark.parametrize(("option", "value"), [("keep", ["nobody"]), ("ratios", ["nobody=0.5"])])
def test_a_pattern_that_matches_nothing(option: str, value: list[str]) -> None:
    with pytest.raises(UsageError, match="'nobody' matches no group, tensor or node"):
        prune("channels=0.5", **{option: value})


@pytest.mark.parametrize(("option", "value"), [("keep", ["w("]), ("ratios", ["w(=0.5"])])
def test_a_pattern_that_is_no_regular_expression(option: str, value: list[str]) -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        prune("channels=0.5", **{option: value})


@pytest.mark.parametrize("ratio", ["w1", "w1=", "w1=0", "w1=1.5", "w1=half", "w1=nan"])
def test_a_ratio_that_is_none(ratio: str) -> None:
    with pytest.raises(UsageError, match="is not of the form REGEX=VALUE with a value above 0 and at most 1"):
        prune(ratios=[ratio])


def test_a_regular_expression_may_contain_an_equals_sign() -> None:
    assert counts(prune(ratios=["w(?=1)=0.5"])) == {"w1:0": 24, "w2:0": 64}


def test_a_pinned_layer_may_be_kept() -> None:
    assert prune("channels=0.5", keep=["w4"], model=wide()).after.channels > 0


@pytest.mark.parametrize("selection", SELECTIONS)
def test_no_group_falls_below_the_minimum(selection: str) -> None:
    result = prune("channels=0.3", min_channels=15, selection=selection)
    assert min(counts(result).values()) >= 15
    assert sum(counts(result).values()) == 33


def test_the_minimum_is_at_most_the_size() -> None:
    model = plain()
    result = prune("channels=0.9", min_channels=10, model=model)
    assert counts(result)["w1:0"] == 8
    assert counts(result)["w2:0"] == 10


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="unknown option 'target'"):
        graphprune.prune(plain(), target="macs=0.5")
    with pytest.raises(UsageError, match="no selection is called 'best'"):
        prune("macs=0.5", selection="best")


def test_operators_without_a_rule_may_be_an_error() -> None:
    model = net(
        """
        unknown (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[8,3,1,1] w1, float[6,8,1,1] w2, float[2,6,1,1] w3, float[N,8,4,4] b> {
            a = Conv(x, w1)
            b = com.microsoft.SampleOp(a)
            c = Conv(b, w2)
            y = Conv(c, w3)
        }""",
        domains=("com.microsoft",),
    )
    assert counts(prune("channels=0.5", model=model)) == {"w2:0": 3}
    with pytest.raises(UnreachableError, match=r"operators without a rule: com\.microsoft::SampleOp"):
        prune("channels=0.5", model=model, on_unsupported="error")


# ---- alignment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [2, 4, 8, 16, "auto"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_produced_axis_is_a_multiple(align: int | str, selection: str) -> None:
    result = prune("channels=0.5", align=align, selection=selection)
    step = 4 if align == "auto" else int(align)
    assert all(count % step == 0 for count in counts(result).values())
    assert result.after.channels <= 56


def test_automatic_alignment_takes_blocks_of_the_target() -> None:
    assert all(count % 16 == 0 for name, count in counts(prune("channels=0.5", align="auto")).items() if name == "w2:0")


def test_alignment_counts_channels_not_units() -> None:
    """DepthToSpace: one unit is four channels, so that every number of units is a multiple of four."""
    model = net("""
        depth (float[N,3,6,6] x) => (float[N,4,12,12] y) <float[40,3,1,1] w1, float[4,10,1,1] w2> {
            a = Conv(x, w1)
            b = DepthToSpace<blocksize = 2>(a)
            y = Conv(b, w2)
        }""")
    result = prune("channels=0.7", align=4, model=model)
    assert counts(result) == {"w1:0": 7}
    assert counts(prune("channels=0.7", align=8, model=model)) == {"w1:0": 6}


def test_small_groups_can_still_shrink_with_automatic_alignment() -> None:
    assert counts(prune("channels=0.5", align="auto", model=residual(), selection="uniform")) == {"stem:0": 4, "inner:0": 3}


@pytest.mark.parametrize(
    ("between", "left"),
    [
        ("b = Relu(a)", 24),
        ("b = MaxPool<kernel_shape = [2,2]>(a)", 16),
        ("b = Concat<axis = 1>(a)", 16),
        ("b = AveragePool<kernel_shape = [2,2]>(a)", 16),
        ("b = Conv<group = 32>(a, d)", 16),
    ],
)
def test_half_of_a_small_group_leaves_where_blocks_must_be_full(between: str, left: int) -> None:
    model = net(f"""
        blocks (float[N,3,6,6] x) => (float[N,5,M,M] y) <float[32,3,1,1] w, float[32,1,1,1] d, float[5,32,1,1] v> {{
            a = Conv(x, w)
            {between}
            y = Conv(b, v)
        }}""")
    assert counts(prune("channels=0.8", align="auto", model=model, selection="uniform")) == {"w:0": left}


def separable() -> ModelProto:
    """A first layer of two blocks of 8 channels, which a depthwise convolution needs full, and three wide layers."""
    return net("""
        separable (float[N,3,6,6] x) => (float[N,5,6,6] y)
        <float[16,3,1,1] w, float[16,1,3,3] d, float[256,16,1,1] a,
        float[256,256,1,1] b, float[256,256,1,1] c, float[5,256,1,1] e> {
            p = Conv(x, w)
            q = Conv<group = 16, pads = [1,1,1,1]>(p, d)
            r = Conv(q, a)
            s = Conv(r, b)
            t = Conv(s, c)
            y = Conv(t, e)
        }""")


@pytest.mark.parametrize("target", ["macs=0.75", "macs=0.5", "macs=0.4"])
def test_of_two_steps_both_stay_until_half_is_to_go(target: str) -> None:
    assert counts(prune(target, align="auto", model=separable(), selection="uniform"))["w:0"] == 16


@pytest.mark.parametrize("share", [0.8, 0.65, 0.5, 0.35])
def test_a_budget_is_filled_without_leaving_the_wished_shares(share: float) -> None:
    """A trade moves a group by a step at most: without that limit one layer pays for all others."""
    found = counts(prune(f"macs={share}", align=16, keep=["^w$"], model=separable(), selection="uniform"))
    wide = sorted(found[name] for name in ("a:0", "b:0", "c:0"))
    assert wide[2] - wide[0] <= 3 * 16


def test_steps_get_finer_where_a_target_is_out_of_reach() -> None:
    model = net("""
        blocks (float[N,3,6,6] x) => (float[N,5,5,5] y) <float[32,3,1,1] w, float[5,32,1,1] v> {
            a = Conv(x, w)
            b = MaxPool<kernel_shape = [2,2]>(a)
            y = Conv(b, v)
        }""")
    for target, left in (("channels=0.8", 16), ("channels=0.5", 16), ("channels=0.4", 8)):
        assert counts(prune(target, align="auto", model=model, selection="uniform")) == {"w:0": left}
    assert counts(prune("channels=0.3", align="auto", model=model, ratios=["^w$=0.3"])) == {"w:0": 8}
    with pytest.raises(UnreachableError, match="the smallest network has 16"):
        prune("channels=0.4", align=16, model=model)


def test_a_small_ratio_of_a_group_of_two_steps_leaves_a_whole_step() -> None:
    model = net("""
        two (float[N,3,6,6] x) => (float[N,5,6,6] y) <float[16,3,1,1] w, float[16,3,1,1] v, float[5,32,1,1] u> {
            a = Conv(x, w)
            b = Conv(x, v)
            c = Concat<axis = 1>(a, b)
            y = Conv(c, u)
        }""")
    assert counts(prune(align="auto", model=model, ratios=["^w$=0.25"]))["w:0"] == 8


def test_only_a_concat_of_channels_needs_whole_blocks() -> None:
    """Of 32 heads each may leave, though what they hold is joined again, as in a rotary embedding."""
    model = net(
        """
        heads (float[N,T,24] x) => (float[N,T,5] y)
        <float[24,256] w, int64[4] split = {0, 0, 32, 8}, int64[3] joined = {0, 0, 256}, float[256,5] v> {
            a = MatMul(x, w)
            b = Reshape(a, split)
            c = Transpose<perm = [0,2,1,3]>(b)
            d = Neg(c)
            e = Concat<axis = -1>(c, d)
            s = Softmax<axis = -1>(e)
            f, g = Split<axis = -1, num_outputs = 2>(s)
            h = Transpose<perm = [0,2,1,3]>(f)
            i = Reshape(h, joined)
            y = MatMul(i, v)
        }""",
        opset=18,
    )
    analysis = analyze(model)
    steps = steps_of(analysis, analysis.decided, "auto")[0].tolist()
    assert {(group.size, step) for group, step in zip(analysis.decided, steps, strict=True)} == {(32, 1)}


@pytest.mark.parametrize("seed", range(4))
def test_what_is_no_multiple_stays_whole_or_is_cut_to_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (int(size) for size in rng.choice([40, 56, 72, 88, 200], 3))
    model = net(f"""
        odd (float[N,3,6,6] x) => (float[N,5,6,6] y)
        <float[{a},3,1,1] p, float[{b},{a},1,1] q, float[{c},{b},1,1] r, float[5,{c},1,1] s> {{
            d = Conv(x, p)
            e = Conv(d, q)
            f = Conv(e, r)
            y = Conv(f, s)
        }}""")
    for share in (0.85, 0.76, 0.55, 0.4):
        found = counts(prune(f"macs={share}", align=16, model=model, selection="uniform"))
        for name, size in (("p:0", a), ("q:0", b), ("r:0", c)):
            assert found[name] == size or found[name] % 16 == 0


def test_the_width_of_convolution_groups_is_aligned_and_their_number_is_free() -> None:
    model = net("""
        widths (float[N,3,6,6] x) => (float[N,5,6,6] y) <float[48,3,1,1] w, float[48,16,1,1] g, float[5,48,1,1] v> {
            a = Conv(x, w)
            b = Conv<group = 3>(a, g)
            y = Conv(b, v)
        }""")
    analysis = analyze(model)
    steps = steps_of(analysis, analysis.decided, "auto")[0].tolist()
    assert {(group.size, step) for group, step in zip(analysis.decided, steps, strict=True)} == {(3, 1), (16, 8)}


def test_an_alignment_larger_than_every_group_prunes_nothing() -> None:
    with pytest.raises(UnreachableError):
        prune("channels=0.5", align=128)


@pytest.mark.parametrize("align", [0, -4, "some", "0", "1.5"])
def test_an_alignment_that_is_none(align: int | str) -> None:
    with pytest.raises(UsageError, match="--align"):
        prune("channels=0.5", align=align)


# ---- nothing is emptied ---------------------------------------------------------------------------


def halves() -> ModelProto:
    """A Split whose second part holds the least important channels."""
    model = net("""
        halves (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[8,3,1,1] w1, int64[2] sizes = {5, 3}, float[2,5,1,1] w2, float[2,3,1,1] w3> {
            a = Conv(x, w1)
            p, q = Split<axis = 1>(a, sizes)
            b = Conv(p, w2)
            c = Conv(q, w3)
            y = Add(b, c)
        }""")
    weight = initializer(model, "w1").copy()
    weight[5:] *= 1e-3
    set_initializer(model, "w1", weight)
    set_initializer(model, "w3", initializer(model, "w3") * 1e-3)
    return model


def test_no_part_of_a_split_is_emptied() -> None:
    for ratio in (0.7, 0.5, 0.25):
        result = halve(halves(), channels=ratio)
        assert any(unit >= 5 for unit in result.plan.keep["w1:0"])
        assert any(unit < 5 for unit in result.plan.keep["w1:0"])


def test_a_ratio_that_would_empty_a_part_keeps_its_best_channel() -> None:
    result = prune(ratios=["w1=0.25"], model=halves())
    kept = result.plan.keep["w1:0"]
    assert len([unit for unit in kept if unit >= 5]) == 1


def test_no_target_leaves_an_axis_without_an_index() -> None:
    result = prune("channels=0.02", model=wide())
    assert min(counts(result).values()) == 1
