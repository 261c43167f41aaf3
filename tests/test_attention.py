"""Attention as one operator: heads, queries per group, and the two head sizes are free."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from halving import groups, halve, keep_exactly, members, pinned, shapes
from nets import attribute, net
from onnx import ModelProto, numpy_helper


def standard(
    attributes: str = "q_num_heads = 6, kv_num_heads = 2", extra: str = "", inputs: str = "", rotate: str = ""
) -> ModelProto:
    """Projections to 6 query heads and 2 key/value heads of size 4 (values: 3), Attention of opset 23, a projection back."""
    return net(
        f"""
        standard (float[2,5,10] x) => (float[2,5,7] y)
        <float[10,24] q, float[10,8] k, float[10,6] v, float[18,7] o{extra}> {{
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            {rotate or "qr = Identity(qp)"}
            a = Attention<{attributes}>(qr, kp, vp{inputs})
            y = MatMul(a, o)
        }}""",
        opset=23,
    )


def microsoft(node: str, extra: str = "", width: int = 12) -> ModelProto:
    """Projections to 4 heads of size 3, one of ONNX Runtime's operators, a projection back."""
    return net(
        f"""
        fused (float[2,5,10] x) => (float[2,5,7] y)
        <float[10,12] q, float[10,12] k, float[10,{width}] v, float[{width},7] o{extra}> {{
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            {node}
            y = MatMul(a, o)
        }}""",
        domains=("com.microsoft",),
    )


def test_groups_queries_and_both_sizes_are_found() -> None:
    model = standard()
    assert sorted(groups(model).values()) == [2, 3, 3, 4]
    halve(model, silence=True)


def test_numbers_of_heads_and_the_scale_are_written() -> None:
    model = standard()
    by_size = {size: name for name, size in groups(model).items()}
    result = keep_exactly(model, {by_size[2]: [1], by_size[4]: [0, 2, 3]}, silence=True)
    assert attribute(result.model, "Attention", "q_num_heads") == 3
    assert attribute(result.model, "Attention", "kv_num_heads") == 1
    assert attribute(result.model, "Attention", "scale") == pytest.approx(1 / sqrt(4))
    assert shapes(result.model)["q"] == [10, 9]


def test_a_scale_that_is_given_stays() -> None:
    result = halve(standard("q_num_heads = 6, kv_num_heads = 2, scale = 0.3"), silence=True)
    assert attribute(result.model, "Attention", "scale") == pytest.approx(0.3)


@pytest.mark.parametrize("shape", ["2,6,5,5", "6,5,5", "2,1,5,5", "5,5"])
def test_a_mask_for_each_head_belongs_to_the_heads(shape: str) -> None:
    model = standard(extra=f", float[{shape}] mask", inputs=", mask")
    carried = any(":" in name and "mask" in name for group in groups(model) for name in members(model, group))
    assert carried == ("6" in shape)
    halve(model, silence=True)


def test_a_causal_mask_needs_no_operand() -> None:
    halve(standard("q_num_heads = 6, kv_num_heads = 2, is_causal = 1"), silence=True)


def test_operands_of_rank_four() -> None:
    model = net(
        """
        four (float[2,5,10] x) => (float[2,5,7] y)
        <float[10,24] q, float[10,8] k, float[10,8] v, float[24,7] o, int64[4] qs = {0,0,6,4}, int64[4] ks = {0,0,2,4},
         int64[3] flat = {0,0,24}> {
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            q4 = Reshape(qp, qs)
            k4 = Reshape(kp, ks)
            v4 = Reshape(vp, ks)
            qt = Transpose<perm = [0,2,1,3]>(q4)
            kt = Transpose<perm = [0,2,1,3]>(k4)
            vt = Transpose<perm = [0,2,1,3]>(v4)
            a = Attention(qt, kt, vt)
            t = Transpose<perm = [0,2,1,3]>(a)
            f = Reshape(t, flat)
            y = MatMul(f, o)
        }""",
        opset=23,
    )
    assert sorted(groups(model).values()) == [2, 3, 4, 4]
    halve(model, silence=True)


def test_scores_that_are_a_result_belong_to_the_heads() -> None:
    model = net(
        """
        scores (float[2,5,10] x) => (float[2,5,7] y, float[2,1,5,5] z)
        <float[10,24] q, float[10,8] k, float[10,6] v, float[18,7] o, float[1,6,1,1] w> {
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            a, nk, nv, s = Attention<q_num_heads = 6, kv_num_heads = 2>(qp, kp, vp)
            y = MatMul(a, o)
            t = Conv(s, w)
            z = Relu(t)
        }""",
        opset=23,
    )
    assert sorted(groups(model).values()) == [2, 3, 3, 4]
    assert any("w:1 consumer" in members(model, group) for group in groups(model))
    halve(model, silence=True)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_pairs_leave_together(interleaved: int) -> None:
    rotate = f"qr = RotaryEmbedding<num_heads = 6, interleaved = {interleaved}>(qp, c, s)"
    model = standard(extra=", float[2,5,2] c, float[2,5,2] s", rotate=rotate)
    assert sorted(groups(model).values()) == [2, 2, 3, 3]
    halve(model, silence=True)


def test_a_bias_for_all_three_projections() -> None:
    model = microsoft("a = com.microsoft.MultiHeadAttention<num_heads = 4>(qp, kp, vp, b)", ", float[36] b")
    assert sorted(groups(model).values()) == [3, 3, 4]
    result = keep_exactly(model, {name: [0, 2] for name, size in groups(model).items() if size == 4}, silence=True)
    assert attribute(result.model, "MultiHeadAttention", "num_heads") == 2
    assert shapes(result.model)["b"] == [18]
    halve(model, silence=True)


def test_values_of_another_size() -> None:
    model = microsoft("a = com.microsoft.MultiHeadAttention<num_heads = 4>(qp, kp, vp)", width=20)
    assert sorted(groups(model).values()) == [3, 4, 5]
    halve(model, silence=True)


def packed(extra: str = "", inputs: str = "", attributes: str = "") -> ModelProto:
    return net(
        f"""
        packed (float[2,5,10] x) => (float[2,5,7] y) <float[10,12] e, float[12,36] w, float[36] b, float[12,7] o{extra}> {{
            h = MatMul(x, e)
            a = com.microsoft.Attention<num_heads = 4{attributes}>(h, w, b{inputs})
            y = MatMul(a, o)
        }}""",
        domains=("com.microsoft",),
    )


def test_attention_with_its_projections() -> None:
    model = packed()
    assert sorted(groups(model).values()) == [3, 3, 4, 12]
    result = halve(model, silence=True)
    sizes = attribute(result.model, "Attention", "qkv_hidden_sizes")
    assert sum(sizes) == shapes(result.model)["w"][1] == shapes(result.model)["b"][0]
    assert sizes[0] == sizes[1]
    assert attribute(result.model, "Attention", "scale") == pytest.approx(1 / sqrt(3))


def test_attention_with_projections_of_given_sizes() -> None:
    model = packed(attributes=", qkv_hidden_sizes = [8,8,20]")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    weights["o"].CopyFrom(numpy_helper.from_array(np.random.default_rng(3).standard_normal((20, 7)).astype(np.float32), "o"))
    assert sorted(groups(model).values()) == [2, 4, 5, 12]
    halve(model, silence=True)


def test_a_relative_position_bias_of_fused_attention() -> None:
    model = packed(", float[2,4,5,5] bias", ", , , bias")
    assert any("bias:1 carrier" in members(model, group) for group in groups(model))
    halve(model, silence=True)


@pytest.mark.parametrize(
    "node",
    [
        "a = com.microsoft.BiasGelu(qp, c)",
        "a = com.microsoft.FastGelu(qp, c)",
        "a = com.microsoft.QuickGelu<alpha = 1.7>(qp)",
        "a = com.microsoft.Gelu(qp)",
        "a = com.microsoft.FusedMatMul<alpha = 0.5, transB = 1>(qp, m)",
        'a = com.microsoft.FusedGemm<activation = "Relu">(flat, g, c)\n z = Identity(a)',
    ],
)
def test_what_the_optimiser_writes(node: str) -> None:
    if "FusedGemm" in node:
        model = net(
            """
            fused (float[5,10] x) => (float[5,7] y) <float[10,12] q, float[12,12] g, float[12] c, float[12,7] o> {
                p = MatMul(x, q)
                a = com.microsoft.FusedGemm<activation = "Relu">(p, g, c)
                y = MatMul(a, o)
            }""",
            domains=("com.microsoft",),
        )
    else:
        model = microsoft(node, ", float[12] c, float[12,12] m")
    assert set(groups(model).values()) == {12}
    halve(model)


@pytest.mark.parametrize("operator", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_skip_normalisation_pins_what_it_averages_over(operator: str) -> None:
    beta = ", c" if operator == "SkipLayerNormalization" else ""
    model = microsoft(f"n = com.microsoft.{operator}(qp, kp, c{beta})\n a = MatMul(n, m)", ", float[12] c, float[12,12] m")
    assert groups(model) == {"m:1": 12}
    assert "statistics over this axis" in pinned(model)["q:1"]
    halve(model)


def test_statistics_of_a_skip_normalisation_that_nobody_reads() -> None:
    model = net(
        """
        skip (float[2,5,10] x) => (float[2,3,10] y) <float[8,5] w1, float[10] c, float[3,8] w2> {
            p = MatMul(w1, x)
            n, mean, inv = com.microsoft.SkipLayerNormalization(p, p, c)
            y = MatMul(w2, n)
        }""",
        domains=("com.microsoft",),
    )
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_a_cache_that_projected_attention_makes_pins() -> None:
    model = net(
        """
        packed (float[2,5,10] x) => (float[2,5,7] y) <float[10,36] w, float[36] b, float[12,7] o> {
            a, present = com.microsoft.Attention<num_heads = 4>(x, w, b)
            y = MatMul(a, o)
        }""",
        domains=("com.microsoft",),
    )
    assert groups(model) == {}
    assert pinned(model)["w:1"] == "this form of com.microsoft::Attention has no rule"
