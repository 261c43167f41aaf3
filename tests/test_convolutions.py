"""Convolutions of every kind: dense, grouped, depthwise, transposed."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, keep_exactly, members, shapes
from nets import attribute, initializer, net, plain, residual


def test_dense() -> None:
    assert groups(plain()) == {"w1:0": 8, "w2:0": 12}
    assert members(plain(), "w1:0") == {"w1:0 producer", "b1:0 carrier", "w2:1 consumer"}
    assert members(plain(), "w2:0") == {"w2:0 producer", "b2:0 carrier", "w3:1 consumer"}
    result = halve(plain())
    after = shapes(result.model)
    assert (after["w1"], after["w2"], after["w3"]) == ([4, 3, 3, 3], [6, 4, 3, 3], [5, 6])


def test_the_kept_channels_are_those_of_the_plan() -> None:
    """Channels 6, 0 and 3 in ascending order, and their rows and columns of the original weights."""
    model = plain()
    result = keep_exactly(model, {"w1:0": [0, 3, 6]})
    assert np.array_equal(initializer(result.model, "w1"), initializer(model, "w1")[[0, 3, 6]])
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, [0, 3, 6]])
    assert np.array_equal(initializer(result.model, "b1"), initializer(model, "b1")[[0, 3, 6]])


def test_residual_couples_stem_and_block() -> None:
    assert groups(residual()) == {"stem:0": 8, "inner:0": 6}
    assert members(residual(), "stem:0") == {
        *("stem:0 producer", "outer:0 producer", "inner:1 consumer", "head:1 consumer"),
        *(f"{name}{k}:0 carrier" for name in "somv" for k in (1, 3)),
    }
    halve(residual())


def grouped(group: int, out: int, bias: str = "") -> object:
    return net(f"""
        grouped (float[N,3,6,6] x) => (float[N,4,2,2] y)
        <float[8,3,3,3] w1, float[{out},{8 // group},3,3] w2, float[{out}] b2, float[4,{out},1,1] w3> {{
            a = Conv(x, w1)
            r = Relu(a)
            b = Conv<group = {group}>(r, w2{bias})
            s = Sigmoid(b)
            y = Conv(s, w3)
        }}""")


def test_grouped_loses_whole_groups_and_channels_within_groups() -> None:
    """8 = 2 groups of 4 in, 6 = 2 groups of 3 out: the 2 groups, the 4 and the 3 are three free dimensions."""
    model = grouped(2, 6, ", b2")
    assert sorted(groups(model).values()) == [2, 3, 4]
    for ratio in (0.8, 0.5, 0.34):
        halve(model, channels=ratio)


def test_grouped_without_its_second_group() -> None:
    model = grouped(2, 6)
    two = next(name for name, size in groups(model).items() if size == 2)
    result = keep_exactly(model, {two: [1]})
    assert attribute(result.model, "Conv", "group", 1) == 1
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[3:])
    assert np.array_equal(initializer(result.model, "w1"), initializer(model, "w1")[4:])


def test_grouped_with_the_middle_of_three_groups_gone() -> None:
    model = net("""
        three (float[N,3,6,6] x) => (float[N,4,4,4] y) <float[9,3,3,3] w1, float[6,3,1,1] w2, float[4,6,1,1] w3> {
            a = Conv(x, w1)
            b = Conv<group = 3>(a, w2)
            y = Conv(b, w3)
        }""")
    assert sorted(groups(model).values()) == [2, 3, 3]
    both = [name for name, size in groups(model).items() if size == 3]
    kept = [keep_exactly(model, {name: [0, 2]}).model for name in both]
    assert sorted(attribute(each, "Conv", "group", 1) for each in kept) == [2, 3]
    two = next(each for each in kept if attribute(each, "Conv", "group", 1) == 2)
    assert np.array_equal(initializer(two, "w2"), initializer(model, "w2")[[0, 1, 4, 5]])
    assert np.array_equal(initializer(two, "w1"), initializer(model, "w1")[[0, 1, 2, 6, 7, 8]])


def test_depthwise_follows_its_input() -> None:
    model = grouped(8, 8, ", b2")
    assert groups(model) == {"w1:0": 8}
    assert members(model, "w1:0") == {"w1:0 producer", "w2:0 carrier", "b2:0 carrier", "w3:1 consumer"}
    result = halve(model)
    assert attribute(result.model, "Conv", "group", 1) == 4
    assert shapes(result.model)["w2"] == [4, 1, 3, 3]


def test_depthwise_with_a_multiplier() -> None:
    """Each of 8 channels makes 2: the 8 leave with both of theirs, and the multiplier is a dimension of its own."""
    model = grouped(8, 16, ", b2")
    result = keep_exactly(model, {"w1:0": [1, 2, 7]})
    assert attribute(result.model, "Conv", "group", 1) == 3
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[[2, 3, 4, 5, 14, 15]])
    assert np.array_equal(initializer(result.model, "w3"), initializer(model, "w3")[:, [2, 3, 4, 5, 14, 15]])
    halve(model)


def test_groups_and_outputs_of_one_are_no_depthwise_convolution() -> None:
    """group = out = 1 reads all channels: a projection to one channel."""
    model = net("""
        one (float[N,3,6,6] x) => (float[N,4,4,4] y) <float[8,3,3,3] w1, float[1,8,1,1] w2, float[4,1,1,1] w3> {
            a = Conv(x, w1)
            b = Conv<group = 1>(a, w2)
            y = Conv(b, w3)
        }""")
    assert groups(model) == {"w1:0": 8}
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer"}
    assert shapes(halve(model).model)["w2"] == [1, 4, 1, 1]


def transposed(group: int, out: int) -> object:
    return net(f"""
        transposed (float[N,3,5,5] x) => (float[N,4,6,6] y)
        <float[8,3,3,3] w1, float[8,{out},2,2] w2, float[{out * group}] b2, float[4,{out * group},1,1] w3> {{
            a = Conv(x, w1)
            r = Relu(a)
            b = ConvTranspose<group = {group}, strides = [2,2]>(r, w2, b2)
            s = Sigmoid(b)
            y = Conv(s, w3)
        }}""")


def test_transposed() -> None:
    model = transposed(1, 6)
    assert groups(model) == {"w1:0": 8, "w2:1": 6}
    assert members(model, "w1:0") == {"w1:0 producer", "w2:0 consumer"}
    assert members(model, "w2:1") == {"w2:1 producer", "b2:0 carrier", "w3:1 consumer"}
    assert shapes(halve(model).model)["w2"] == [4, 3, 2, 2]


@pytest.mark.parametrize(("group", "out"), [(2, 3), (4, 2), (8, 1), (8, 3)])
def test_transposed_with_groups(group: int, out: int) -> None:
    model = transposed(group, out)
    assert sorted(groups(model).values()) == sorted(size for size in (group, 8 // group, out) if size > 1)
    halve(model)
    halve(model, channels=0.8)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_numbers_of_spatial_axes(rank: int) -> None:
    space, kernel = ",".join(["4"] * rank), ",".join(["1"] * rank)
    model = net(f"""
        ranks (float[N,3,{space}] x) => (float[N,2,{space}] y) <float[6,3,{kernel}] w1, float[2,6,{kernel}] w2> {{
            a = Conv(x, w1)
            y = Conv(a, w2)
        }}""")
    assert groups(model) == {"w1:0": 6}
    halve(model)


def test_inputs_and_outputs_of_the_network_are_pinned() -> None:
    result = halve(plain(), channels=0.2)
    after = shapes(result.model)
    assert after["w1"][1] == 3
    assert after["w3"][0] == 5


def test_unequal_weights_can_be_kept_at_any_ratio() -> None:
    for ratio in (0.9, 0.7, 0.3):
        result = halve(residual(), channels=ratio)
        assert result.after.channels <= ratio * result.before.channels


def test_a_fused_convolution_of_onnx_runtime() -> None:
    model = net(
        """
        fused (float[N,3,6,6] x) => (float[N,4,4,4] y) <float[8,3,3,3] w1, float[8] b1, float[4,8,1,1] w2> {
            a = com.microsoft.FusedConv<activation = "Relu">(x, w1, b1)
            y = Conv(a, w2)
        }""",
        domains=("com.microsoft",),
    )
    assert groups(model) == {"w1:0": 8}
    halve(model)
