"""Reshape, Flatten and channel shuffles: axes are split into products and joined again."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, keep_exactly, members, pinned, shapes
from nets import initializer, net, operators

import graphprune
from graphprune.errors import UnreachableError


def test_flatten_before_gemm_takes_whole_channels() -> None:
    model = net("""
        flatten (float[N,3,4,5] x) => (float[N,2] y) <float[6,3,1,1] w1, float[120,2] w2> {
            a = Conv(x, w1)
            f = Flatten(a)
            y = Gemm(f, w2)
        }""")
    assert members(model, "w1:0") == {"w1:0 producer", "w2:0 consumer"}
    result = keep_exactly(model, {"w1:0": [1, 2, 5]})
    rows = [channel * 20 + k for channel in (1, 2, 5) for k in range(20)]
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[rows])
    halve(model)


@pytest.mark.parametrize("target", ["0,-1", "-1,120", "0,120"])
def test_every_spelling_of_a_flattening_reshape(target: str) -> None:
    model = net(f"""
        reshape (float[N,3,4,5] x) => (float[N,2] y) <float[6,3,1,1] w1, float[120,2] w2, int64[2] shape = {{{target}}}> {{
            a = Conv(x, w1)
            f = Reshape(a, shape)
            y = MatMul(f, w2)
        }}""")
    assert groups(model) == {"w1:0": 6}
    result = halve(model)
    assert shapes(result.model)["w2"] == [60, 2]


def test_flatten_of_channels_last_interleaves() -> None:
    """[N, H, W, C] flattened: channel c stands at every sixth place."""
    model = net("""
        last (float[N,3,4,5] x) => (float[N,2] y) <float[6,3,1,1] w1, float[120,2] w2> {
            a = Conv(x, w1)
            t = Transpose<perm = [0,2,3,1]>(a)
            f = Flatten(t)
            y = Gemm(f, w2)
        }""")
    result = keep_exactly(model, {"w1:0": [0, 4]})
    rows = [k * 6 + channel for k in range(20) for channel in (0, 4)]
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[rows])
    halve(model)


def test_heads_are_found_by_splitting_an_axis() -> None:
    model = net("""
        heads (float[N,5,6] x) => (float[N,5,3] y)
        <float[6,12] w1, float[12] b1, int64[4] split = {0,0,3,4}, float[3,4] gain, int64[3] join = {0,0,12}, float[12,3] w2> {
            a = MatMul(x, w1)
            b = Add(a, b1)
            h = Reshape(b, split)
            g = Mul(h, gain)
            j = Reshape(g, join)
            y = MatMul(j, w2)
        }""")
    assert sorted(groups(model).values()) == [3, 4]
    head, size = (next(name for name, count in groups(model).items() if count == k) for k in (3, 4))
    result = keep_exactly(model, {head: [0, 2], size: [1, 2, 3]})
    columns = [1, 2, 3, 9, 10, 11]
    assert np.array_equal(initializer(result.model, "w1"), initializer(model, "w1")[:, columns])
    assert np.array_equal(initializer(result.model, "gain"), initializer(model, "gain")[[0, 2]][:, [1, 2, 3]])
    for ratio in (0.8, 0.5, 0.3):
        halve(model, channels=ratio)


def test_two_consumers_that_split_differently() -> None:
    """12 read as (2 6) and as (6 2): both come down to (2 3 2)."""
    model = net("""
        differ (float[N,6] x) => (float[N,2,3] y, float[N,6,3] z)
        <float[6,12] w1, int64[3] one = {0,2,6}, int64[3] two = {0,6,2}, float[6,3] w2, float[2,3] w3> {
            a = MatMul(x, w1)
            r = Relu(a)
            p = Reshape(r, one)
            q = Reshape(r, two)
            y = MatMul(p, w2)
            z = MatMul(q, w3)
        }""")
    halve(model, channels=0.9)


def test_joining_a_pinned_axis_with_a_free_one() -> None:
    """[N, C, T] to [N, C T]: the product of a free axis and one that stays."""
    model = net("""
        join (float[N,3,5] x) => (float[N,2] y) <float[4,3,1] w1, int64[2] shape = {0,20}, float[20,2] w2> {
            a = Conv(x, w1)
            j = Reshape(a, shape)
            y = MatMul(j, w2)
        }""")
    assert groups(model) == {"w1:0": 4}
    assert shapes(halve(model).model)["w2"] == [10, 2]


def test_a_reshape_across_axes_with_no_common_boundary() -> None:
    """[N, 6, 10] to [N, 4, 15]: no boundary in common, so all that is left is the whole."""
    model = net("""
        across (float[N,3,10] x) => (float[N,4,2] y) <float[6,3,1] w1, int64[3] shape = {0,4,15}, float[15,2] w2> {
            a = Conv(x, w1)
            c = Reshape(a, shape)
            y = MatMul(c, w2)
        }""")
    assert groups(model) in ({}, {"w1:0": 1})
    with pytest.raises(UnreachableError):
        graphprune.prune(model, targets=["channels=0.5"], align=1)


def test_channels_joined_with_a_part_of_an_axis_of_unknown_size() -> None:
    """[N, 8, L] to [N, 16, L / 2]: where L is cut nobody knows, so the channels that are joined with it stay."""
    model = net("""
        halves (float[1,3,L] x) => (float[1,4,K] y) <float[8,3,1] w1, float[4,16,1] w2, int64[3] shape = {0,16,-1}> {
            a = Conv(x, w1)
            c = Reshape(a, shape)
            y = Conv(c, w2)
        }""")
    assert groups(model) == {}
    assert pinned(model)["w1:0"] == "Reshape cuts this axis at a place that is not known"


def test_leading_axis_joined_with_the_dynamic_batch() -> None:
    """[N, T, C] to [N T, C] and back: the channel axis stays free, tokens join the batch."""
    model = net("""
        tokens (float[N,5,6] x) => (float[N,5,3] y)
        <float[6,8] w1, int64[2] flat = {-1,8}, float[8,7] w2, int64[3] back = {-1,5,7}, float[7,3] w3> {
            a = MatMul(x, w1)
            f = Reshape(a, flat)
            b = Gemm(f, w2)
            t = Reshape(b, back)
            y = MatMul(t, w3)
        }""")
    assert groups(model) == {"w1:1": 8, "w2:1": 7}
    halve(model)


def test_a_target_computed_from_shapes_is_made_constant() -> None:
    """What the legacy exporter writes for x.view(x.size(0), -1)."""
    model = net("""
        computed (float[N,3,4,5] x) => (float[N,2] y)
        <float[6,3,1,1] w1, float[120,2] w2, int64 zero = {0}, int64[1] front = {0}, int64[1] rest = {-1}> {
            a = Conv(x, w1)
            s = Shape(a)
            n = Gather(s, zero)
            u = Unsqueeze(n, front)
            t = Concat<axis = 0>(u, rest)
            f = Reshape(a, t)
            y = MatMul(f, w2)
        }""")
    imported = graphprune.load(model)
    assert operators(imported.model) == ["Conv", "Reshape", "MatMul"]
    assert groups(model) == {"w1:0": 6}
    halve(model)


def test_a_target_from_the_data_pins() -> None:
    model = net("""
        data (float[N,3,4,5] x, int64[2] shape) => (float[P,Q] y) <float[6,3,1,1] w1> {
            a = Conv(x, w1)
            y = Reshape(a, shape)
        }""")
    assert "run time" in pinned(model)["w1:0"]


@pytest.mark.parametrize("groups_of_shuffle", [2, 4])
def test_a_channel_shuffle_is_a_permutation(groups_of_shuffle: int) -> None:
    """It couples nothing: any of the eight channels can go."""
    g, c = groups_of_shuffle, 8 // groups_of_shuffle
    model = net(f"""
        shuffle (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[8,3,1,1] w1, int64[5] split = {{0,{g},{c},4,4}}, int64[4] join = {{0,8,4,4}}, float[2,8,1,1] w2> {{
            a = Conv(x, w1)
            s = Reshape(a, split)
            t = Transpose<perm = [0,2,1,3,4]>(s)
            j = Reshape(t, join)
            y = Conv(j, w2)
        }}""")
    assert operators(graphprune.load(model).model) == ["Conv", "Gather", "Conv"]
    assert groups(model) == {"w1:0": 8}
    result = keep_exactly(model, {"w1:0": [0, 3, 4, 5, 6]})
    order = [row + c * column for row in range(c) for column in range(g)]
    columns = [place for place, channel in enumerate(order) if channel in (0, 3, 4, 5, 6)]
    assert np.array_equal(initializer(result.model, "w2"), initializer(model, "w2")[:, columns])
    halve(model)


def test_a_shuffle_of_three_factors() -> None:
    """24 = (2 3 4) to (3 4 2): a three-cycle of factors."""
    model = net("""
        three (float[N,3,2,2] x) => (float[N,2,2,2] y)
        <float[24,3,1,1] w1, int64[6] split = {0,2,3,4,2,2}, int64[4] join = {0,24,2,2}, float[2,24,1,1] w2> {
            a = Conv(x, w1)
            s = Reshape(a, split)
            t = Transpose<perm = [0,2,3,1,4,5]>(s)
            j = Reshape(t, join)
            y = Conv(j, w2)
        }""")
    halve(model)
    if groups(model) == {"w1:0": 24}:
        kept = [0, 1, 5, 13, 14, 23]
        result = keep_exactly(model, {"w1:0": kept})
        order = np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0).ravel().tolist()
        assert np.array_equal(
            initializer(result.model, "w2"), initializer(model, "w2")[:, [k for k, c in enumerate(order) if c in kept]]
        )


def test_shuffle_units_of_a_shufflenet() -> None:
    """Half of the channels passes, half is computed, both are concatenated and shuffled, twice."""
    unit = """
            p{k}, q{k} = Split<axis = 1>(s{j})
            c{k} = Conv(q{k}, u{k})
            d{k} = Conv<group = 4, pads = [1,1,1,1]>(c{k}, d{k}w)
            m{k} = Concat<axis = 1>(p{k}, d{k})
            r{k} = Reshape(m{k}, split)
            t{k} = Transpose<perm = [0,2,1,3,4]>(r{k})
            s{k} = Reshape(t{k}, join)"""
    model = net(f"""
        shufflenet (float[N,3,4,4] x) => (float[N,2,4,4] y)
        <float[8,3,1,1] w1, float[4,4,1,1] u1, float[4,1,3,3] d1w, float[4,4,1,1] u2, float[4,1,3,3] d2w,
         int64[5] split = {{0,2,4,4,4}}, int64[4] join = {{0,8,4,4}}, float[2,8,1,1] w2> {{
            s0 = Conv(x, w1){unit.format(j=0, k=1)}{unit.format(j=1, k=2)}
            y = Conv(s2, w2)
        }}""")
    assert not pinned(model).keys() & {"w1:0", "u1:0", "u2:0"}
    for ratio in (0.9, 0.7, 0.5, 0.3):
        halve(model, channels=ratio)


def test_windows_over_space_leave_the_channels_free() -> None:
    """[N, C, 4, 4] cut into 2 x 2 windows and back, as Swin does with channels last."""
    model = net("""
        windows (float[N,4,4,3] x) => (float[N,4,4,2] y)
        <float[3,8] w1, int64[6] cut = {0,2,2,2,2,8}, int64[3] flat = {-1,4,8}, float[8,6] w2,
         int64[6] grid = {-1,2,2,2,2,6}, int64[4] whole = {-1,4,4,6}, float[6,2] w3> {
            a = MatMul(x, w1)
            c = Reshape(a, cut)
            t = Transpose<perm = [0,1,3,2,4,5]>(c)
            f = Reshape(t, flat)
            b = MatMul(f, w2)
            g = Reshape(b, grid)
            u = Transpose<perm = [0,1,3,2,4,5]>(g)
            r = Reshape(u, whole)
            y = MatMul(r, w3)
        }""")
    assert groups(model) == {"w1:1": 8, "w2:1": 6}
    halve(model)


# ---- a dynamic size joined with a known one -----------------------------------------------------


def test_steps_as_samples_and_back() -> None:
    """[N, 5, 6] as [5*N, 6], a layer for each step, and all steps of a sample at once."""
    model = net("""
        steps (float[N,5,6] x) => (float[N,2] y)
        <int64[2] apart = {-1,6}, float[6,8] w1, int64[2] back = {-1,40}, float[40,2] w2> {
            a = Reshape(x, apart)
            b = MatMul(a, w1)
            c = Relu(b)
            d = Reshape(c, back)
            y = MatMul(d, w2)
        }""")
    graph = graphprune.load(model)
    assert (graph.shape("c"), graph.shape("d")) == (("5*N", 8), ("N", 40))
    assert groups(model) == {"w1:1": 8}
    assert shapes(halve(model).model)["w2"] == [20, 2]


def test_a_batch_that_is_read_at_run_time_leaves_the_rest_a_number() -> None:
    """The older exporter of torch writes `view(batch, 5, -1)` so."""
    model = net(
        """
        frames (float[N,5,3,4,4] x) => (float[N,2] y)
        <int64[4] apart = {-1,3,4,4}, float[8,3,3,3] w1, int64[1] zero = {0}, int64[2] rest = {5,-1}, float[8,2] w2> {
            a = Reshape(x, apart)
            b = Conv(a, w1)
            c = ReduceMean<axes = [2,3], keepdims = 0>(b)
            s = Shape(x)
            n = Gather(s, zero)
            t = Concat<axis = 0>(n, rest)
            d = Reshape(c, t)
            e = ReduceMean<axes = [1], keepdims = 0>(d)
            y = MatMul(e, w2)
        }""",
        opset=17,
    )
    assert graphprune.load(model).shape("d") == ("N", 5, 8)
    assert groups(model) == {"w1:0": 8}
    assert shapes(halve(model).model)["w2"] == [4, 2]


def test_channels_of_heads_that_were_joined_with_samples() -> None:
    """As latent diffusion models split them: [N, (h d), L] as [h*N, d, L]."""
    model = net("""
        heads (float[N,6,7] x) => (float[N,5,7] y)
        <float[24,6,1] w1, int64[3] apart = {-1,4,7}, float[4,1] gain, int64[3] back = {-1,24,7}, float[5,24,1] w2> {
            a = Conv(x, w1)
            b = Reshape(a, apart)
            c = Mul(b, gain)
            d = Reshape(c, back)
            y = Conv(d, w2)
        }""")
    assert graphprune.load(model).shape("c") == ("6*N", 4, 7)
    assert list(groups(model).values()) == [4]
    result = halve(model)
    assert shapes(result.model)["w2"] == [5, 12, 1]
    assert initializer(result.model, "back").tolist() == [-1, 12, 7]


def test_two_dynamic_sizes_are_joined_and_parted() -> None:
    """Positions of all samples in a row, as torch's `view(-1, channels)`."""
    model = net("""
        rows (float[B,T,6] x) => (float[B,T,2] y)
        <int64[2] flat = {-1,6}, float[6,8] w1, int64[1] two = {2}, float[8,2] w2> {
            a = Reshape(x, flat)
            b = MatMul(a, w1)
            c = Relu(b)
            d = MatMul(c, w2)
            s = Shape<end = 2>(x)
            t = Concat<axis = 0>(s, two)
            y = Reshape(d, t)
        }""")
    assert graphprune.load(model).shape("c") == ("B*T", 8)
    assert shapes(halve(model).model)["w2"] == [4, 2]
