"""Gemm, MatMul and Einsum."""

from __future__ import annotations

import pytest
from halving import groups, halve, members, shapes
from nets import net


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(
    "bias", ["float[6] b1", "float[1,6] b1", "float[1] b1", "float b1 = {0.7}", "float[2,6] b1", "float[2,1] b1"]
)
def test_gemm(trans_b: int, bias: str) -> None:
    weight = "6,5" if trans_b else "5,6"
    model = net(f"""
        linear (float[2,5] x) => (float[2,3] y) <float[{weight}] w1, {bias}, float[3,6] w2> {{
            a = Gemm<transB = {trans_b}>(x, w1, b1)
            r = Relu(a)
            y = Gemm<transB = 1>(r, w2)
        }}""")
    name = f"w1:{1 - trans_b}"
    carrier = {"float[6] b1": {"b1:0 carrier"}, "float[1,6] b1": {"b1:1 carrier"}, "float[2,6] b1": {"b1:1 carrier"}}
    assert groups(model) == {name: 6}
    assert members(model, name) == {f"{name} producer", "w2:1 consumer"} | carrier.get(bias, set())
    halve(model)


def test_gemm_with_a_transposed_weight_as_left_operand() -> None:
    """W^T x: the weight is the first operand and its contracted axis is the first."""
    model = net("""
        left (float[4,5] x) => (float[3,5] y) <float[4,6] w1, float[6,3] w2> {
            a = Gemm<transA = 1>(w1, x)
            r = Relu(a)
            y = Gemm<transA = 1>(w2, r)
        }""")
    assert groups(model) == {"w1:1": 6}
    assert members(model, "w1:1") == {"w1:1 producer", "w2:0 consumer"}
    halve(model)


def test_matmul_of_tokens_with_a_bias() -> None:
    model = net(
        """
        tokens (float[N,T,5] x) => (float[N,T,3] y) <float[5,8] w1, float[8] b1, float[8,3] w2> {
            a = MatMul(x, w1)
            c = Add(b1, a)
            g = Gelu(c)
            y = MatMul(g, w2)
        }""",
        opset=20,
    )
    assert members(model, "w1:1") == {"w1:1 producer", "b1:0 carrier", "w2:0 consumer"}
    assert shapes(halve(model).model) == {"w1": [5, 4], "b1": [4], "w2": [4, 3]}


@pytest.mark.parametrize(("left", "right", "out"), [("5", "5,8", "8"), ("2,5", "5,8", "2,8"), ("2,7,5", "1,5,8", "2,7,8")])
def test_matmul_ranks(left: str, right: str, out: str) -> None:
    model = net(f"""
        ranks (float[{left}] x) => (float[{out[:-1]}3] y) <float[{right}] w1, float[8,3] w2> {{
            a = MatMul(x, w1)
            y = MatMul(a, w2)
        }}""")
    assert list(groups(model).values()) == [8]
    halve(model)


def test_matmul_with_a_vector() -> None:
    """A right operand of rank 1 is contracted whole."""
    model = net("""
        vector (float[N,5] x) => (float[N] y) <float[5,8] w1, float[8] w2> {
            a = MatMul(x, w1)
            y = MatMul(a, w2)
        }""")
    assert members(model, "w1:1") == {"w1:1 producer", "w2:0 consumer"}
    halve(model)


def test_matmul_with_the_weight_on_the_left() -> None:
    model = net("""
        left (float[N,5,7] x) => (float[N,3,7] y) <float[8,5] w1, float[3,8] w2> {
            a = MatMul(w1, x)
            r = Relu(a)
            y = MatMul(w2, r)
        }""")
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer"}
    halve(model)


def test_matmul_with_a_weight_for_each_head() -> None:
    """The leading axis of the weight is the head: a head leaves with its matrix."""
    model = net("""
        heads (float[N,7,5] x) => (float[N,2] y)
        <float[5,12] w1, int64[4] split = {0,7,4,3}, float[4,3,6] w2, float[4,6] w3, float[28,2] w4> {
            a = MatMul(x, w1)
            h = Reshape(a, split)
            t = Transpose<perm = [0,2,1,3]>(h)
            m = MatMul(t, w2)
            e = Einsum<equation = "nhtk,hk->nth">(m, w3)
            f = Flatten(e)
            y = MatMul(f, w4)
        }""")
    found = sorted(groups(model).values())
    assert {3, 4, 6} <= set(found)
    halve(model)
    halve(model, channels=0.3)


def test_einsum_is_its_own_rule() -> None:
    model = net("""
        einsum (float[N,5,7] x) => (float[N,7,3] y) <float[5,8] w1, float[3,8] w2> {
            a = Einsum<equation = "nct,co->nto">(x, w1)
            r = Relu(a)
            y = Einsum<equation = "nto, po -> ntp">(r, w2)
        }""")
    assert members(model, "w1:1") == {"w1:1 producer", "w2:1 consumer"}
    halve(model)


def test_einsum_that_sums_over_two_pruned_axes_at_once() -> None:
    model = net(
        """
        two (float[N,3,6,4] x) => (float[N,5] y) <float[8,3,1,1] w1, float[4,6] w2, float[8,6,5] w3> {
            a = Conv(x, w1)
            r = Relu(a)
            m = MatMul(r, w2)
            s = ReduceSum(m, at)
            y = Einsum<equation = "ncw,cwo->no">(s, w3)
        }""".replace("w3> {", "w3, int64[1] at = {2}> {").replace("ReduceSum(m, at)", "ReduceSum<keepdims = 0>(m, at)")
    )
    assert groups(model) == {"w1:0": 8, "w2:1": 6}
    halve(model)


@pytest.mark.parametrize(
    ("equation", "weight"),
    [
        ("aij,jk", "8,3"),
        ("nij,jk->nik", "8,3"),
        ("...j,jk->...k", "8,3"),
        ("...ij,...jk->...ik", "4,8,3"),
        ("...ij,...jk", "1,8,3"),
        ("NIj,jK->NIK", "8,3"),
    ],
)
def test_einsum_with_any_equation(equation: str, weight: str) -> None:
    model = net(f"""
        products (float[4,6,5] x) => (float[4,6,3] y) <float[5,8] w1, float[{weight}] w2> {{
            a = MatMul(x, w1)
            y = Einsum<equation = "{equation}">(a, w2)
        }}""")
    assert members(model, "w1:1") == {"w1:1 producer", f"w2:{weight.count(',') - 1} consumer"}
    halve(model)


def test_einsum_over_a_diagonal() -> None:
    model = net("""
        diagonal (float[4,5] x) => (float[4,3] y) <float[5,8] w1, float[8,8,6] w2, float[6,3] w3> {
            a = MatMul(x, w1)
            b = Einsum<equation = "ni,iik->nk">(a, w2)
            y = MatMul(b, w3)
        }""")
    assert groups(model) == {"w1:1": 8, "w2:2": 6}
    halve(model)


def test_attention_finds_heads_and_head_sizes() -> None:
    """Query and key share what they are compared over; value and output share the rest; heads are common to all."""
    model = net("""
        attention (float[N,6,10] x) => (float[N,6,10] y)
        <float[10,12] q, float[12] qb, float[10,12] k, float[12] kb, float[10,12] v, float[12] vb, float[12,10] o,
         int64[4] split = {0,6,3,4}, int64[3] join = {0,6,12}> {
            q1 = MatMul(x, q)
            q2 = Add(q1, qb)
            q3 = Reshape(q2, split)
            q4 = Transpose<perm = [0,2,1,3]>(q3)
            k1 = MatMul(x, k)
            k2 = Add(k1, kb)
            k3 = Reshape(k2, split)
            k4 = Transpose<perm = [0,2,3,1]>(k3)
            v1 = MatMul(x, v)
            v2 = Add(v1, vb)
            v3 = Reshape(v2, split)
            v4 = Transpose<perm = [0,2,1,3]>(v3)
            s = MatMul(q4, k4)
            p = Softmax<axis = -1>(s)
            c = MatMul(p, v4)
            t = Transpose<perm = [0,2,1,3]>(c)
            j = Reshape(t, join)
            y = MatMul(j, o)
        }""")
    assert sorted(groups(model).values()) == [3, 4, 4]
    heads = next(name for name, size in groups(model).items() if size == 3)
    assert {"q:1 producer", "k:1 producer", "v:1 producer", "o:0 consumer"} <= members(model, heads)
    for ratio in (0.8, 0.5, 0.3):
        halve(model, channels=ratio, silence=True)


def test_an_embedding_is_a_producer() -> None:
    model = net("""
        embedding (int64[N,T] x) => (float[N,T,3] y) <float[20,8] table, float[8,3] w2> {
            a = Gather(table, x)
            y = MatMul(a, w2)
        }""")
    assert groups(model) == {"table:1": 8}
    assert members(model, "table:1") == {"table:1 producer", "w2:0 consumer"}
    assert shapes(halve(model).model)["table"] == [20, 4]


def test_what_onnx_runtime_fuses_keeps_the_names_of_sizes() -> None:
    """Heads that are joined again by sizes read from the input are followed through FusedMatMul and Gelu."""
    model = net(
        """
        fused (float[N,T,6] x) => (float[N,T,3] y)
        <float[6,8] wq, float[6,8] wk, float[6,8] wv, int64[4] split = {0,0,2,4}, int64[1] i0 = {0}, int64[1] i1 = {1},
         int64[1] minus = {-1}, float[8,10] w1, float[10,3] w2> {
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            qs = Reshape(q, split)
            ks = Reshape(k, split)
            vs = Reshape(v, split)
            qt = Transpose<perm = [0,2,1,3]>(qs)
            kt = Transpose<perm = [0,2,3,1]>(ks)
            vt = Transpose<perm = [0,2,1,3]>(vs)
            a = com.microsoft.FusedMatMul<alpha = 0.5>(qt, kt)
            p = Softmax(a)
            o = MatMul(p, vt)
            ot = Transpose<perm = [0,2,1,3]>(o)
            s = Shape(q)
            n = Gather(s, i0)
            t = Gather(s, i1)
            target = Concat<axis = 0>(n, t, minus)
            j = Reshape(ot, target)
            h = MatMul(j, w1)
            g = com.microsoft.Gelu(h)
            y = MatMul(g, w2)
        }""",
        domains=("com.microsoft",),
    )
    assert sorted(groups(model).values()) == [2, 4, 4, 10]
    halve(model, silence=True)
