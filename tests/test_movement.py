"""Operators that move channels about: Concat, Split, Slice, Gather, Pad, Tile, and their inverses."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, keep_exactly, members, pinned, shapes
from nets import initializer, net, operators


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


# ---- Concat and Split ---------------------------------------------------------------------------


def test_dense_concat_reads_each_part_where_it_stands() -> None:
    model = net("""
        dense (float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[5,3,1,1] w1, float[6,8,1,1] w2, float[4,14,1,1] w3, float[14] s, float[14] o, float[14] m, float[14] v> {
            a = Conv(x, w1)
            c1 = Concat<axis = 1>(x, a)
            b = Conv(c1, w2)
            c2 = Concat<axis = -3>(c1, b)
            n = BatchNormalization(c2, s, o, m, v)
            y = Conv(n, w3)
        }""")
    assert groups(model) == {"w1:0": 5, "w2:0": 6}
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer", "w3:1 consumer", *(f"{k}:0 carrier" for k in "somv")}
    result = keep_exactly(model, {"w1:0": [0, 4], "w2:0": [1, 2, 5]})
    columns = [0, 1, 2, 3, 7, 9, 10, 13]
    assert np.array_equal(initializer(result.model, "w3"), initializer(model, "w3")[:, columns])
    assert np.array_equal(initializer(result.model, "m"), initializer(model, "m")[columns])
    halve(model)


def test_concat_of_a_value_with_itself_and_a_constant() -> None:
    model = net("""
        twice (float[2,3,6,6] x) => (float[2,4,6,6] y) <float[5,3,1,1] w1, float[2,2,6,6] c, float[4,12,1,1] w2> {
            a = Conv(x, w1)
            b = Concat<axis = 1>(a, c, a)
            y = Conv(b, w2)
        }""")
    assert groups(model)["w1:0"] == 5
    result = keep_exactly(model, {"w1:0": [1, 2, 4]})
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, [1, 2, 4, 5, 6, 8, 9, 11]])
    halve(model)


def test_concat_over_space_unifies_the_channels() -> None:
    model = net("""
        space (float[N,3,6,6] x) => (float[N,4,12,6] y) <float[8,3,1,1] w1, float[8,3,1,1] w2, float[4,8,1,1] w3> {
            a = Conv(x, w1)
            b = Conv(x, w2)
            c = Concat<axis = 2>(a, b)
            y = Conv(c, w3)
        }""")
    assert members(model, "w1:0") == {"w1:0 producer", "w2:0 producer", "w3:1 consumer"}
    halve(model)


@pytest.mark.parametrize(
    ("split", "opset", "parts"),
    [
        ("p, q = Split<axis = 1>(a)", 17, (4, 4)),
        ("p, q = Split<axis = 1>(a, sizes)", 17, (2, 6)),
        ("p, q = Split<axis = -3, num_outputs = 2>(a)", 18, (4, 4)),
        ("p, q = Split<axis = 1, split = [5, 3]>(a)", 11, (5, 3)),
    ],
)
def test_split(split: str, opset: int, parts: tuple[int, int]) -> None:
    model = net(
        f"""
        split (float[N,3,6,6] x) => (float[N,2,6,6] y, float[N,2,6,6] z)
        <float[8,3,1,1] w1, int64[2] sizes = {{2, 6}}, float[2,{parts[0]},1,1] w2, float[2,{parts[1]},1,1] w3> {{
            a = Conv(x, w1)
            {split}
            y = Conv(p, w2)
            z = Conv(q, w3)
        }}""",
        opset=opset,
    )
    assert groups(model) == {"w1:0": 8}
    result = keep_exactly(model, {"w1:0": [0, 5, 6, 7]})
    assert shapes(result.model)["w2"][1] == 1 + (parts[0] > 5) * (parts[0] - 5)
    for ratio in (0.8, 0.5, 0.3):
        halve(model, channels=ratio)


def test_uneven_split_into_a_number_of_outputs() -> None:
    """7 channels in three parts: 3, 3 and 1."""
    model = net(
        """
        uneven (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[7,3,1,1] w1, float[2,3,1,1] w2, float[2,3,1,1] w3, float[2,1,1,1] w4> {
            a = Conv(x, w1)
            p, q, r = Split<axis = 1, num_outputs = 3>(a)
            b = Conv(p, w2)
            c = Conv(q, w3)
            d = Conv(r, w4)
            y = Sum(b, c, d)
        }""",
        opset=18,
    )
    assert groups(model) == {"w1:0": 6}, "the only channel of the last part cannot go"
    halve(model)
    result = keep_exactly(model, {"w1:0": [2, 5]})
    assert np.array_equal(initializer(result.model, "w1"), initializer(model, "w1")[[2, 5, 6]])
    assert [shapes(result.model)[name][1] for name in ("w2", "w3", "w4")] == [1, 1, 1]


def test_split_halves_that_meet_again_are_one_group() -> None:
    """A gated unit: one half times the sigmoid of the other, so that channels go in pairs."""
    model = net("""
        gated (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[12,3,1,1] w1, float[12] b1, float[2,6,1,1] w2> {
            a = Conv(x, w1, b1)
            p, q = Split<axis = 1>(a)
            g = Sigmoid(q)
            m = Mul(p, g)
            y = Conv(m, w2)
        }""")
    assert groups(model) == {"w1:0": 6}
    result = keep_exactly(model, {"w1:0": [0, 1, 5]})
    assert np.array_equal(initializer(result.model, "w1"), initializer(model, "w1")[[0, 1, 5, 6, 7, 11]])
    halve(model)


def test_an_output_that_nobody_reads() -> None:
    model = between("b, unused = Split<axis = 1>(a, sizes)", 6, ", int64[2] sizes = {6, 2}")
    halve(model)


# ---- Slice and Gather ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts", "ends", "steps", "taken"),
    [
        (0, 5, 1, [0, 1, 2, 3, 4]),
        (2, 9223372036854775807, 1, [2, 3, 4, 5, 6, 7]),
        (-3, 8, 1, [5, 6, 7]),
        (1, 8, 2, [1, 3, 5, 7]),
        (0, -1, 3, [0, 3, 6]),
        (7, 1, -1, [7, 6, 5, 4, 3, 2]),
        (-1, -9223372036854775807, -1, [7, 6, 5, 4, 3, 2, 1, 0]),
        (6, -9, -2, [6, 4, 2, 0]),
        (100, -100, -3, [7, 4, 1]),
    ],
)
def test_slice(starts: int, ends: int, steps: int, taken: list[int]) -> None:
    constants = f", int64[1] s = {{{starts}}}, int64[1] e = {{{ends}}}, int64[1] at = {{1}}, int64[1] by = {{{steps}}}"
    model = between("b = Slice(a, s, e, at, by)", len(taken), constants)
    assert groups(model) == {"w1:0": 8}
    for keep in ([0, 3, 4, 7], [1, 2, 5, 6], [0, 1, 2, 3, 4, 5, 6]):
        result = keep_exactly(model, {"w1:0": keep})
        columns = [k for k, channel in enumerate(taken) if channel in keep]
        assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, columns])


def test_slice_of_channels_and_space_at_once() -> None:
    model = between("b = Slice(a, s, e, at)", 4, ", int64[2] s = {1, 2}, int64[2] e = {-1, 6}, int64[2] at = {3, 1}")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_one_constant_as_start_and_step() -> None:
    """Exporters merge equal constants: 2 is where the slice starts, how far it steps and how many it leaves out."""
    model = between("b = Slice(a, two, end, at, two)", 3, ", int64[1] two = {2}, int64[1] end = {8}, int64[1] at = {1}")
    assert groups(model) == {"w1:0": 8}
    for keep in ([0, 2, 3, 4, 5, 6], [1, 2, 4, 7], [0, 1, 3, 6]):
        result = keep_exactly(model, {"w1:0": keep})
        columns = [k for k, channel in enumerate((2, 4, 6)) if channel in keep]
        assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, columns])


def test_the_two_slices_of_a_c2f_block() -> None:
    """YOLO: two halves by Slice, both concatenated again with what was computed from the second."""
    model = net("""
        c2f (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,1,1] w1, float[4,4,1,1] w2, float[2,12,1,1] w3,
         int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] at = {1}> {
            a = Conv(x, w1)
            p = Slice(a, zero, four, at)
            q = Slice(a, four, eight, at)
            r = Conv(q, w2)
            s = Add(q, r)
            c = Concat<axis = 1>(p, q, s)
            y = Conv(c, w3)
        }""")
    for ratio in (0.8, 0.6, 0.4):
        halve(model, channels=ratio)


BOUNDS = """
    bounds (float[N,3,6,6] x, float[H] z, float[W] w) => (float[N,4,K,L] y)
    <float[8,3,1,1] w1, float[4,8,1,1] w2, int64[1] at = {%d}, int64[1] zero = {0}, int64[2] both = {2, 3}, int64[2] none> {
        a = Conv(x, w1)
        end = Shape(z)
        ends = Concat<axis = 0>(end, end)
        further = Shape(w)
        sizes = Concat<axis = 0>(end, further)
        %s
        y = Conv(b, w2)
    }"""


@pytest.mark.parametrize(
    "rows",
    [
        "b = Slice(a, zero, end, at)",
        "b = Slice(a, none, ends, both)",
        "b = Slice(a, zero, end, at, end)",
        "b, rest = Split<axis = 2>(a, sizes)",
    ],
)
def test_bounds_from_the_data_pin_the_axes_that_are_cut_alone(rows: str) -> None:
    model = net(BOUNDS % (2, rows))
    assert groups(model) == {"w1:0": 8}
    if "Split" not in rows:  # sizes of inputs that are made up do not add up to that of the axis
        halve(model)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("b = Slice(a, zero, end, at)", "the bounds of Slice are computed at run time"),
        ("b = Slice(a, zero, zero, end)", "the axes of Slice are computed at run time"),
        ("b, rest = Split<axis = 1>(a, sizes)", "the sizes of Split are computed at run time"),
    ],
)
def test_bounds_from_the_data_pin_channels(rows: str, reason: str) -> None:
    model = net(BOUNDS % (1, rows))
    assert groups(model) == {}
    assert pinned(model)["w1:0"] == reason


def test_a_slice_of_two_axes_that_are_no_ranges_any_more() -> None:
    model = net("""
        reverse (float[1,4,6] x) => (float[1,3,5] y)
        <float[8,4] w1, float[6,10] w2, float[3,8] w3, float[10,5] w4, int64[2] s = {-1, -1}, int64[2] at = {1, 2},
         int64[2] e = {-9223372036854775807, -9223372036854775807}, int64[2] back = {-1, -1}> {
            p = MatMul(w1, x)
            q = MatMul(p, w2)
            f = Slice(q, s, e, at, back)
            r = MatMul(w3, f)
            y = MatMul(r, w4)
        }""")
    assert sorted(groups(model).values()) == [8, 10]
    assert operators(halve(model).model).count("Gather") == 2


def test_a_slice_that_is_no_range_any_more_becomes_a_gather() -> None:
    """Every second of 8 channels; without channel 1 the even ones stand at 0, 1, 3, 5 of what is left."""
    model = net("""
        stride (float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] z)
        <float[8,3,1,1] w1, float[4,4,1,1] w2, float[4,8,1,1] w3,
         int64[1] s = {0}, int64[1] e = {8}, int64[1] at = {1}, int64[1] by = {2}> {
            a = Conv(x, w1)
            b = Slice(a, s, e, at, by)
            y = Conv(b, w2)
            z = Conv(a, w3)
        }""")
    assert groups(model) == {"w1:0": 8}
    result = keep_exactly(model, {"w1:0": [0, 2, 3, 4, 5, 6, 7]})
    assert operators(result.model) == ["Conv", "Slice", "Gather", "Conv", "Conv"]
    result = keep_exactly(model, {"w1:0": [0, 2, 4, 7]})
    assert operators(result.model) == ["Conv", "Slice", "Conv", "Conv"], "0, 2 and 4 stand side by side"


@pytest.mark.parametrize("indices", ["2,0,1,3,5,6,7,4", "1,1,0,7", "-1,0,-8,3", "5"])
def test_gather_of_constant_indices(indices: str) -> None:
    """A permutation with 3-cycles, repetitions, negative indices, a single one."""
    wanted = [int(k) % 8 for k in indices.split(",")]
    model = between("b = Gather<axis = 1>(a, at)", len(wanted), f", int64[{len(wanted)}] at = {{{indices}}}")
    keep = sorted({wanted[0], 3, 7, wanted[-1]})
    if groups(model).get("w1:0") == 8:
        result = keep_exactly(model, {"w1:0": keep})
        columns = [k for k, index in enumerate(wanted) if index in keep]
        assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, columns])
    halve(model)


def test_gather_of_one_channel_drops_the_axis() -> None:
    model = between("one = Gather<axis = 1>(a, at)\n b = Unsqueeze(one, axis)", 1, ", int64 at = {5}, int64[1] axis = {1}")
    after = shapes(halve(model, channels=0.3).model)
    assert after["w1"][0] < 8
    assert after["w2"] == [4, 1, 1, 1]


def test_gather_with_indices_from_the_data_pins() -> None:
    model = net("""
        data (float[N,3,6,6] x, int64[2] at) => (float[N,2,6,6] y) <float[8,3,1,1] w1> {
            a = Conv(x, w1)
            y = Gather<axis = 1>(a, at)
        }""")
    assert "Gather selects from this axis" in pinned(model)["w1:0"]


# ---- Pad, Tile, Expand --------------------------------------------------------------------------


def test_zero_padding_of_the_channels_of_a_shortcut() -> None:
    """CIFAR ResNets: 4 channels padded to 8 with 2 on either side, added to a block of 8."""
    model = net("""
        shortcut (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[4,3,1,1] w1, float[8,4,1,1] w2, float[2,8,1,1] w3, int64[8] pads = {0,2,0,0,0,2,0,0}> {
            a = Conv(x, w1)
            p = Pad(a, pads)
            b = Conv(a, w2)
            s = Add(p, b)
            y = Conv(s, w3)
        }""")
    assert sum(groups(model).values()) == 8, "4 channels with the block's, 4 of the block alone"
    for ratio in (0.8, 0.5, 0.3):
        halve(model, channels=ratio)


@pytest.mark.parametrize(("pads", "out"), [("0,-2,0,0,0,-1,0,0", 5), ("0,3,1,0,0,-2,0,1", 9), ("0,-3,0,0,0,2,0,0", 7)])
def test_negative_padding_cuts(pads: str, out: int) -> None:
    model = between("b = Pad(a, pads)", out, f", int64[8] pads = {{{pads}}}")
    for ratio in (0.8, 0.5):
        halve(model, channels=ratio)


def test_padding_of_named_axes() -> None:
    constants = ", int64[4] pads = {1,1,0,1}, float none = {0}, int64[2] at = {2,1}"
    halve(between("b = Pad(a, pads, none, at)", 10, constants, opset=18))


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_other_padding_of_channels_pins(mode: str) -> None:
    model = between(f'b = Pad<mode = "{mode}">(a, pads)', 10, ", int64[8] pads = {0,1,0,0,0,1,0,0}")
    assert groups(model) == {}
    assert "Pad repeats indices" in pinned(model)["w1:0"]


def test_other_padding_of_space_leaves_the_channels_free() -> None:
    halve(between('b = Pad<mode = "reflect">(a, pads)', 8, ", int64[8] pads = {0,0,1,2,0,0,1,0}"))


def test_padding_with_another_value_than_zero() -> None:
    halve(between("b = Pad(a, pads, value)", 10, ", int64[8] pads = {0,1,0,0,0,1,0,0}, float value = {0.7}"))


def test_tile_repeats_the_channels() -> None:
    model = between("b = Tile(a, repeats)", 16, ", int64[4] repeats = {1,2,1,1}")
    assert groups(model) == {"w1:0": 8}
    result = keep_exactly(model, {"w1:0": [0, 3, 4]})
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, [0, 3, 4, 8, 11, 12]])
    halve(model)


def test_expand_carries_the_channels() -> None:
    model = net("""
        expand (float[2,3,6,6] x) => (float[2,4,5,7] y)
        <float[8,3,1,1] w1, float[4,8,1,1] w2, int64[4] shape = {1,8,5,7}, int64[3] less = {8,1,1}> {
            a = Conv(x, w1)
            p = GlobalAveragePool(a)
            e = Expand(p, shape)
            f = Expand(e, less)
            y = Conv(f, w2)
        }""")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_repeated_key_and_value_heads() -> None:
    """Grouped-query attention: Unsqueeze, Expand, Reshape repeat each head for the queries that share it."""
    model = net("""
        repeat (float[2,5,6] x) => (float[2,5,3] y)
        <float[6,8] w1, int64[4] split = {0,5,2,4}, int64[1] three = {3}, int64[5] wide = {2,5,2,3,4},
         int64[3] join = {0,5,24}, float[24,3] w2> {
            a = MatMul(x, w1)
            h = Reshape(a, split)
            u = Unsqueeze(h, three)
            e = Expand(u, wide)
            j = Reshape(e, join)
            y = MatMul(j, w2)
        }""")
    assert sorted(groups(model).values())[-1] in (4, 8)
    for ratio in (0.8, 0.5):
        halve(model, channels=ratio)
