"""Reading and writing at computed places, and copies along new axes."""

from __future__ import annotations

import pytest
from halving import groups, halve, pinned
from nets import net
from onnx import ModelProto


def tokens(middle: str, weights: str = "", inputs: str = "", out: str = "N,T") -> ModelProto:
    """A projection to 8 channels, something in between, and a projection of what comes out."""
    return net(f"""
        tokens (float[2,6,5] x{inputs}) => (float[{out},3] y) <float[5,8] w1, float[8,3] w2{weights}> {{
            a = MatMul(x, w1)
            {middle}
            y = MatMul(b, w2)
        }}""")


@pytest.mark.parametrize(
    ("middle", "weights"),
    [
        ("b = GatherElements<axis = 1>(a, i)", ", int64[2,3,8] i = {" + ",".join(str(k % 6) for k in range(48)) + "}"),
        ("b = GatherElements<axis = 2>(a, i)", ", int64[2,6,8] i = {" + ",".join(str(k % 8) for k in range(96)) + "}"),
    ],
)
def test_gather_elements_with_indices_of_its_own_pins(middle: str, weights: str) -> None:
    model = tokens(middle, weights)
    assert "w1:1" in pinned(model)


def test_gather_elements_with_indices_for_all_channels_alike() -> None:
    model = tokens(
        "i = Expand(picked, wide)\n b = GatherElements<axis = 1>(a, i)",
        ", int64[3] wide = {2,3,8}",
        ", int64[2,3,1] picked",
    )
    assert groups(model) == {"w1:1": 8}
    halve(model)


def test_gather_nd_keeps_slices() -> None:
    model = tokens("b = GatherND(a, i)", ", int64[4,2] i = {0,1,1,5,0,0,1,2}", out="K")
    assert groups(model) == {"w1:1": 8}
    halve(model)


def test_gather_nd_within_a_batch() -> None:
    model = tokens("b = GatherND<batch_dims = 1>(a, i)", ", int64[2,3,1] i = {0,4,5,1,3,2}")
    assert groups(model) == {"w1:1": 8}
    halve(model)


def test_scatter_nd_writes_slices() -> None:
    model = tokens("b = ScatterND(a, i, u)", ", int64[2,2] i = {0,1,1,5}, float[2,8] u")
    assert groups(model) == {"w1:1": 8}
    halve(model)


def test_scatter_nd_at_channels_pins() -> None:
    model = tokens("b = ScatterND(a, i, u)", ", int64[2,3] i = {0,1,3,1,5,4}, float[2] u")
    assert pinned(model)["w1:1"] == "ScatterND searches this axis"


def test_scatter_elements_with_indices_of_its_own_pins() -> None:
    """Not all in one row, which would be a part that is written anew."""
    indices = ",".join(["2", *"3" * 15])
    model = tokens("b = ScatterElements<axis = 1>(a, i, u)", f", int64[2,1,8] i = {{{indices}}}, float[2,1,8] u")
    assert "w1:1" in pinned(model)
    assert groups(model) == {}


def test_trilu_pins_the_two_last_axes() -> None:
    model = net("""
        lower (float[2,6,6] x) => (float[2,3,6,6] y)
        <float[1,4,1,1] w1, float[8,4,1,1] w2, float[3,8,1,1] w3, int64[1] one = {1}> {
            u = Unsqueeze(x, one)
            a = Mul(u, w1)
            t = Trilu<upper = 0>(a)
            c = Conv(t, w2)
            y = Conv(c, w3)
        }""")
    assert groups(model) == {"w1:1": 4, "w2:0": 8}
    halve(model)


def test_queries_per_group_are_free() -> None:
    """Grouped-query attention: two key/value groups, three queries for each, found without a hint."""
    model = net("""
        grouped (float[2,5,10] x) => (float[2,5,7] y)
        <float[10,24] q, float[10,8] k, float[10,8] v, float[24,7] o, int64[4] qs = {2,5,6,4}, int64[4] ks = {2,5,2,4},
         int64[1] two = {2}, int64[5] wide = {2,2,3,5,4}, int64[4] heads = {2,6,5,4}, int64[3] flat = {2,5,24}> {
            q0 = MatMul(x, q)
            k0 = MatMul(x, k)
            v0 = MatMul(x, v)
            q1 = Reshape(q0, qs)
            k1 = Reshape(k0, ks)
            v1 = Reshape(v0, ks)
            q2 = Transpose<perm = [0,2,1,3]>(q1)
            k2 = Transpose<perm = [0,2,1,3]>(k1)
            v2 = Transpose<perm = [0,2,1,3]>(v1)
            k3 = Unsqueeze(k2, two)
            v3 = Unsqueeze(v2, two)
            k4 = Expand(k3, wide)
            v4 = Expand(v3, wide)
            k5 = Reshape(k4, heads)
            v5 = Reshape(v4, heads)
            k6 = Transpose<perm = [0,1,3,2]>(k5)
            s = MatMul(q2, k6)
            p = Softmax<axis = -1>(s)
            h = MatMul(p, v5)
            t = Transpose<perm = [0,2,1,3]>(h)
            f = Reshape(t, flat)
            y = MatMul(f, o)
        }""")
    assert sorted(groups(model).values()) == [2, 3, 4, 4]
    halve(model, silence=True)
