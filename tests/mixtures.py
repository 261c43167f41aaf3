"""Mixtures of experts in ONNX's text form: routers, ways to read the chosen experts' weights, whole networks.

Start reading at `mixture`.
"""

from __future__ import annotations

from nets import net
from onnx import ModelProto

import graphprune
from graphprune.pipeline import load
from graphprune.replay import analysis_of

FREE = "TopK chooses among the experts along this axis (--experts prune lets some leave)"

SOFTMAX_FIRST = """p = Softmax<axis = -1>(logits)
            v, i = TopK<axis = -1>(p, two)
            s = ReduceSum(v, last)
            w = Div(v, s)"""
TOPK_FIRST = """v, i = TopK<axis = -1>(logits, two)
            w = Softmax<axis = -1>(v)"""
CORRECTED = """p = Sigmoid(logits)
            q = Add(p, bias)
            v, i = TopK(q, two)
            w = GatherElements<axis = -1>(p, i)"""
SOFTMAX_CORRECTED = CORRECTED.replace("Sigmoid(logits)", "Softmax<axis = 1>(logits)")
LOGARITHM = """p = LogSoftmax<axis = 1>(logits)
            v, i = TopK<axis = -1>(p, two)
            w = Exp(v)"""
TRANSPOSED = """l = Transpose<perm = [1, 0]>(logits)
            p = Softmax<axis = 0>(l)
            g, j = TopK<axis = 0>(p, two)
            w = Transpose<perm = [1, 0]>(g)
            i = Transpose<perm = [1, 0]>(j)"""

GATHERED = """u = Gather<axis = 0>(up, i)
            d = Gather<axis = 0>(down, i)"""
ADDRESSED = """n = Unsqueeze(i, last)
            u = GatherND(up, n)
            m = Identity(n)
            d = GatherND(down, m)"""
FLATTENED = """f = Reshape(i, last)
            f32 = Cast<to = 6>(f)
            u0 = Gather<axis = 0>(up, f32)
            d0 = Gather<axis = 0>(down, f32)
            u = Reshape(u0, split_up)
            d = Reshape(d0, split_down)"""
HEAD = "y = MatMul(z, head)"
ROUTERS = {"logits": ("gate", 1)}


def mixture(
    routing: str = SOFTMAX_FIRST, taking: str = GATHERED, more: str = HEAD, outputs: str = "", weights: str = ""
) -> ModelProto:
    """Tokens of width 12, a residual mixture of 5 experts of width 7 of which 2 are chosen, a head."""
    return net(f"""
        mixture (float[6,10] x) => (float[6,4] y{outputs})
        <float[10,12] w0, float[12,5] gate, float[5] bias, float[5,12,7] up, float[5,7,12] down, float[12,4] head,
         int64[1] two = {{2}}, int64[1] last = {{-1}}, int64[2] inner = {{1, 2}}, int64[2] outer = {{2, 3}},
         int64[4] split_up = {{6, 2, 12, 7}}, int64[4] split_down = {{6, 2, 7, 12}}{weights}> {{
            h0 = MatMul(x, w0)
            h = Relu(h0)
            logits = MatMul(h, gate)
            {routing}
            {taking}
            r = Unsqueeze(h, inner)
            a = MatMul(r, u)
            b = Relu(a)
            c = MatMul(b, d)
            k = Unsqueeze(w, outer)
            o = Mul(c, k)
            t = ReduceSum<keepdims = 0>(o, inner)
            z = Add(h, t)
            {more}
        }}""")


SPLIT = """i1, i2 = Split<axis = 1>(i)
            u1 = Gather<axis = 0>(up, i1)
            u2 = Gather<axis = 0>(up, i2)
            u = Concat<axis = 1>(u1, u2)
            d = Gather<axis = 0>(down, i)"""
INNER_AXIS = """t1 = Transpose<perm = [1, 0, 2]>(up)
            t2 = Gather<axis = 1>(t1, i)
            u = Transpose<perm = [1, 2, 0, 3]>(t2)
            d = Gather<axis = 0>(down, i)"""
READ_BY_OTHERS = """e0 = MatMul(p, shares)
            e1 = MatMul(h, side)
            e2 = Relu(e1)
            e3 = GatherElements<axis = -1>(e2, i)
            e4 = ReduceSum(e3, last)
            y0 = MatMul(z, head)
            y1 = Add(y0, e0)
            y = Add(y1, e4)"""
TWO_GATES = """
        gates (float[6,10] x) => (float[6,4] y)
        <float[10,12] w0, float[12,2] gate1, float[12,3] gate2, float[5,12,7] up, float[7,4] head, int64[1] two = {2},
         int64[2] inner = {1, 2}> {
            h0 = MatMul(x, w0)  h = Relu(h0)
            l1 = MatMul(h, gate1)  l2 = MatMul(h, gate2)  l = Concat<axis = -1>(l1, l2)
            p = Softmax<axis = -1>(l)  v, i = TopK(p, two)
            u = Gather<axis = 0>(up, i)  r = Unsqueeze(h, inner)  a = MatMul(r, u)  b = Relu(a)
            t = ReduceSum<keepdims = 0>(b, inner)  y = MatMul(t, head)
        }"""
IN_GROUPS = """
        groups (float[6,10] x) => (float[6,4] y)
        <float[10,12] w0, float[12,6] gate, float[2,1] scale, float[6,12,7] up, float[7,4] head, int64[1] four = {4},
         int64[2] inner = {1, 2}, int64[3] grid = {6, 2, 3}, int64[2] flat = {6, 6}> {
            h0 = MatMul(x, w0)  h = Relu(h0)
            l0 = MatMul(h, gate)  l1 = Reshape(l0, grid)  l2 = Mul(l1, scale)  l = Reshape(l2, flat)
            v, i = TopK(l, four)
            u = Gather<axis = 0>(up, i)  r = Unsqueeze(h, inner)  a = MatMul(r, u)  b = Relu(a)
            t = ReduceSum<keepdims = 0>(b, inner)  y = MatMul(t, head)
        }"""
IN_A_BRANCH = """
        branch (float[6,10] x, bool c) => (float[6,4] y)
        <float[10,12] w0, float[12,5] gate, float[5,12,7] up, float[7,4] head, float[12,4] other, int64[1] two = {2},
         int64[2] inner = {1, 2}> {
            h0 = MatMul(x, w0)  h = Relu(h0)
            y = If (c) <then_branch = a () => (float[6,4] y1) {
                l = MatMul(h, gate)  p = Softmax<axis = -1>(l)  v, i = TopK(p, two)
                u = Gather<axis = 0>(up, i)  r = Unsqueeze(h, inner)  m = MatMul(r, u)  b = Relu(m)
                t = ReduceSum<keepdims = 0>(b, inner)  y1 = MatMul(t, head)
            }, else_branch = b () => (float[6,4] y2) { y2 = MatMul(h, other) }>
        }"""


def free(model: ModelProto, mode: str = "coupled") -> dict[str, int]:
    """The size of every group where experts may leave."""
    return {group.id: group.size for group in analysis_of(load(model), "pin", mode, "prune").groups}  # type: ignore[arg-type]


def reason(model: ModelProto) -> str:
    """Why experts stay where they may leave."""
    found = graphprune.analyze(model, experts="prune").pinned
    return next(entry.reason.text for entry in found if (entry.tensor, entry.axis) == ("gate", 1))
