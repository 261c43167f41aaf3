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
