"""Operators that move whole axes about or change their sizes: Transpose, DepthToSpace, SpaceToDepth, Resize, Squeeze."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, keep_exactly, members, pinned
from nets import initializer, net


def between(node: str, out: int, weights: str = "", opset: int = 17) -> object:
    """A convolution to 8 channels, something in between, and a convolution that reads `out` channels."""
    return net(
        f"""
        between (float[N,3,6,6] x) => (float[N,4,M,K] y) <float[8,3,1,1] w1, float[8] b1, float[4,{out},1,1] w2{weights}> {{
            a = Conv(x, w1, b1)
            {node}
            y = Conv(b, w2)
        }}""",
        opset=opset,
    )


def test_transpose_to_channels_last_and_back() -> None:
    model = net("""
        last (float[N,3,4,5] x) => (float[N,4,5,6] y) <float[8,3,1,1] w1, float[8] s, float[8,6] w2> {
            a = Conv(x, w1)
            t = Transpose<perm = [0,2,3,1]>(a)
            m = Mul(t, s)
            y = MatMul(m, w2)
        }""")
    assert members(model, "w1:0") == {"w1:0 producer", "s:0 carrier", "w2:0 consumer"}
    halve(model)


def test_a_transpose_that_is_a_three_cycle_of_axes() -> None:
    model = net("""
        cycle (float[N,3,4,5] x) => (float[4,2,N,5] y) <float[8,3,1,1] w1, float[2,8] w2> {
            a = Conv(x, w1)
            t = Transpose<perm = [2,1,0,3]>(a)
            u = Transpose<perm = [0,2,3,1]>(t)
            v = Transpose<perm = [0,3,1,2]>(u)
            y = Einsum<equation = "hcnw,oc->honw">(v, w2)
        }""")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_transpose_without_an_order_reverses() -> None:
    model = net("""
        reverse (float[3,5] x) => (float[2,3] y) <float[5,8] w1, float[2,8] w2> {
            a = MatMul(x, w1)
            t = Transpose(a)
            y = MatMul(w2, t)
        }""")
    assert groups(model) == {"w1:1": 8}
    halve(model)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_keeps_whole_blocks(mode: str) -> None:
    model = net(f"""
        depth (float[N,3,6,6] x) => (float[N,4,12,12] y) <float[12,3,1,1] w1, float[12] b1, float[4,3,1,1] w2> {{
            a = Conv(x, w1, b1)
            b = DepthToSpace<blocksize = 2, mode = "{mode}">(a)
            y = Conv(b, w2)
        }}""")
    assert groups(model) == {"w1:0": 3}
    result = keep_exactly(model, {"w1:0": [0, 2]})
    rows = [0, 2, 3, 5, 6, 8, 9, 11] if mode == "DCR" else [0, 1, 2, 3, 8, 9, 10, 11]
    assert np.array_equal(initializer(result.model, "w1"), initializer(model, "w1")[rows])
    halve(model)


def test_space_to_depth() -> None:
    model = between("b = SpaceToDepth<blocksize = 2>(a)", 32)
    result = keep_exactly(model, {"w1:0": [1, 6]})
    columns = [block * 8 + channel for block in range(4) for channel in (1, 6)]
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, columns])
    halve(model)


@pytest.mark.parametrize(
    "node",
    [
        'b = Resize<mode = "nearest">(a, , scales)',
        'b = Resize<mode = "linear">(a, , , sizes)',
        'b = Resize<mode = "nearest", axes = [3, 2]>(a, , , space)',
        'b = Resize<mode = "nearest", axes = [-3, 2, 3]>(a, , , three)',
    ],
)
def test_resize(node: str) -> None:
    constants = "float[4] scales = {1,1,2,2}, int64[4] sizes = {2,8,9,7}, int64[2] space = {9,12}, int64[3] three = {8,9,7}"
    model = net(
        f"""
        resize (float[2,3,6,6] x) => (float[2,4,H,W] y) <float[8,3,1,1] w1, float[4,8,1,1] w2, {constants}> {{
            a = Conv(x, w1)
            {node}
            y = Conv(b, w2)
        }}""",
        opset=18,
    )
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_resize_of_the_channels_pins_them() -> None:
    model = between('b = Resize<mode = "nearest">(a, , scales)', 16, ", float[4] scales = {1,2,1,1}")
    assert "Resize interpolates" in pinned(model)["w1:0"]


def test_a_large_table_of_positions_that_is_resized() -> None:
    model = net("""
        table (float[2,3,6,6] x) => (float[2,4,6,6] y)
        <float[8,3,1,1] w1, float[1,8,160,160] places, int64[4] sizes = {1,8,6,6}, float[4,8,1,1] w2> {
            a = Conv(x, w1)
            p = Resize<mode = "cubic">(places, , , sizes)
            s = Add(a, p)
            y = Conv(s, w2)
        }""")
    assert groups(model) == {"w1:0": 8}
    assert "Resize interpolates" in pinned(model)["places:3"]
    halve(model)


def test_squeeze_and_unsqueeze() -> None:
    model = net("""
        squeeze (float[N,3,6,6] x) => (float[N,4] y)
        <float[8,3,1,1] w1, int64[2] space = {-1,2}, int64[1] two = {2}, int64[1] one = {1}, float[8,4] w2> {
            a = Conv(x, w1)
            p = GlobalMaxPool(a)
            s = Squeeze(p, space)
            u = Unsqueeze(s, two)
            v = Squeeze(u, two)
            y = MatMul(v, w2)
        }""")
    assert groups(model) == {"w1:0": 8}
    halve(model)
