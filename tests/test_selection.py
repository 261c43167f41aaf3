"""How many channels go, and where from: targets, alignment, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from halving import halve
from nets import initializer, net, plain, residual, set_initializer
from onnx import ModelProto

import graphprune
from graphprune.errors import UnreachableError, UsageError
from graphprune.targets import parse_target

SELECTIONS = ["uniform", "global", "isomorphic"]


def wide() -> ModelProto:
    """Enough channels that a target can be met closely."""
    return net("""
        wide (float[N,3,8,8] x) => (float[N,10] y)
        <float[48,3,3,3] w1, float[48] b1, float[64,48,3,3] w2, float[64] b2, float[48,64,1,1] w3, float[10,48] w4> {
            a = Conv<pads = [1,1,1,1]>(x, w1, b1)
            r = Relu(a)
            b = Conv<pads = [1,1,1,1]>(r, w2, b2)
            s = Relu(b)
            c = Conv(s, w3)
            d = Add(c, r)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, w4)
        }""")


def prune(*targets: str, model: ModelProto | None = None, **options: object) -> graphprune.Result:
    return graphprune.prune(model or wide(), targets=targets, **({"align": 1, "verify": False} | options))


def counts(result: graphprune.Result) -> dict[str, int]:
    return {group.id: len(group.keep) for group in result.plan.groups}


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("kind", ["macs", "params", "bytes", "channels"])
@pytest.mark.parametrize("value", [0.9, 0.5, 0.2])
def test_a_target_is_met_and_not_by_much(selection: str, kind: str, value: float) -> None:
    result = prune(f"{kind}={value}", selection=selection)
    before, after = result.before.of(kind), result.after.of(kind)
    assert after <= value * before
    assert after >= 0.97 * value * before
    assert result.realised[0].fraction == after / before


@pytest.mark.parametrize("selection", SELECTIONS)
def test_several_targets_hold_together(selection: str) -> None:
    result = prune("macs=0.6", "params=0.4", "channels=0.8", selection=selection)
    limits = {"macs": 0.6, "params": 0.4, "channels": 0.8}
    shares = {kind: result.after.of(kind) / result.before.of(kind) / limit for kind, limit in limits.items()}
    assert max(shares.values()) <= 1
    assert max(shares.values()) > 0.97, "one of them binds"
    assert [item.target for item in result.realised] == ["macs=0.6", "params=0.4", "channels=0.8"]


def test_absolute_targets() -> None:
    before = prune("channels=0.9").before
    assert prune("params=20K").after.params <= 20_000 < before.params
    assert prune("macs=0.001G").after.macs <= 1_000_000 < before.macs
    assert prune("bytes=64KiB").after.bytes <= 65_536 < before.bytes


def test_bytes_count_what_is_stored() -> None:
    result = prune("channels=0.5")
    assert result.before.bytes == 4 * result.before.params
    stored = sum(len(tensor.raw_data) for tensor in result.model.graph.initializer)
    assert result.after.bytes == stored


def test_costs_by_hand() -> None:
    """Conv 3->8 at 6x6, Conv 8->12 at 4x4, Gemm 12->5; kernels of 3x3."""
    cost = prune("channels=0.9", model=plain()).before
    assert cost.macs == 36 * 8 * 3 * 9 + 16 * 12 * 8 * 9 + 12 * 5
    assert cost.params == (8 * 27 + 8) + (12 * 72 + 12) + (60 + 5)
    assert cost.channels == 8 + 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs", "is not of the form KIND=VALUE"),
        ("=0.5", "unknown kind ''"),
        ("flops=0.5", "unknown kind 'flops'; there are: macs, params, bytes, channels"),
        ("macs=half", "is neither a fraction nor a number with a unit"),
        ("macs=5Q", "is neither a fraction nor a number with a unit"),
        ("macs=-0.5", "is neither a fraction"),
        ("macs=0", "a fraction lies above 0"),
        ("macs=1.5", "a fraction lies above 0 and is at most 1; write a unit"),
        ("macs=nan", "is neither a fraction"),
        ("macs=0.5%", "is neither a fraction"),
    ],
)
def test_a_wrong_target_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_target(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("params=300K", 3e5), ("macs=1.5M", 1.5e6), ("macs=2g", 2e9), ("bytes=2MB", 2e6), ("bytes=1 KiB", 1024), ("macs=1e3K", 1e6)],
)
def test_units(text: str, value: float) -> None:
    target = parse_target(text)
    assert target.absolute
    assert target.value == pytest.approx(value)


def test_a_target_nobody_can_reach() -> None:
    with pytest.raises(UnreachableError, match=r"macs=0\.001 asks for at most .* macs, the smallest network has"):
        prune("macs=0.001")
    with pytest.raises(UnreachableError, match=r"params=0\.9.*|params"):
        prune("params=0.9", "params=0.0001")
    with pytest.raises(UnreachableError, match="min-channels"):
        prune("channels=0.5", min_channels=40)


def test_a_target_that_is_met_already() -> None:
    with pytest.raises(UnreachableError, match="nothing was pruned"):
        prune("params=1000M")
    with pytest.raises(UnreachableError, match="nothing was pruned"):
        prune("channels=1")


def test_nothing_to_prune() -> None:
    model = net("n (float[N,3] x) => (float[N,4] y) <float[3,4] w> {y = MatMul(x, w)}")
    with pytest.raises(UnreachableError, match="every axis is pinned"):
        prune("channels=0.5", model=model)


# ---- selections ---------------------------------------------------------------------------------


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
    from graphprune import registry
    from graphprune.evidence import Evidence

    result = prune("channels=0.6", selection=selection)
    analysis = graphprune.analyze(result.original)
    criterion, weights = registry.make("importance", "path"), Evidence.of(result.analysis)
    for group in analysis.groups:
        scores = criterion.score(group, weights)
        kept = result.plan.keep[group.id]
        gone = np.setdiff1d(np.arange(group.size), kept)
        assert len(gone)
        assert scores[kept].min() >= scores[gone].max()


# ---- what the user fixes ------------------------------------------------------------------------


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


# ---- alignment ----------------------------------------------------------------------------------


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


def test_an_alignment_larger_than_every_group_prunes_nothing() -> None:
    with pytest.raises(UnreachableError):
        prune("channels=0.5", align=128)


@pytest.mark.parametrize("align", [0, -4, "some", "0", "1.5"])
def test_an_alignment_that_is_none(align: int | str) -> None:
    with pytest.raises(UsageError, match="--align"):
        prune("channels=0.5", align=align)


# ---- nothing is emptied -------------------------------------------------------------------------


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


# ---- least distortion ---------------------------------------------------------------------------


def test_hull_slopes_never_decrease_and_meet_the_ends() -> None:
    from graphprune.passes.selection.distortion import hull_slopes

    errors = np.array([0, 3, 3.5, 6, 6.1, 10])
    slopes = hull_slopes(errors)
    assert slopes.tolist() == pytest.approx([1.525] * 4 + [3.9])
    assert slopes.sum() == pytest.approx(10)


def test_distortion_spends_error_where_it_saves_most() -> None:
    """Two independent layers of equal cost; the scores of one are a tenth of the other's."""
    from graphprune import registry
    from graphprune.budget import Problem, solve
    from graphprune.cost import CostModel
    from graphprune.targets import parse_target

    model = net("""
        two (float[N,4] x) => (float[N,2] y, float[N,2] z)
        <float[10,4] a, float[2,10] b, float[10,4] c, float[2,10] d> {
            p = Gemm<transB = 1>(x, a)
            y = Gemm<transB = 1>(p, b)
            q = Gemm<transB = 1>(x, c)
            z = Gemm<transB = 1>(q, d)
        }""")
    analysis = graphprune.analyze(model)
    rng = np.random.default_rng(0)
    cheap, dear = np.sort(rng.random(10)) * 0.1, np.sort(rng.random(10))
    sizes = np.array([10, 10])
    problem = Problem(
        analysis.groups, [cheap, dear], np.ones(2, int), sizes, np.ones(2, int), CostModel(analysis), [parse_target("macs=0.5")]
    )
    keep = solve(problem, registry.make("selection", "distortion").path(problem))
    kept = [len(units) for units in keep.values()]
    assert sum(kept) == 10
    error = [np.concatenate([[0], np.cumsum(scores)]) for scores in (cheap, dear)]
    best = min(error[0][10 - k] + error[1][k] for k in range(1, 10))
    assert error[0][10 - kept[0]] + error[1][10 - kept[1]] == pytest.approx(best)


def test_savings_are_the_slope_of_the_cost() -> None:
    from graphprune.cost import KINDS, CostModel

    analysis = graphprune.analyze(residual())
    model = CostModel(analysis)
    present = np.ones(len(analysis.ledger.labels), dtype=bool)
    for kind in KINDS:
        savings = model.savings(present, [kind])
        for group in analysis.groups:
            without = present.copy()
            without[group.labels[0]] = False
            saved = (model.original.of(kind) - model.cost(without).of(kind)) / model.original.of(kind)
            assert saved <= savings[group.labels[0]] + 1e-9
            assert savings[group.labels[0]] <= 1.3 * saved


def test_the_knapsack_is_the_best_of_all_choices() -> None:
    """Two layers of equal cost whose error curves are not convex: brute force over all pairs of counts."""
    pytest.importorskip("scipy")
    from graphprune import registry
    from graphprune.budget import Problem, solve
    from graphprune.cost import CostModel
    from graphprune.targets import parse_target

    model = net("""
        two (float[N,4] x) => (float[N,2] y, float[N,2] z)
        <float[8,4] a, float[2,8] b, float[8,4] c, float[2,8] d> {
            p = Gemm<transB = 1>(x, a)
            y = Gemm<transB = 1>(p, b)
            q = Gemm<transB = 1>(x, c)
            z = Gemm<transB = 1>(q, d)
        }""")
    analysis = graphprune.analyze(model)
    scores = [np.random.default_rng(seed).random(8) ** 3 for seed in (1, 2)]
    problem = Problem(
        analysis.groups, scores, np.ones(2, int), np.full(2, 8), np.ones(2, int), CostModel(analysis), [parse_target("macs=0.5")]
    )
    kept = [len(units) for units in solve(problem, registry.make("selection", "knapsack").path(problem)).values()]
    error = [np.concatenate([[0], np.cumsum(np.sort(each))]) for each in scores]
    best = min(error[0][8 - k] + error[1][k] for k in range(1, 8))
    assert sum(kept) == 8
    assert error[0][8 - kept[0]] + error[1][8 - kept[1]] == pytest.approx(best)


def test_the_knapsack_follows_what_neighbours_keep() -> None:
    """On a chain of layers costs are products; the budget is met and nearly used."""
    pytest.importorskip("scipy")
    result = prune("macs=0.5", "params=0.6", model=residual(), selection="knapsack", align=1)
    for target in result.realised:
        assert target.cost <= target.limit
    assert max(target.cost / target.limit for target in result.realised) > 0.9
