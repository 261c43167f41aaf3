"""Networks that run some nodes at a time give what they give as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from nets import net, residual
from onnx import ModelProto

import graphprune
from graphprune import parts, proof
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


def test_the_proof_of_a_large_network_runs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1000)
    monkeypatch.setattr(proof, "fits_message", lambda given: False)
    calls = []
    monkeypatch.setattr(proof, "run_in_parts", lambda *given: calls.append(1) or run_in_parts(*given))
    result = graphprune.prune(residual(), targets=["channels=0.5"], align=1)
    assert result.proof is not None
    assert result.proof.passed
    assert len(calls) == 2
