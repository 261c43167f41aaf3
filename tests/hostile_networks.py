"""Sound networks to start from, with operators of every kind.  Start reading at `CORPUS`."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from nets import block, net, plain, residual
from onnx import ModelProto


def attention() -> ModelProto:
    return net("""
        attention (float[N,6,16] x) => (float[N,6,16] y)
        <float[16,16] q, float[16,16] k, float[16,16] v, float[16,16] o, float[16] g, float[16] b> {
            s = Constant<value = int64[4] {0, 6, 4, 4}>()
            z = Constant<value = int64[3] {0, 6, 16}>()
            c = Constant<value_float = 0.5>()
            a1 = MatMul(x, q)
            a2 = MatMul(x, k)
            a3 = MatMul(x, v)
            b1 = Reshape(a1, s)
            b2 = Reshape(a2, s)
            b3 = Reshape(a3, s)
            c1 = Transpose<perm = [0, 2, 1, 3]>(b1)
            c2 = Transpose<perm = [0, 2, 3, 1]>(b2)
            c3 = Transpose<perm = [0, 2, 1, 3]>(b3)
            d1 = MatMul(c1, c2)
            d2 = Mul(d1, c)
            d3 = Softmax<axis = -1>(d2)
            e1 = MatMul(d3, c3)
            e2 = Transpose<perm = [0, 2, 1, 3]>(e1)
            e3 = Reshape(e2, z)
            e4 = MatMul(e3, o)
            e5 = Add(e4, x)
            y = LayerNormalization(e5, g, b)
        }""")


def branched() -> ModelProto:
    return net("""
        branched (float[N,4] x, bool c) => (float[N,3] y) <float[8,4] w, float[8] b, float[3,8] v, float[3] d> {
            h = Gemm<transB = 1>(x, w, b)
            r = If(c) <then_branch = one () => (float[N,8] t) {t = Relu(h)}, else_branch = two () => (float[N,8] e) {e = Tanh(h)}>
            y = Gemm<transB = 1>(r, v, d)
        }""")


def recurrent() -> ModelProto:
    return net("""
        recurrent (float[5,N,4] x) => (float[5,N,3] y) <float[1,32,4] w, float[1,32,8] r, float[1,64] b, float[8,3] v> {
            h, l, m = LSTM<hidden_size = 8>(x, w, r, b)
            i = Constant<value = int64[1] {1}>()
            s = Squeeze(h, i)
            y = MatMul(s, v)
        }""")


def moving() -> ModelProto:
    return net(
        """
        moving (float[N,4,8,8] x) => (float[N,3,4,4] y) <float[8,4,1,1] w, float[3,12,1,1] v> {
            a = Conv(x, w)
            p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)
            s = Split<axis = 1, num_outputs = 2>(p)
            i = Constant<value = int64[4] {3,2,1,0}>()
            t, u = Split<axis = 1, num_outputs = 2>(p)
            g = Gather<axis = 1>(t, i)
            e = Concat<axis = 1>(g, u, t)
            y = Conv(e, v)
        }""".replace("            s = Split<axis = 1, num_outputs = 2>(p)\n", ""),
        opset=18,
    )


def quantised() -> ModelProto:
    return net("""
        quantised (float[N,3,8,8] x) => (float[N,4,8,8] y)
        <float s, uint8 z, int8[8,3,1,1] w, float t, int8 n, float u, uint8 o, float[4,8,1,1] v> {
            q = QuantizeLinear(x, s, z)
            c = QLinearConv(q, s, z, w, t, n, u, o)
            d = DequantizeLinear(c, u, o)
            y = Conv(d, v)
        }""")


def with_function() -> ModelProto:
    return onnx.parser.parse_model(_function_text())


def _function_text() -> str:
    first, second = (", ".join(f"{(k + s) * 0.37 % 1:.2f}" for k in range(32)) for s in (1, 9))
    return f"""
        <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        f (float[N,4] x) => (float[N,4] y) <float[4,8] w = {{{first}}}, float[8,4] v = {{{second}}}> {{
            h = MatMul(x, w)
            r = local.act(h)
            y = MatMul(r, v)
        }}
        <domain: "local", opset_import: ["" : 17]>
        act (a) => (b) {{ c = Relu(a) b = Tanh(c) }}"""


CORPUS: list[Callable[[], ModelProto]] = [
    plain, residual, block, attention, branched, recurrent, moving, quantised, with_function
]  # fmt: skip
