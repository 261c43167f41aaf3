"""Reshape to a target that is joined of sizes read at run time and of constants, as exports with dynamic sides have it."""

from __future__ import annotations

import pytest
from halving import groups, halve, keep_exactly, pinned, shapes
from nets import net, operators
from onnx import ModelProto, TensorProto, helper

import graphprune

SIZES = "s = Shape(a)  n = Gather(s, i0)  c = Gather(s, i1)  h = Gather(s, i2)  w = Gather(s, i3)"
INDICES = "int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i3 = {3}, int64[1] two = {2}, int64[1] four = {4}"


def grid(target: str, more: str = "", perm: str = "0,1,2,3,4", back: str = "n, minus, h, w") -> ModelProto:
    """Eight channels as two rows of four, with a gain for each place of the grid, and as eight again."""
    return net(f"""
        grid (float[N,3,H,W] x) => (float[N,2,P,Q] y)
        <float[8,3,3,3] w1, {INDICES}, int64[1] minus = {{-1}}, float[2,4,1,1] gain, float[2,8,1,1] w2> {{
            a = Conv(x, w1)
            {SIZES}
            {more}
            t = Concat<axis = 0>({target})
            r = Reshape(a, t)
            m = Mul(r, gain)
            p = Transpose<perm = [{perm}]>(m)
            b = Concat<axis = 0>({back})
            f = Reshape(p, b)
            y = Conv(f, w2)
        }}""")


@pytest.mark.parametrize(
    ("target", "more"),
    [
        ("n, two, four, h, w", ""),
        ("n, two, q, h, w", "q = Div(c, two)"),
        ("n, grid, h, w", "q = Div(c, two)  grid = Concat<axis = 0>(two, q)"),
    ],
)
def test_channels_are_split_where_height_and_width_are_dynamic(target: str, more: str) -> None:
    """Parts that are computed from the number of channels, as torch's views are, are constants."""
    model = grid(target, more)
    assert sorted(groups(model).values()) == [2, 4]
    assert "Div" not in operators(graphprune.load(model).model)
    result = halve(model)
    assert shapes(result.model)["w2"] == [2, 2, 1, 1]


def test_a_shuffle_with_dynamic_height_and_width_is_one_gather() -> None:
    model = net(f"""
        shuffle (float[N,3,H,W] x) => (float[N,2,P,Q] y)
        <float[8,3,3,3] w1, {INDICES}, float[2,8,1,1] w2> {{
            a = Conv(x, w1)
            {SIZES}
            q = Div(c, two)
            t = Concat<axis = 0>(n, two, q, h, w)
            r = Reshape(a, t)
            p = Transpose<perm = [0,2,1,3,4]>(r)
            b = Concat<axis = 0>(n, c, h, w)
            f = Reshape(p, b)
            y = Conv(f, w2)
        }}""")
    assert operators(graphprune.load(model).model) == ["Conv", "Gather", "Conv"]
    assert groups(model) == {"w1:0": 8}
    keep_exactly(model, {"w1:0": [0, 3, 4, 5, 6]})


def test_height_and_width_that_change_places_are_no_shuffle() -> None:
    """The sizes are equal in number only: [N, 8, H, W] back from [N, 4, 2, H, W] as [N, 8, W, H]."""
    model = grid("n, two, four, h, w", perm="0,2,1,3,4", back="n, minus, w, h")
    assert "Gather" not in operators(graphprune.load(model).model)[-2:]
    assert operators(graphprune.load(model).model).count("Reshape") == 2
    halve(model)


def test_a_target_of_two_readers_gets_a_copy_for_each() -> None:
    model = net(f"""
        two (float[N,3,H,W] x) => (float[N,2,P,Q] y)
        <float[8,3,1,1] w1, float[8,3,1,1] w2, {INDICES}, int64[1] minus = {{-1}}, float[2,4,1,1] gain, float[2,16,1,1] w3> {{
            a = Conv(x, w1)
            e = Conv(x, w2)
            {SIZES}
            q = Div(c, two)
            t = Concat<axis = 0>(n, two, q, h, w)
            r1 = Reshape(a, t)
            r2 = Reshape(e, t)
            m = Mul(r1, gain)
            b = Concat<axis = 0>(n, minus, h, w)
            f1 = Reshape(m, b)
            f2 = Reshape(r2, b)
            j = Concat<axis = 1>(f1, f2)
            y = Conv(j, w3)
        }}""")
    graph = graphprune.load(model)
    targets = [node.input[1] for node in graph.nodes if node.op_type == "Reshape"]
    assert len({*targets[:2]}) == 2
    result = keep_exactly(model, {"w1:0/2": [0, 2, 3]})
    assert shapes(result.model)["gain"] == [2, 3, 1, 1]
    halve(model)


def test_a_number_that_is_read_at_run_time_pins() -> None:
    """How many rows there are is asked from another input: four in this network, but nothing says so."""
    model = net(f"""
        told (float[N,3,H,W] x, int64[1] q) => (float[N,2,P,Q] y)
        <float[8,3,1,1] w1, {INDICES}, int64[1] minus = {{-1}}, float[2,4,1,1] gain, float[2,8,1,1] w2> {{
            a = Conv(x, w1)
            {SIZES}
            t = Concat<axis = 0>(n, two, q, h, w)
            r = Reshape(a, t)
            m = Mul(r, gain)
            b = Concat<axis = 0>(n, minus, h, w)
            f = Reshape(m, b)
            y = Conv(f, w2)
        }}""")
    assert not groups(model)
    assert "run time" in pinned(model)["w1:0"]


@pytest.mark.parametrize("target", ["n, eight, h, w", "n, c, h, w", "eight, h, w"])
def test_expand_leaves_channels_as_they_are_where_the_sides_are_dynamic(target: str) -> None:
    """A gate for each channel, as large as the image."""
    model = net(f"""
        gate (float[N,3,H,W] x) => (float[N,2,P,Q] y)
        <float[8,3,3,3] w1, float[8,3,1,1] w2, {INDICES}, int64[1] eight = {{8}}, float[2,8,1,1] w3> {{
            a = Conv(x, w1)
            s = Shape(a)  n = Gather(s, i0)  c = Gather(s, i1)  h = Gather(s, i2)  w = Gather(s, i3)
            p = GlobalAveragePool(x)
            g = Conv(p, w2)
            t = Concat<axis = 0>({target})
            e = Expand(g, t)
            m = Mul(a, e)
            y = Conv(m, w3)
        }}""")
    assert groups(model) == {"w1:0": 8}
    assert shapes(halve(model).model)["w2"] == [4, 3, 1, 1]


def test_a_token_for_each_sample_of_a_dynamic_batch() -> None:
    """torch's `token.expand(b, -1, -1)`: Where(target == -1, 1, target)."""
    model = net("""
        token (float[N,5,3] x) => (float[N,6,2] y)
        <float[3,8] w1, float[1,1,8] token, int64[1] i0 = {0}, int64[2] open = {-1,-1}, int64[3] one = {1,1,1},
         int64[3] minus = {-1,-1,-1}, float[8,2] w2> {
            a = MatMul(x, w1)
            s = Shape(x)
            n = Gather(s, i0)
            t = Concat<axis = 0>(n, open)
            q = Equal(t, minus)
            c = Where(q, one, t)
            e = Expand(token, c)
            j = Concat<axis = 1>(e, a)
            y = MatMul(j, w2)
        }""")
    assert groups(model) == {"w1:1": 8}
    assert shapes(halve(model).model)["token"] == [1, 1, 4]


def test_a_choice_of_sizes_that_nobody_can_tell_pins() -> None:
    """Where(target == 5, 1, target): a batch may be five."""
    model = net("""
        token (float[N,5,3] x) => (float[N,6,2] y)
        <float[3,8] w1, float[1,1,8] token, int64[1] i0 = {0}, int64[2] rest = {1,8}, int64[1] one = {1},
         int64[1] five = {5}, float[8,2] w2> {
            a = MatMul(x, w1)
            s = Shape(x)
            n = Gather(s, i0)
            t = Concat<axis = 0>(n, rest)
            q = Equal(t, five)
            c = Where(q, one, t)
            e = Expand(token, c)
            j = Concat<axis = 1>(e, a)
            y = MatMul(j, w2)
        }""")
    assert not groups(model)
    assert "Expand" in pinned(model)["token:2"]


def test_a_shape_that_is_handed_on_very_often_is_followed() -> None:
    chain = "  ".join(f"s{k + 1} = Cast<to = 7>(s{k})" for k in range(2000))
    model = net(f"""
        chain (float[N,3,H,W] x) => (float[N,2,P,Q] y) <float[8,3,1,1] w1, float[2,8,1,1] w2> {{
            a = Conv(x, w1)
            s0 = Shape(a)
            {chain}
            b = Reshape(a, s2000)
            y = Conv(b, w2)
        }}""")
    assert groups(model) == {"w1:0": 8}


def test_a_number_that_callers_may_replace_pins() -> None:
    """`four` is an initializer that is listed among the inputs."""
    model = grid("n, two, four, h, w")
    model.graph.input.append(helper.make_tensor_value_info("four", TensorProto.INT64, [1]))
    assert not groups(model)
    assert "run time" in pinned(model)["w1:0"]
