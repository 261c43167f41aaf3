"""Operators that read from positions given by data: GridSample, DeformConv, Col2Im, ReverseSequence, regions."""

from __future__ import annotations

import pytest
from halving import groups, halve, pinned
from nets import net


def test_grid_sample_carries_channels() -> None:
    """Of features, and of the image itself, whose channels are given."""
    model = net(
        """warped (float[2,3,8,8] x, float[2,5,6,2] grid, float[2,7,7,2] first) => (float[2,4,5,6] y)
        <float[8,3,3,3] w1, float[4,8,1,1] w2> {
            i = GridSample(x, first)
            a = Conv<pads = [1,1,1,1]>(i, w1)
            s = GridSample<align_corners = 1>(a, grid)
            y = Conv(s, w2)
        }""",
        opset=20,
    )
    assert groups(model) == {"w1:0": 8}
    halve(model)


def deformable(attributes: str, filters: str) -> str:
    return f"""deformable (float[1,3,6,6] x) => (float[1,4,6,6] y)
        <float[8,3,1,1] w1, float[36,3,3,3] wo, float[18,3,3,3] wm, float[{filters},3,3] w2, float[8] b2, float[4,8,1,1] w3> {{
            a = Conv(x, w1)
            o = Conv<pads = [1,1,1,1]>(x, wo)
            l = Conv<pads = [1,1,1,1]>(x, wm)
            m = Sigmoid(l)
            c = DeformConv<kernel_shape = [3,3], pads = [1,1,1,1], {attributes}>(a, w2, o, b2, m)
            y = Conv(c, w3)
        }}"""


def test_deformable_convolutions_with_groups_for_offsets() -> None:
    """Half of the channels share offsets: as many leave of one half as of the other, at the same places."""
    model = net(deformable("offset_group = 2", "8,8"), opset=19)
    assert groups(model) == {"w1:0": 4, "w2:0": 8}
    halve(model)


def test_deformable_convolutions_with_groups_of_both_kinds() -> None:
    model = net(deformable("offset_group = 2, group = 2", "8,4"), opset=19)
    assert "this form of DeformConv has no rule" in pinned(model)["w1:0"]


@pytest.mark.parametrize(("group", "filters", "found"), [(1, "8,8", {"w1:0": 8, "w2:0": 8}), (8, "8,1", {"w1:0": 8})])
def test_deformable_convolutions(group: int, filters: str, found: dict[str, int]) -> None:
    text = (
        deformable(f"group = {group}", filters).replace("[36,3,3,3] wo", "[18,3,3,3] wo").replace("[18,3,3,3] wm", "[9,3,3,3] wm")
    )
    model = net(text, opset=19)
    assert groups(model) == found
    halve(model)


def test_blocks_that_are_added_up_are_needed_whole() -> None:
    model = net(
        """folded (float[2,3,49] x) => (float[2,4,8,8] y)
        <float[24,3,1] w1, int64[2] image = {8,8}, int64[2] block = {2,2}, float[4,6,1,1] w2> {
            a = Conv(x, w1)
            f = Col2Im(a, image, block)
            y = Conv(f, w2)
        }""",
        opset=18,
    )
    assert groups(model) == {"w1:0": 6}
    halve(model)


def test_sequences_that_are_reversed() -> None:
    model = net("""
        backwards (float[7,2,3] x, int64[2] lengths) => (float[7,2,4] y) <float[3,8] w1, float[8,4] w2> {
            a = MatMul(x, w1)
            r = ReverseSequence<batch_axis = 1, time_axis = 0>(a, lengths)
            y = MatMul(r, w2)
        }""")
    assert groups(model) == {"w1:1": 8}
    halve(model)


def test_regions_carry_channels() -> None:
    model = net(
        """regions (float[2,3,8,8] x) => (float[2,4,3,3] y)
        <float[8,3,3,3] w1, float[2,4] boxes = {0,0,5,5,1,2,7,6}, int64[2] images = {0,1}, float[4,8,1,1] w2> {
            a = Conv<pads = [1,1,1,1]>(x, w1)
            r = RoiAlign<output_height = 3, output_width = 3>(a, boxes, images)
            y = Conv(r, w2)
        }""",
        opset=16,
    )
    assert groups(model) == {"w1:0": 8}
    halve(model)
