"""Normalised queries and keys as onnxruntime-genai writes them: heads are followed through [batch, steps * heads, size]."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, pinned, shapes
from nets import attribute, net, operators
from onnx import ModelProto

import graphprune
from graphprune.runtime import run


def normalised(
    norm: str = "SimplifiedLayerNormalization<axis = -1>(q1, scale)",
    name: str = "q2",
    weights: str = "",
    more: str = "",
    outputs: str = "",
) -> ModelProto:
    """6 query heads and 2 key/value heads of size 4, the queries normalised head by head; dynamic batch and steps."""
    return net(
        f"""
        normalised (float[B,S,10] x, float[B,2,P,4] pk, float[B,2,P,4] pv)
         => (float[B,S,7] y, float[B,2,T,4] nk, float[B,2,T,4] nv{outputs})
        <float[10,24] q, float[10,8] k, float[10,8] v, float[24,7] o, float[4] scale, int64[3] apart = {{0,-1,4}},
         int64[3] back = {{0,-1,24}}{weights}> {{
            q0 = MatMul(x, q)
            q1 = Reshape(q0, apart)
            {name} = {norm}
            qp = Reshape(q2, back)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            a, nk, nv = Attention<q_num_heads = 6, kv_num_heads = 2>(qp, kp, vp, , pk, pv)
            y = MatMul(a, o){more}
        }}""",
        opset=23,
    )


NORMS = [
    "SimplifiedLayerNormalization<axis = -1>(q1, scale)",
    "LayerNormalization<axis = 2>(q1, scale)",
    "RMSNormalization(q1, scale)",
    "LpNormalization<axis = -1>(q1)",
    "Mul(q1, scale)",
]


@pytest.mark.parametrize("norm", NORMS)
def test_query_heads_behind_a_normalisation_may_leave(norm: str) -> None:
    model = normalised(norm)
    assert groups(model)["q:1"] == 3
    result = halve(model, silence=True)
    assert attribute(result.model, "Attention", "q_num_heads") == 2
    assert shapes(result.model)["o"] == [8, 7]


def test_several_steps_may_stand_between() -> None:
    steps = "Identity(q1)\n c1 = Mul(q2a, scale)\n q2 = LpNormalization<axis = 2>(c1)"
    assert groups(normalised(steps.replace("Identity", "Cast<to = 1>"), name="q2a"))["q:1"] == 3


def test_the_normal_form_computes_the_same() -> None:
    model = normalised()
    rng = np.random.default_rng(2)
    sizes = {"x": (3, 5, 10), "pk": (3, 2, 2, 4), "pv": (3, 2, 2, 4)}
    feeds = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    expected = run(model, feeds)
    for name, value in run(graphprune.load(model).model, feeds).items():
        np.testing.assert_array_equal(value, expected[name])


def test_rows_of_a_matrix() -> None:
    model = net("""
        rows (float[N,10] x) => (float[N,3] y)
        <float[10,24] q, float[24,3] o, float[4] scale, int64[2] apart = {-1,4}, int64[2] back = {-1,24}> {
            a = MatMul(x, q)
            b = Reshape(a, apart)
            c = LayerNormalization(b, scale)
            d = Reshape(c, back)
            y = MatMul(d, o)
        }""")
    assert groups(model) == {"q:1": 6}
    halve(model)


@pytest.mark.parametrize("norm", ["Mul(q1, q1)", "Softmax<axis = 1>(q1)", "Add(q1, table)"])
def test_other_operators_between_are_left_alone(norm: str) -> None:
    """Those that read the value twice, work along another axis, or have constants of another axis."""
    model = normalised(norm, weights=", float[1,1,4] table")
    assert "q:1" not in groups(model)
    assert operators(graphprune.load(model).model) == operators(model)


def test_a_value_with_another_reader_is_left_alone() -> None:
    model = normalised(more="\n other = Neg(q1)", outputs=", float[B,R,4] other")
    assert "q:1" in pinned(model)


def test_a_reshape_to_something_else_is_left_alone() -> None:
    model = net("""
        rows (float[N,10] x) => (float[M,3] y)
        <float[10,24] q, float[12,3] o, float[4] scale, int64[2] apart = {-1,4}, int64[2] back = {-1,12}> {
            a = MatMul(x, q)
            b = Reshape(a, apart)
            c = LayerNormalization(b, scale)
            d = Reshape(c, back)
            y = MatMul(d, o)
        }""")
    assert groups(model) == {}


SAMPLES = """
    joined (float[B,5,12] x) => (float[B,5,4] y)
    <float[12,24] wq, float[12,24] wk, float[12,24] wv, float[24,4] wo, int64[3] apart = {5,-1,8}, int64[4] split = {-1,3,5,8},
     int64[3] joined = {5,-1,24}> {
        t = Transpose<perm = [1,0,2]>(x)
        q0 = MatMul(t, wq)
        q1 = Reshape(q0, apart)
        q2 = Transpose<perm = [1,0,2]>(q1)
        q = Reshape(q2, split)
        k0 = MatMul(t, wk)
        k1 = Reshape(k0, apart)
        k2 = Transpose<perm = [1,0,2]>(k1)
        k = Reshape(k2, split)
        v0 = MatMul(t, wv)
        v1 = Reshape(v0, apart)
        v2 = Transpose<perm = [1,0,2]>(v1)
        v = Reshape(v2, split)
        kt = Transpose<perm = [0,1,3,2]>(k)
        s = MatMul(q, kt)
        a = Softmax(s)
        h = MatMul(a, v)
        h1 = Transpose<perm = [2,0,1,3]>(h)
        h2 = Reshape(h1, joined)
        o = MatMul(h2, wo)
        y = Transpose<perm = [1,0,2]>(o)
    }"""
"""nn.MultiheadAttention with a dynamic batch, as torch writes it: samples and heads are one axis for a while."""


def test_heads_that_are_joined_with_samples_for_a_while() -> None:
    model = net(SAMPLES)
    assert sorted(groups(model).values()) == [3, 8, 8]
    assert [node.op_type for node in graphprune.load(model).nodes].count("Reshape") == 4
    result = halve(model, silence=True)
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 5, 12)).astype(np.float32)}
    assert run(result.model, inputs)["y"].shape == (3, 5, 4)


@pytest.mark.parametrize(("given", "other"), [("{5,-1,8}", "{-1,15,8}"), ("{-1,3,5,8}", "{-1,5,3,8}")])
def test_other_places_of_the_samples_stay(given: str, other: str) -> None:
    model = net(SAMPLES.replace(given, other).replace("float[B,5,12] x", "float[5,5,12] x"))
    normal = graphprune.load(model)
    assert [node.op_type for node in normal.nodes].count("Reshape") == 7
    inputs = {"x": np.random.default_rng(0).normal(size=(5, 5, 12)).astype(np.float32)}
    np.testing.assert_allclose(run(normal.model, inputs)["y"], run(model, inputs)["y"], rtol=1e-5, atol=1e-6)
