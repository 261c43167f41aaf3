"""Weights that are computed from weights are computed ahead of time, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from halving import groups, halve
from nets import net, write
from onnx import ModelProto

from graphprune import folding, model_file, pipeline
from graphprune.external import is_external
from graphprune.model_file import read_model


def standardised(weights: int) -> ModelProto:
    """Convolutions of 48 channels whose weights are standardised when the network runs (Qiao et al. 2019), as torch writes it."""
    layers = "".join(
        f"""
            f{k} = Reshape(w{k}, flat)
            m{k} = ReduceMean(f{k}, last)
            d{k} = Sub(f{k}, m{k})
            s{k} = Mul(d{k}, d{k})
            v{k} = ReduceMean(s{k}, last)
            e{k} = Add(v{k}, tiny)
            r{k} = Sqrt(e{k})
            q{k} = Div(d{k}, r{k})
            g{k} = Mul(q{k}, gain)
            c{k} = Reshape(g{k}, full)
            a{k} = Conv<pads = [1,1,1,1]>({f"b{k - 1}" if k else "h"}, c{k})
            b{k} = Relu(a{k})"""
        for k in range(weights)
    )
    stored = "".join(f", float[48,48,3,3] w{k}" for k in range(weights))
    return net(
        f"""standardised (float[2,3,6,6] x) => (float[2,4,6,6] y)
        <float[48,3,1,1] stem, float[4,48,1,1] head, int64[2] flat = {{48,432}}, int64[4] full = {{48,48,3,3}},
         int64[1] last = {{1}}, float tiny = {{1e-5}}, float[48,1] gain{stored}> {{
            h = Conv(x, stem){layers}
            y = Conv(b{weights - 1}, head)
        }}""",
        opset=18,
    )


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 64 bytes stay in their files, and more than a thousand elements are a large result."""
    monkeypatch.setattr(model_file, "MAPPED", 0)
    monkeypatch.setattr(model_file, "LARGE", 64)
    monkeypatch.setattr(folding, "LARGE", 1000)


def test_standardised_weights_are_weights() -> None:
    model = standardised(2)
    assert [node.op_type for node in pipeline.load(model).nodes] == ["Conv", "Conv", "Relu", "Conv", "Relu", "Conv"]
    assert groups(model) == {"c0:0": 48, "c1:0": 48, "stem:0": 48}
    halve(model)


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize(("held", "computed"), [(30, 4), (6, 4), (4, 3), (1, 0)])
def test_large_results_count_while_they_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, computed: int
) -> None:
    """Each weight takes six large results, of which five are let go of on the way."""
    monkeypatch.setattr(folding, "HELD", held * 48 * 48 * 9)
    path = write(standardised(4), tmp_path / "m.onnx")
    assert any(map(is_external, read_model(path).graph.initializer))
    names = pipeline.load(path).initializers
    assert sum(f"c{k}" in names for k in range(4)) == computed


ATTENTION = """
    cross (float[2,5,12] x, float[2,7,12] z) => (float[2,5,4] y)
    <float[12,8] i, float[12,8] j, float[24,8] w, float[24] b, int64[2] parts = {8,16}, int64[2] two = {8,8}, float[8,4] o> {
        p = MatMul(x, i)
        q = MatMul(z, j)
        w1, w2 = Split<axis = 0>(w, parts)
        b1, b2 = Split<axis = -1>(b, parts)
        t1 = Transpose<perm = [1,0]>(w1)
        t2 = Transpose<perm = [1,0]>(w2)
        m1 = MatMul(p, t1)
        a1 = Add(m1, b1)
        m2 = MatMul(q, t2)
        a2 = Add(m2, b2)
        k, v = Split<axis = 2>(a2, two)
        kt = Transpose<perm = [0,2,1]>(k)
        s = MatMul(a1, kt)
        f = Softmax(s)
        h = MatMul(f, v)
        y = MatMul(h, o)
    }"""
"""Cross attention as torch's newer exporter writes nn.MultiheadAttention: its weight is split when the network runs."""


def test_parts_of_a_weight_are_weights() -> None:
    model = net(ATTENTION)
    assert groups(model) == {"i:1": 8, "j:1": 8, "t1:1": 8, "t2:1": 8}
    halve(model, silence=True)


def test_a_weight_that_is_split_twice_stays_one() -> None:
    """A layer that is applied twice."""
    twice = ATTENTION.replace("t2 = ", "u1, u2 = Split<axis = 0>(w, parts)\n        t2 = ").replace("(w2)", "(u2)")
    graph = pipeline.load(net(twice))
    assert graph.initializers["w"].dims == [24, 8]
    halve(net(twice), silence=True)
