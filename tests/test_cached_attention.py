"""Attention with a cache of past keys and values, as decoders have it: what the cache does not fix is free."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from halving import groups, halve, members, pinned, shapes
from nets import attribute, net
from onnx import ModelProto, numpy_helper

import graphprune


def cached(node: str) -> ModelProto:
    """6 query heads and 2 key/value heads of size 4 (values: 3), with 3 steps of the past."""
    return net(
        f"""
        cached (float[2,5,10] x, float[2,2,3,4] pk, float[2,2,3,3] pv)
         => (float[2,5,7] y, float[2,2,8,4] nk, float[2,2,8,3] nv)
        <float[10,24] q, float[10,8] k, float[10,6] v, float[18,7] o> {{
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            a, nk, nv = {node}
            y = MatMul(a, o)
        }}""",
        opset=23,
    )


def decoder(projections: str, operands: str, weights: str, rotary: int = 1, extra: str = "", last: str = "") -> ModelProto:
    """A layer as onnxruntime-genai writes it: 6 query heads and 2 key/value heads of size 16, everything dynamic."""
    tables = ", cos, sin" if rotary else ", , "
    return net(
        f"""
        decoder (int64[B,S] ids, int64[B,T] mask, float[B,2,P,16] pk, float[B,2,P,16] pv)
         => (float[B,S,30] logits, float[B,2,T,16] nk, float[B,2,T,16] nv)
        <float[30,20] embed, float[20] scale, {weights}, float[96,20] o, float[20] scale2, float[20,30] head,
         float[64,8] cos, float[64,8] sin, int64[1] one = {{1}}, int64 at = {{1}}{extra}> {{
            sum = ReduceSum(mask, one)
            less = Sub(sum, one)
            seqlens = Cast<to = 6>(less)
            shape = Shape(mask)
            size = Gather(shape, at)
            total = Cast<to = 6>(size)
            h = Gather(embed, ids)
            n = SimplifiedLayerNormalization<axis = -1>(h, scale)
            {projections}
            a, nk, nv = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 2, do_rotary = {rotary}>(
                {operands}, pk, pv, seqlens, total{tables}{last})
            p = MatMul(a, o)
            f = com.microsoft.SkipSimplifiedLayerNormalization(h, p, scale2)
            logits = MatMul(f, head)
        }}""",
        opset=21,
        domains=("com.microsoft",),
    )


def separate(**options: Any) -> ModelProto:
    projections = "qp = MatMul(n, q)\n kp = MatMul(n, k)\n vp = MatMul(n, v)"
    return decoder(projections, "qp, kp, vp", "float[20,96] q, float[20,32] k, float[20,32] v", **options)


def side_by_side() -> ModelProto:
    return decoder("p0 = MatMul(n, qkv)\n qkvp = Add(p0, b)", "qkvp, , ", "float[20,160] qkv, float[160] b")


def test_queries_per_group_are_free_beside_a_cache() -> None:
    model = cached("Attention<q_num_heads = 6, kv_num_heads = 2>(qp, kp, vp, , pk, pv)")
    assert groups(model) == {"q:1": 3}
    assert "network input 'pk' keeps its shape" in pinned(model)["k:1"]
    result = halve(model, silence=True)
    assert attribute(result.model, "Attention", "q_num_heads") == 2
    assert attribute(result.model, "Attention", "kv_num_heads") == 2


def test_a_cache_that_is_a_weight_shrinks_with_its_heads() -> None:
    model = net(
        """
        prefix (float[2,5,10] x) => (float[2,5,7] y)
        <float[10,24] q, float[10,8] k, float[10,6] v, float[18,7] o, float[2,2,3,4] wk, float[2,2,3,3] wv> {
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            a, nk, nv = Attention<q_num_heads = 6, kv_num_heads = 2>(qp, kp, vp, , wk, wv)
            y = MatMul(a, o)
        }""",
        opset=23,
    )
    assert sorted(groups(model).values()) == [2, 3, 3, 4]
    assert any("wk:1 carrier" in members(model, group) for group in groups(model))
    result = halve(model, silence=True)
    assert shapes(result.model)["wk"] == [2, 1, 3, 2]


def test_past_steps_count_as_macs() -> None:
    node = "Attention<q_num_heads = 6, kv_num_heads = 2>(qp, kp, vp, , pk, pv)"
    projections = 2 * 5 * (10 * (24 + 8 + 6) + 18 * 7)
    assert halve(cached(node), silence=True).before.macs == projections + 2 * 5 * (5 + 3) * (24 + 18)


def test_multi_head_attention_with_a_cache() -> None:
    model = net(
        """
        cached (float[2,5,10] x, float[2,4,3,3] pk, float[2,4,3,3] pv) => (float[2,5,7] y)
        <float[10,12] q, float[10,12] k, float[10,12] v, float[12,7] o, float[7,9] w, float[9,7] u> {
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            a, nk, nv = com.microsoft.MultiHeadAttention<num_heads = 4>(qp, kp, vp, , , , pk, pv)
            h = MatMul(a, o)
            m = MatMul(h, w)
            y = MatMul(m, u)
        }""",
        domains=("com.microsoft",),
    )
    assert groups(model) == {"o:1": 7, "w:1": 9}
    assert "network input 'pk' keeps its shape" in pinned(model)["q:1"]
    halve(model)


def test_keys_that_were_made_once_for_all_steps() -> None:
    model = net(
        """
        cross (float[2,5,10] x, float[2,6,10] z) => (float[2,5,7] y)
        <float[10,12] q, float[10,12] k, float[10,12] v, float[12,7] o, int64[4] heads = {0,0,4,3}> {
            qp = MatMul(x, q)
            kp = MatMul(z, k)
            vp = MatMul(z, v)
            k4 = Reshape(kp, heads)
            v4 = Reshape(vp, heads)
            kt = Transpose<perm = [0,2,1,3]>(k4)
            vt = Transpose<perm = [0,2,1,3]>(v4)
            a = com.microsoft.MultiHeadAttention<num_heads = 4>(qp, kt, vt)
            y = MatMul(a, o)
        }""",
        domains=("com.microsoft",),
    )
    assert sorted(groups(model).values()) == [3, 4]
    result = halve(model, silence=True)
    assert attribute(result.model, "MultiHeadAttention", "num_heads") == 2


@pytest.mark.parametrize("layer", [separate, side_by_side, partial(separate, rotary=0)])
def test_layers_of_onnxruntime_genai(layer: Callable[[], ModelProto]) -> None:
    model = layer()
    assert list(groups(model).values()) == [3]
    result = halve(model, silence=True)
    assert attribute(result.model, "GroupQueryAttention", "num_heads") == 2
    assert attribute(result.model, "GroupQueryAttention", "kv_num_heads") == 2
    assert shapes(result.model)["o"] == [32, 20]


def test_operands_side_by_side_are_operands_apart() -> None:
    apart, together = separate(), side_by_side()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in apart.graph.initializer}
    for tensor in together.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(160, np.float32), "b"))
        elif tensor.name == "qkv":
            joined = np.concatenate([weights[name] for name in "qkv"], axis=1)
            tensor.CopyFrom(numpy_helper.from_array(joined, "qkv"))
        else:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    results = [graphprune.prune(model, targets=["channels=0.6"], importance="magnitude") for model in (apart, together)]
    costs = [graphprune.analyze(result.model) for result in results]
    assert [group.keep for group in results[0].plan.groups] == [group.keep for group in results[1].plan.groups]
    assert results[0].after.macs == results[1].after.macs
    assert len(costs[0].groups) == len(costs[1].groups)


def test_groups_without_a_cache_may_leave() -> None:
    model = net(
        """
        encoder (float[2,5,10] x, int32[2] seqlens) => (float[2,5,7] y)
        <float[10,48] q, float[10,16] k, float[10,16] v, float[48,7] o, int32[1] total = {5}> {
            qp = MatMul(x, q)
            kp = MatMul(x, k)
            vp = MatMul(x, v)
            a = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 2>(qp, kp, vp, , , seqlens, total)
            y = MatMul(a, o)
        }""",
        domains=("com.microsoft",),
    )
    assert sorted(groups(model).values()) == [2, 3]
    result = halve(model, silence=True)
    assert attribute(result.model, "GroupQueryAttention", "num_heads") == 1
    assert attribute(result.model, "GroupQueryAttention", "kv_num_heads") == 1
    assert shapes(result.model)["k"] == [10, 8]


def test_sinks_belong_to_the_heads() -> None:
    model = separate(extra=", float[6] sink", last=", , , sink")
    assert any("sink:0 carrier" in members(model, group) for group in groups(model))
    halve(model, silence=True)


@pytest.mark.parametrize("numbers", [(6, 0), (0, 2), (6, 4), (-6, -2)])
@pytest.mark.parametrize("layer", [separate, side_by_side])
def test_numbers_of_heads_that_do_not_fit_have_no_rule(layer: Callable[[], ModelProto], numbers: tuple[int, int]) -> None:
    model = layer()
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    for entry in node.attribute:
        if entry.name in ("num_heads", "kv_num_heads"):
            entry.i = numbers[entry.name == "kv_num_heads"]
    assert groups(model) == {}


def test_a_quantised_cache_has_no_rule() -> None:
    model = separate(extra=", float[1] ks, float[1] vs", last=", , , , ks, vs")
    assert groups(model) == {}
    assert "this form of com.microsoft::GroupQueryAttention has no rule" in pinned(model)["q:1"]


def test_heads_that_are_repeated_to_a_length_that_is_added_up() -> None:
    """torch's exporter: Expand to [N, 2, 3, past + new, 4], of which the 3 are queries per group."""
    model = net("""
        cached (float[N,S,10] x, float[N,2,P,4] pk, float[N,2,P,4] pv) => (float[N,S,7] y)
        <float[10,24] q, float[10,8] k, float[10,8] v, float[24,7] o, int64[4] qs = {0,0,6,4}, int64[4] ks = {0,0,2,4},
         int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4}, int64[1] at0 = {0}, int64[1] at1 = {1},
         int64[1] at2 = {2}, int64[4] heads = {0,6,-1,4}, int64[3] flat = {0,0,24}> {
            q0 = MatMul(x, q)
            k0 = MatMul(x, k)
            v0 = MatMul(x, v)
            q1 = Reshape(q0, qs)
            k1 = Reshape(k0, ks)
            v1 = Reshape(v0, ks)
            q2 = Transpose<perm = [0,2,1,3]>(q1)
            k2 = Transpose<perm = [0,2,1,3]>(k1)
            v2 = Transpose<perm = [0,2,1,3]>(v1)
            kc = Concat<axis = 2>(pk, k2)
            vc = Concat<axis = 2>(pv, v2)
            xs = Shape(x)
            ps = Shape(pk)
            n = Gather(xs, at0)
            s = Gather(xs, at1)
            p = Gather(ps, at2)
            t = Add(p, s)
            wide = Concat<axis = 0>(n, two, three, t, four)
            k3 = Unsqueeze(kc, two)
            v3 = Unsqueeze(vc, two)
            k4 = Expand(k3, wide)
            v4 = Expand(v3, wide)
            k5 = Reshape(k4, heads)
            v5 = Reshape(v4, heads)
            k6 = Transpose<perm = [0,1,3,2]>(k5)
            scores = MatMul(q2, k6)
            weights = Softmax<axis = -1>(scores)
            h = MatMul(weights, v5)
            back = Transpose<perm = [0,2,1,3]>(h)
            joined = Reshape(back, flat)
            y = MatMul(joined, o)
        }""")
    assert groups(model) == {"q:1": 3}
    result = halve(model, silence=True)
    assert shapes(result.model)["q"] == [10, 8]
    assert "network input 'pk' keeps its shape" in pinned(model)["k:1"]
