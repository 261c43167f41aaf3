"""Sizes and axes where they are unusual: the analysis keeps what it must, frees what it can, and the rewrite follows."""

from __future__ import annotations

import numpy as np
import pytest
from halving import halve
from nets import initializer, net, operators
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.cost import CostModel

CROPPED = """net (float[1,3,H,W] x) => (float[1,4,p,q] y)
<float[8,3,1,1] w1, {weights}, int64[2] from = {{0, 0}}, int64[2] axes = {{2, 3}},
 int64[2] two = {{2, 2}}, int64[2] places = {{2, 3}}> {{
    a = Conv(x, w1)
    s = Shape(x)
    k = Gather<axis = 0>(s, places)
    end = Div(k, two)
    b = Slice(a, from, end, axes)
    {rest}
}}"""
"""Behind a crop whose size is computed ONNX knows no size any more, that of the channels included."""


@pytest.mark.parametrize(
    ("weights", "rest"),
    [
        ("float[4,5,1,1] w2", "c, d = Split<axis = 1>(b, parts) y = Conv(c, w2)"),
        ("float[4,4,1,1] w2", "c = Slice(b, one, five, one) y = Conv(c, w2)"),
        ("float[4,12,1,1] w2", "c = Pad(b, pads) y = Conv(c, w2)"),
        ("float[4,3,1,1] w2", "c = Gather<axis = 1>(b, which) y = Conv(c, w2)"),
        ("float[8,2,1,1] w2, float[4,8,1,1] w3", "c = Conv<group = 4>(b, w2) y = Conv(c, w3)"),
        ("float[4,2,1,1] w2", "c = DepthToSpace<blocksize = 2>(b) y = Conv(c, w2)"),
    ],
)
@pytest.mark.parametrize("mode", ["coupled", "unconstrained"])
def test_sizes_that_onnx_does_not_know(weights: str, rest: str, mode: str) -> None:
    text = CROPPED.format(weights=weights, rest=rest)
    model = net(text)
    constants = {"parts": [5, 3], "one": [1], "five": [5], "pads": [0, 2, 0, 0, 0, 2, 0, 0], "which": [6, 1, 3]}
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    result = graphprune.prune(model, targets="channels=0.7", importance="magnitude", align=1, repair=(), mode=mode)
    assert result.proof is not None
    assert result.proof.passed


def test_a_crop_to_a_size_that_is_asked_for() -> None:
    """interpolate(size=(2 h, 2 w)): the number of channels is only copied."""
    model = net(
        """net (float[N,3,H,W] x) => (float[N,4,p,q] y)
    <float[8,3,1,1] w1, float[4,8,1,1] w2, int64[2] two = {2, 2}, int64[1] zero = {0}, int64[1] half = {2}, int64[1] last = {4}> {
        a = Conv(x, w1)
        s = Shape(a)
        head = Slice(s, zero, half)
        tail = Slice(s, half, last)
        more = Mul(tail, two)
        sizes = Concat<axis = 0>(head, more)
        b = Resize<mode = "linear">(a, "", "", sizes)
        y = Conv(b, w2)
    }""".replace('""', "")
    )
    assert [group.size for group in graphprune.analyze(model).groups] == [8]
    halve(model)


GROUP_NORM = """net (float[N,3,{sizes}] x) => (float[N,4,h,w] y)
<float[16,3,3,3] w1, int64[3] rows = {{0, 4, -1}}, float[4] scale, float[4] bias,
 float[16,1,1] s, float[16,1,1] o, float[4,16,1,1] w2> {{
    a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1)
    b = Reshape(a, rows)
    c = InstanceNormalization(b, scale, bias)
    d = Shape({of})
    e = Reshape(c, d)
    f = Mul(e, s)
    g = Add(f, o)
    y = Conv(g, w2)
}}"""
"""As torch writes it before opset 18."""


@pytest.mark.parametrize("sizes", ["16,16", "H,W"])
def test_groups_of_a_normalisation_leave_at_any_size(sizes: str) -> None:
    model = net(GROUP_NORM.format(sizes=sizes, of="a"))
    assert [group.size for group in graphprune.analyze(model).groups] == [4]
    result = graphprune.prune(model, targets="channels=0.5", importance="magnitude", align=1, repair=())
    assert initializer(result.model, "w1").shape[0] == 8
    assert initializer(result.model, "scale").shape == (2,)


def test_the_shape_of_another_value_is_no_way_back() -> None:
    """What is read at run time must be the shape of what was regrouped."""
    text = GROUP_NORM.format(sizes="H,W", of="other").replace(
        "    b = Reshape", "    other = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w3)\n    b = Reshape"
    )
    model = net(text.replace("float[4,16,1,1] w2", "float[4,16,1,1] w2, float[16,3,3,3] w3"))
    assert graphprune.analyze(model).groups == []


def test_rows_of_a_table_at_places_of_unknown_rank() -> None:
    """Nothing says which axes the result has, so none may leave."""
    model = net("""net (int64[N,K] x) => (float[N,K,3] y) <float[10,8] table, float[8,3] w, int64 times = {1}, bool go = {1}> {
        i = Loop(times, go, x) <body = body (int64 n, bool k, int64[a,b] c) => (bool l, int64[d,e] m) {
            l = Identity(k)
            m = Identity(c)
        }>
        g = Gather<axis = 0>(table, i)
        y = MatMul(g, w)
    }""")
    for value in model.graph.node[0].attribute[0].g.output:
        value.type.tensor_type.ClearField("shape")
    for value in model.graph.node[0].attribute[0].g.input:
        value.type.tensor_type.ClearField("shape")
    assert graphprune.analyze(model).groups == []


@pytest.mark.parametrize("channels", [2, 5])
def test_a_squeeze_without_axes_drops_what_was_of_size_one(channels: int) -> None:
    model = net(f"""net (float[2,3,4,4] x) => (float[2,3] y) <float[{channels},3,1,1] w1, float[{channels},3] w2> {{
        a = Conv(x, w1)
        g = GlobalAveragePool(a)
        s = Squeeze(g)
        y = MatMul(s, w2)
    }}""")
    result = graphprune.prune(model, targets=f"channels={1 / channels}", importance="magnitude", align=1, repair=())
    assert result.proof is not None
    assert result.proof.passed
    assert initializer(result.model, "w2").shape == (1, 3)


def test_a_squeeze_without_axes_that_drops_nothing() -> None:
    model = net("""net (float[2,3,4] x) => (float[2,3,3] y) <float[4,8] w1, float[8,3] w2> {
        a = MatMul(x, w1)
        r = Relu(a)
        s = Squeeze(r)
        y = MatMul(s, w2)
    }""")
    result = graphprune.prune(model, targets="channels=0.125", importance="magnitude", align=1, repair=())
    assert initializer(result.model, "w2").shape == (1, 3)
    assert result.proof is not None
    assert result.proof.passed


def test_a_squeeze_of_sizes_from_the_data_says_so() -> None:
    model = net("""net (float[N,3,4,4] x) => (float[p,3] y) <float[8,3,1,1] w1, float[8,3] w2> {
        a = Conv(x, w1)
        g = GlobalAveragePool(a)
        s = Squeeze(g)
        y = MatMul(s, w2)
    }""")
    reasons = {pin.reason.text for pin in graphprune.analyze(model).pinned}
    assert "the axes of Squeeze hang on sizes that are known at run time" in reasons


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_unconstrained_where_what_is_read_is_an_output(kind: int) -> None:
    model = net("""net (float[N,4] x) => (float[N,3] y, float[N,16] a) <float[4,16] w1, float[16,3] w2, float[16,3] w3> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        c = MatMul(a, w3)
        y = Add(b, c)
    }""")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = kind
    result = graphprune.prune(model, targets="channels=0.9", importance="magnitude", align=1, repair=(), mode="unconstrained")
    assert "Gather" in operators(result.model)
    assert result.proof is not None
    assert result.proof.passed


@pytest.mark.parametrize(("batch", "target"), [("2", "{12, 0}"), ("N", "{-1, 0}")])
def test_a_zero_in_the_target_of_a_reshape(batch: str, target: str) -> None:
    """0 copies the size at that place of the input: the 6 in the middle, where the last axis shrinks."""
    model = net(f"""net (float[{batch},6,3] x) => (float[p,12] y) <float[3,6] w1, int64[2] target = {target}, float[6,12] w2> {{
        a = MatMul(x, w1)
        b = Reshape(a, target)
        y = MatMul(b, w2)
    }}""")
    result = halve(model)
    assert initializer(result.model, "target").tolist()[1] == 3


def test_cast_like_reads_no_channels() -> None:
    model = net("""net (float[N,4] x) => (float[N,3] y) <float[4,16] w1, float[16,3] w2> {
        a = MatMul(x, w1)
        b = CastLike(a, x)
        y = MatMul(b, w2)
    }""")
    assert [group.size for group in graphprune.analyze(model).groups] == [16]
    halve(model)


# ---- sizes that are computed with, as torch's older exporter writes them -----------------------------------


HEADS = """net (float[N,8,16] x) => (float[N,8,5] y) <float[16,32] w, float[32,5] v, int64 zero = {{0}}, int64 two = {{2}},
  int64 four = {{4}}, int64[1] first = {{0}}, int64[1] tokens = {{8}}, int64[1] heads = {{4}}, int64[3] back = {{0, 8, 32}}> {{
    q = MatMul(x, w)
    s = Shape(q)
    n = Gather(s, zero)
    c = Gather(s, two)
    {middle}
    t = Transpose<perm = [0, 2, 1, 3]>(r)
    e = Exp(t)
    u = Transpose<perm = [0, 2, 1, 3]>(e)
    z = Reshape(u, back)
    y = MatMul(z, v)
}}"""


def test_channels_that_are_computed_with_are_free_where_they_are_known() -> None:
    """`reshape(B, N, heads, C // heads)` with a dynamic batch."""
    computed = "h = Div(c, four) a = Unsqueeze(n, first) b = Unsqueeze(h, first) o = Concat<axis = 0>(a, tokens, heads, b)"
    computed += " r = Reshape(q, o)"
    model = net(HEADS.format(middle=computed))
    known = net(HEADS.format(middle="r = Reshape(q, o)").replace("int64[3] back", "int64[4] o = {0, 8, 4, 8}, int64[3] back"))
    found, wanted = graphprune.analyze(model), graphprune.analyze(known)
    assert [(group.size, len(group.members)) for group in found.groups] == [(g.size, len(g.members)) for g in wanted.groups] != []
    assert not set(operators(found.graph.model)) & {"Shape", "Gather", "Div", "Concat"}
    halve(model)


BLOCKS = """net (float[N,4,H,W] x) => (float[N,M,3] y) <float[16,6] w, float[6,3] v, int64[1] zero = {0}, int64[1] two = {2},
  int64[1] three = {3}, int64[1] channels = {4}, int64[1] patch = {16}, int64[1] all = {-1}> {
    s = Shape(x)
    n = Gather(s, zero)
    h = Gather(s, two)
    k = Gather(s, three)
    i = Div(h, two)
    j = Div(k, two)
    o = Concat<axis = 0>(n, channels, i, two, j, two)
    r = Reshape(x, o)
    t = Transpose<perm = [0, 2, 4, 1, 3, 5]>(r)
    m = Mul(i, j)
    q = Concat<axis = 0>(n, m, patch)
    p = Reshape(t, q)
    e = MatMul(p, w)
    f = Relu(e)
    y = MatMul(f, v)
}"""


@pytest.mark.parametrize("size", [4, 12])
def test_operations_are_counted_where_sizes_are_computed_with(size: int) -> None:
    """Patches of an image of unknown height and width: as many rows as there are for the given sizes."""
    sizes = {"x": [1, 4, size, 2 * size]}
    cost = CostModel(graphprune.analyze(net(BLOCKS), sizes)).original
    assert cost.macs == size // 2 * size * (16 * 6 + 6 * 3)
    result = graphprune.prune(net(BLOCKS), targets=["macs=0.6"], align=1, input_shapes=sizes)
    assert result.realised[0].fraction <= 0.6
    assert result.proof is not None
    assert result.proof.passed


def test_a_rank_that_hangs_on_sizes_is_not_learnt() -> None:
    """A Squeeze without axes drops the batch of one sample, but not that of two."""
    text = """net (float[N,4,H] x) => (float y) <float[4,4] w, int64[1] two = {2}, int64[1] four = {4}> {
        s = Shape(x)
        k = Gather(s, two)
        h = Div(k, two)
        o = Concat<axis = 0>(h, four, two)
        b = MatMul(w, x)
        c = Squeeze(b)
        y = ReduceSum<keepdims = 0>(c)
    }"""
    assert "c" not in graphprune.load(net(text)).shapes
