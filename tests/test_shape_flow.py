"""Sizes that are read at run time: what only copies them follows by itself, what computes with them pins."""

from __future__ import annotations

import numpy as np
import pytest
from halving import groups, halve, members, pinned, shapes
from nets import net
from onnx import ModelProto

import graphprune
from graphprune.runtime import run
from graphprune.shape_inference import concrete_shapes

COMPUTED = "its size is computed with at run time"


def joined(rows: str, extra: str = "") -> ModelProto:
    """A convolution to 8 channels whose shape is read, beside something of 8 channels that is made with it."""
    return net(f"""
        joined (float[1,3,H,W] x) => (float[1,4,A,B] y) <float[8,3,1,1] w1, float[4,16,1,1] w2, int64[1] one = {{1}}{extra}> {{
            c = Conv(x, w1)
            s = Shape(c)
            {rows}
            cat = Concat<axis = 1>(c, e)
            y = Conv(cat, w2)
        }}""")


def divided(rows: str, extra: str = "") -> ModelProto:
    """A convolution to 8 channels that is divided by something computed from its shape `s`."""
    return net(f"""
        divided (float[N,3,H,4] x) => (float[N,2,A,4] y)
        <float[8,3,1,1] w1, float[2,8,1,1] w2, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}{extra}> {{
            c = Conv(x, w1)
            s = Shape(c)
            {rows}
            z = Div(c, f)
            y = Conv(z, w2)
        }}""")


# ---- copies -------------------------------------------------------------------------------------


def test_zeros_like() -> None:
    model = joined("e = ConstantOfShape(s)")
    assert members(model, "w1:0") == {"w1:0 producer", "w2:1 consumer"}
    assert shapes(halve(model).model)["w2"] == [4, 8, 1, 1]


def test_expand_as() -> None:
    model = joined("p = GlobalAveragePool(x)\n g = Conv(p, w3)\n e = Expand(g, s)", ", float[8,3,1,1] w3")
    assert members(model, "w1:0") == {"w1:0 producer", "w3:0 producer", "w2:1 consumer"}
    halve(model)


def test_a_number_expanded_to_the_shape_of_a_value() -> None:
    model = joined("e = Expand(half, s)", ", float half = {0.5}")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_sizes_that_go_through_slices_and_concats() -> None:
    rows = "k = Slice(s, one, two)\n h = Slice(s, two, four)\n t = Concat<axis = 0>(one, k, h)\n e = ConstantOfShape(t)"
    model = joined(rows, ", int64[1] two = {2}, int64[1] four = {4}")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_resize_to_the_size_of_another_value() -> None:
    model = joined('d = Conv(x, w3)\n e = Resize<mode = "nearest">(d, , , s)', ", float[8,3,1,1] w3")
    assert members(model, "w1:0") == {"w1:0 producer", "w3:0 producer", "w2:1 consumer"}
    halve(model)


def test_resize_of_named_axes_leaves_the_others() -> None:
    rows = 'h = Slice(s, two, four)\n t = Mul(h, two)\n e = Resize<mode = "nearest", axes = [-2, -1]>(c, , , t)'
    model = net(
        f"""
        resized (float[1,3,H,W] x) => (float[1,4,A,B] y)
        <float[8,3,1,1] w1, float[4,8,1,1] w2, int64[1] two = {{2}}, int64[1] four = {{4}}> {{
            c = Conv(x, w1)
            s = Shape(c)
            {rows}
            y = Conv(e, w2)
        }}""",
        opset=18,
    )
    assert groups(model) == {"w1:0": 8}
    halve(model)


# ---- computations -------------------------------------------------------------------------------


def test_view_as() -> None:
    """A Reshape to the shape of another value: nothing says which indices it takes."""
    model = joined("d = Conv(x, w3)\n f = Flatten(d)\n e = Reshape(f, s)", ", float[8,3,1,1] w3")
    assert groups(model) == {}
    assert pinned(model)["w1:0"] == COMPUTED


@pytest.mark.parametrize(
    "rows",
    [
        "n = Slice(s, zero, one)\n k = Slice(s, one, two)\n u = Concat<axis = 0>(n, k)\n p = ReduceProd(u)\n f = Cast<to = 1>(p)",
        "a, b, d, e = Split<axis = 0>(s)\n f = Cast<to = 1>(b)",
        "u = Slice(s, two, zero, zero, back)\n t = ConstantOfShape(u)\n f = ReduceSum<keepdims = 0>(t)",
    ],
)  # fmt: skip
def test_a_number_of_channels_that_is_computed_with(rows: str) -> None:
    model = divided(rows, ", int64[1] three = {3}, int64[1] seven = {7}, int64[1] back = {-1}")
    assert groups(model) == {}
    assert pinned(model)["w1:0"] == COMPUTED


@pytest.mark.parametrize(
    "rows",
    [
        "u = Gather(s, one)\n f = Cast<to = 1>(u)",
        "n = Slice(s, one, three)\n u = Concat<axis = 0>(seven, n)\n p = Slice(u, one, two)\n f = Cast<to = 1>(p)",
        "n = Slice(s, one, three)\n u = Concat<axis = 0>(seven, n)\n p = Slice(u, two, three)\n f = Cast<to = 1>(p)",
    ],
    ids=["channels", "channels, joined", "rows"],
)
def test_a_known_size_that_is_picked_is_a_number(rows: str) -> None:
    """As in a static export: the original divides by its own channels, and so does what is left of it."""
    model = divided(rows, ", int64[1] three = {3}, int64[1] seven = {7}")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_a_loop_that_computes_with_sizes() -> None:
    body = """<body = b (int64 i, bool ci, float[1] st) => (bool co, float[1] next) {
        co = Identity(ci)
        g = Cast<to = 1>(s)
        p = ReduceProd<keepdims = 0>(g)
        next = Add(st, p)
    }>"""
    model = divided(f"f = Loop(trips, go, start) {body}", ", int64 trips = {2}, bool go = {1}, float[1] start = {1.0}")
    assert groups(model) == {}
    assert pinned(model)["w1:0"] == COMPUTED


# ---- shapes that others read, too ---------------------------------------------------------------


def test_a_target_shape_that_a_loop_reads_as_well() -> None:
    model = net("""
        shared (float[1,3,4,4] x, float[1,128] v) => (float[1,2,16] y, float[A,B,C] z)
        <float[8,3,1,1] w1, float[2,8,1] w2, int64[3] k = {1, 8, 16}, int64 trips = {2}, bool go = {1},
         int64[3] k0 = {1, 4, 32}> {
            h = Conv(x, w1)
            r = Reshape(h, k)
            y = Conv(r, w2)
            v0 = Reshape(v, k0)
            z = Loop(trips, go, v0) <body = b (int64 i, bool ci, float[D0,D1,D2] st) => (bool co, float[E0,E1,E2] next) {
                co = Identity(ci)
                next = Reshape(st, k)
            }>
        }""")
    assert groups(model) == {"w1:0": 8}
    halve(model)


def test_expand_of_an_axis_of_unknown_size() -> None:
    """It may have the target's size already: then these are no copies."""
    model = net("""
        unknown (float[N,6] x) => (float[1,3] y) <float[6,8] w1, int64[2] t = {2, 8}, int64[2] flat = {1, 16}, float[16,3] w2> {
            h = MatMul(x, w1)
            e = Expand(h, t)
            r = Reshape(e, flat)
            y = MatMul(r, w2)
        }""")
    assert [group.size for group in graphprune.analyze(model).groups] == [8]
    halve(model)


# ---- names of sizes -----------------------------------------------------------------------------


def counted(start: int = 0, step: int = 1) -> ModelProto:
    """A mask as decoders make it: as many steps as the input has, for every sample."""
    return net(f"""
        mask (float[N,S,4] x) => (bool[A,1,B,1] m)
        <int64 first = {{0}}, int64 second = {{1}}, int64 start = {{{start}}}, int64 step = {{{step}}}, int64[3] new = {{0,1,3}},
         int64[1] front = {{0}}, int64[1] one = {{1}}, int64[4] target = {{0,0,0,0}}> {{
            s = Shape(x)
            count = Gather(s, second)
            steps = Range(start, count, step)
            r = Unsqueeze(steps, new)
            even = Mod(r, step)
            b = Gather(s, front)
            n = Gather(s, one)
            wide = Concat<axis = 0>(b, one, n, one)
            e = Expand(even, wide)
            m = Equal(e, first)
        }}""")


def test_sizes_of_a_range_and_of_an_expand_have_the_names_that_they_copy() -> None:
    graph = graphprune.load(counted())
    assert graph.shape("steps") == ("S",)
    assert graph.shape("e") == ("N", 1, "S", 1)


@pytest.mark.parametrize(("start", "step"), [(1, 1), (0, 2)])
def test_a_range_with_gaps_has_a_size_of_its_own(start: int, step: int) -> None:
    assert graphprune.load(counted(start, step)).shape("steps") != ("S",)


def test_names_that_occur_once_in_an_output_do_not_hide_others() -> None:
    model = net("f (float[N,S,4] x) => (float[made_up,S,4] y) { y = Relu(x) }")
    assert graphprune.load(model).shape("y") == ("N", "S", 4)
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "made_up"


def test_names_that_add_up_others_have_the_sum_of_their_sizes() -> None:
    model = net("f (float[N,new] x, float[N,past] p, float[N,old] m) => (float[N,a] y) { y = Concat<axis = 1>(x, p) }")
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + new + 1"
    inputs = graphprune.load(model).inputs
    assert concrete_shapes(inputs, {}, batch=2) == {"x": (2, 16), "p": (2, 16), "m": (2, 33)}
    assert concrete_shapes(inputs, {"p": (3, 4)}, batch=2) == {"x": (3, 16), "p": (3, 4), "m": (3, 21)}
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + unknown"
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "past + unknown"
    found = concrete_shapes(graphprune.load(model).inputs, {}, batch=2)
    assert found["p"][0] == found["m"][1]


def test_queries_that_are_repeated_for_each_sample() -> None:
    """Torch's older exporter writes `queries.expand(B, -1, -1)` so; its batch was taken for 1 before the rest was folded."""
    model = net("""
        latents (float[B,6] x) => (float[B,4,3] y)
        <float[6,32] wk, float[16,32] wa, float[32,3] wo, float[1,4,16] queries, int64[1] zero = {0}, int64[1] one = {1},
         int64[2] rest = {-1,-1}, int64 minus = {-1}, int64[1] width = {32}> {
            s = Shape(x)
            b = Gather(s, zero)
            t = Concat<axis = 0>(b, rest)
            ts = Shape(t)
            ones = ConstantOfShape<value = int64[1] {1}>(ts)
            neg = Mul(ones, minus)
            eq = Equal(t, neg)
            e = Where(eq, ones, t)
            q = Expand(queries, e)
            a = MatMul(q, wa)
            r = Relu(a)
            qs = Shape(q)
            qb = Gather(qs, zero)
            tk = Concat<axis = 0>(qb, one, width)
            k = MatMul(x, wk)
            k3 = Reshape(k, tk)
            m = Mul(r, k3)
            y = MatMul(m, wo)
        }""")
    assert groups(model) == {"wa:1": 32, "wa:0": 16}
    result = halve(model)
    inputs = {"x": np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)}
    assert run(result.model, inputs)["y"].shape == run(model, inputs)["y"].shape == (3, 4, 3)


# ---- sizes that are known, in networks with a dynamic batch --------------------------------------


@pytest.mark.parametrize("value", ["", "<value = float[1] {0.5}>"])
def test_a_first_state_of_zeros(value: str) -> None:
    """`torch.zeros(batch, 8)` in front of a recurrence."""
    model = net(f"""
        recurrent (float[B,5] x) => (float[B,3] y)
        <float[5,8] i, float[8,8] h, float[8,3] o, int64[1] zero = {{0}}, int64[1] eight = {{8}}> {{
            s = Shape(x)
            b = Gather(s, zero)
            t = Concat<axis = 0>(b, eight)
            first = ConstantOfShape {value} (t)
            a = MatMul(x, i)
            r = MatMul(first, h)
            u = Add(a, r)
            n = Tanh(u)
            m = Mul(n, first)
            v = Add(n, m)
            y = MatMul(v, o)
        }}""")
    assert groups(model) == {"i:1": 8}
    halve(model)


def test_the_scale_of_attention_is_a_constant_where_the_width_is_known() -> None:
    """`x / sqrt(x.size(-1))`, as torch's older exporter writes it; the scale is that of the original."""
    text = "w = Slice(s, minus, most)\n d = Cast<to = 1>(w)\n q = Sqrt(d)\n f = Reciprocal(q)"
    model = net(f"""
        scaled (float[N,3,5] x) => (float[N,3,2] y)
        <float[5,8] w1, float[8,2] w2, int64[1] minus = {{-1}}, int64[1] most = {{9223372036854775807}}> {{
            c = MatMul(x, w1)
            s = Shape(c)
            {text}
            z = Mul(c, f)
            y = MatMul(z, w2)
        }}""")
    assert groups(model) == {"w1:1": 8}
    halve(model)


def test_halves_of_channels_behind_a_cut_that_is_computed() -> None:
    """ONNX's shape inference knows no size behind a Slice whose end is computed; those of other axes are known."""
    model = net("""
        cut (float[N,T,5] x, int64[1] length) => (float[N,U,2] y)
        <float[5,8] w1, float[4,2] w2, int64[1] zero = {0}, int64[1] one = {1}, int64 two = {2}, int64[1] last = {2},
         int64[1] first = {0}, int64 at = {2}> {
            c = MatMul(x, w1)
            p = Slice(c, zero, length, one)
            s = Shape(p)
            d = Gather(s, at)
            h = Div(d, two)
            e = Reshape(h, one)
            a = Slice(p, first, e, last)
            y = MatMul(a, w2)
        }""")
    assert groups(model) == {"w1:1": 8}
    halve(model)


def test_windows_whose_places_are_computed_from_known_sizes() -> None:
    """Range up to a size that is known is a constant."""
    model = net("""
        windows (float[N,3,6] x) => (float[N,2,6] y)
        <float[8,3,1] w1, float[2,8,1] w2, int64 zero = {0}, int64 one = {1}, int64 at = {2}> {
            c = Conv(x, w1)
            s = Shape(c)
            n = Gather(s, at)
            r = Range(zero, n, one)
            g = Gather<axis = 2>(c, r)
            y = Conv(g, w2)
        }""")
    assert "Range" not in [node.op_type for node in graphprune.load(model).nodes]
    assert groups(model) == {"w1:0": 8}
    halve(model)


def merged(target: str, inputs: int = 32) -> ModelProto:
    """Patch merging of a Swin with dynamic height and width, as torch's newer exporter writes it."""
    return net(f"""
        merged (float[2,3,h,w] x) => (float[2,hh,ww,5] y)
        <float[8,3,3,3] w1, float[{inputs},5] w2, int64[1] two = {{2}}, int64[1] batch = {{2}}, int64[1] c = {{8}},
         int64[1] all = {{32}}, int64[1] rest = {{-1}}> {{
            r = Conv<pads = [1,1,1,1]>(x, w1)
            sh = Shape<start = 2, end = 3>(x)
            sw = Shape<start = 3, end = 4>(x)
            h2 = Div(sh, two)
            w2s = Div(sw, two)
            h2b = Div(sh, two)
            h4 = Div(h2, two)
            p = Transpose<perm = [0,2,3,1]>(r)
            t1 = Concat<axis = 0>(batch, h2, two, w2s, two, c)
            v = Reshape(p, t1)
            q = Transpose<perm = [0,1,3,2,4,5]>(v)
            t2 = Concat<axis = 0>({target})
            z = Reshape(q, t2)
            y = MatMul(z, w2)
        }}""")


@pytest.mark.parametrize("target", ["batch, h2, w2s, all", "batch, h2b, w2s, all", "batch, h2, w2s, rest"])
def test_sizes_that_are_computed_from_others_are_equal_where_they_are_computed_alike(target: str) -> None:
    model = merged(target)
    assert groups(model) == {"w1:0": 8}
    sizes = {"x": [2, 3, 8, 12]}
    result = graphprune.prune(model, targets=["channels=0.5"], align=1, input_shapes=sizes)
    assert result.proof is not None
    assert result.proof.passed
    for height, width in ((4, 4), (6, 10)):
        feeds = {"x": np.ones((2, 3, height, width), np.float32)}
        assert run(result.model, feeds)["y"].shape == run(model, feeds)["y"].shape == (2, height // 2, width // 2, 5)


def test_sizes_that_are_computed_otherwise_are_not() -> None:
    model = merged("batch, h4, w2s, rest", 64)
    assert groups(model) == {}
    assert "joins this axis with one of dynamic size" in pinned(model)["w1:0"]


@pytest.mark.parametrize("count", [16, 60])
def test_sizes_that_are_computed_from_one_another(count: int) -> None:
    """Each is followed once: the time doubled with each of them."""
    steps, value = "", "x"
    for k in range(count):
        steps += f"""
            h{k} = Shape<start = 0, end = 1>({value})  d{k} = Add(h{k}, h{k})  s{k} = Div(d{k}, two)
            w{k} = Shape<start = 1, end = 2>({value})  e{k} = Add(w{k}, w{k})  t{k} = Div(e{k}, two)
            g{k} = Concat<axis = 0>(s{k}, t{k}, six)  r{k} = Reshape({value}, g{k})  v{k} = Tanh(r{k})"""
        value = f"v{k}"
    model = net(f"""
        chain (float[H,W,6] x) => (float[P,Q,2] y) <int64[1] two = {{2}}, int64[1] six = {{6}}, float[6,8] a, float[8,2] b> {{
            {steps}
            m = MatMul({value}, a)
            y = MatMul(m, b)
        }}""")
    assert {group.size for group in graphprune.analyze(model).groups} == {8}
