"""Networks that run some nodes at a time give what they give as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from nets import net, residual
from onnx import ModelProto

import graphprune
from graphprune import parts
from graphprune.graph import Graph
from graphprune.parts import run_in_parts
from graphprune.runtime import random_inputs, run


def branching() -> ModelProto:
    return net("""branching (float[N,3,8,8] x, bool which) => (float[N,4,8,8] y, float[N,6,8,8] b)
        <float[6,3,3,3] w0, float[4,6,1,1] w1, float[4,6,1,1] w2> {
            a = Conv <pads=[1,1,1,1]> (x, w0)
            b = Relu (a)
            y = If (which) <
                then_branch = left () => (float[N,4,8,8] l) { l = Conv (b, w1) },
                else_branch = right () => (float[N,4,8,8] r) { r = Conv (b, w2) }>
        }""")


@pytest.mark.parametrize("size", [1, 300, 2000, 10**9])
@pytest.mark.parametrize("make", [residual, branching])
def test_parts_make_the_whole(make: object, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", size)
    model = make()  # type: ignore[operator]
    feeds = random_inputs(Graph(model))
    expected, found = run(model, feeds), run_in_parts(model, feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_weights_decide_how_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = []
    original = parts.session
    monkeypatch.setattr(parts, "session", lambda *given, **options: sessions.append(1) or original(*given, **options))
    model = residual()
    feeds = random_inputs(Graph(model))
    run_in_parts(model, feeds)
    assert len(sessions) == 1
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    run_in_parts(model, feeds)
    assert len(sessions) > 3


@pytest.mark.parametrize(("size", "fits", "calls"), [(1000, True, 2), (1000, False, 2), (2**24, False, 2), (2**24, True, 0)])
def test_the_proof_of_a_large_network_runs_in_parts(size: int, fits: bool, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", size)
    monkeypatch.setattr(parts, "fits_message", lambda given: fits)
    found = []
    monkeypatch.setattr(parts, "run_in_parts", lambda *given: found.append(1) or run_in_parts(*given))
    result = graphprune.prune(residual(), targets=["channels=0.5"], align=1)
    assert result.proof is not None
    assert result.proof.passed
    assert len(found) == calls


def test_what_nobody_reads_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one branch of If taken by force, nobody asks for its condition any more."""
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    model = net("""
        unread (float[N,3] x) => (float[N,2] y) <float[3,4] w1, float[4,2] w2> {
            a = MatMul(x, w1)
            m = ReduceMax(x)
            b = Relu(a)
            y = MatMul(b, w2)
        }""")
    feeds = random_inputs(Graph(model))
    np.testing.assert_array_equal(run_in_parts(model, feeds)["y"], run(model, feeds)["y"])


def test_values_that_are_no_arrays_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    model = net("""
        sequence (float[N,3,8,8] x) => (float[N,2,8,8] y)
        <float[8,3,1,1] w0, float[4,8,1,1] w1, float[2,4,1,1] w2, int64 zero = {0}> {
            a = Conv(x, w0)
            b = Conv(a, w1)
            s = SequenceConstruct(b, b)
            c = SequenceAt(s, zero)
            y = Conv(c, w2)
        }""")
    result = graphprune.prune(model, targets=["channels=0.8"], align=1)
    assert result.proof is not None
    assert result.proof.passed


def test_halves_that_numpy_does_not_have_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    model = net("""
        looked_up (int64[N,3] ids) => (float[N,3,5] y) <bfloat16[9,8] table, float[8,6] w1, float[6,5] w2> {
            row = Gather(table, ids)
            x = Cast <to = 1> (row)
            a = MatMul(x, w1)
            b = Relu(a)
            y = MatMul(b, w2)
        }""")
    feeds = random_inputs(Graph(model))
    np.testing.assert_array_equal(run_in_parts(model, feeds)["y"], run(model, feeds)["y"])
    result = graphprune.prune(model, targets=["channels=0.8"], align=1)
    assert result.proof is not None
    assert result.proof.passed
