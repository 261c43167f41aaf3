"""Targets are met and not by much; a wrong one says what is wrong."""

from __future__ import annotations

import pytest
from nets import net, plain
from selecting import SELECTIONS, prune

import graphprune
from graphprune.cost import CostModel
from graphprune.errors import UnreachableError, UsageError
from graphprune.targets import parse_target


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
        ("params=1e400G", "target 'params=1e400G': the number is too large"),
        ("latency=1e308s", "target 'latency=1e308s': the number is too large"),
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


@pytest.mark.parametrize("order", [["z", "w", "v"], ["w", "z", "v"], ["w", "v", "z"]])
def test_weights_without_elements(order: list[str]) -> None:
    """An empty past, which is joined to what comes next."""
    shapes = {"z": "float[0,12] z = {}", "w": "float[6,12] w", "v": "float[12,5] v"}
    model = net(f"""net (float[4,6] x) => (float[4,5] y) <{", ".join(shapes[name] for name in order)}> {{
        h = MatMul(x, w)
        c = Concat<axis = 0>(z, h)
        y = MatMul(c, v)
    }}""")
    cost = CostModel(graphprune.analyze(model))
    assert cost.original.params == 6 * 12 + 12 * 5
    assert cost.original.macs == 4 * (6 * 12 + 12 * 5)
    result = graphprune.prune(model, targets=["params=0.5"], align=1)
    assert result.after.params <= 0.5 * result.before.params


def test_what_only_statistics_pin_is_said_to_be_free_otherwise() -> None:
    model = net("""
        n (float[N,6] x) => (float[N,6] y) <float[6,8] w, float[8] s, float[8,6] v> {
            a = MatMul(x, w)
            b = LayerNormalization<axis = -1>(a, s)
            y = MatMul(b, v)
        }""")
    with pytest.raises(UnreachableError, match=r"tells why\); [1-9] of them are statistics, which --normalization kept frees$"):
        graphprune.prune(model, targets="macs=0.5", align=1)
    assert graphprune.prune(model, targets="macs=0.5", align=1, normalization="kept").proof is not None
