"""Models that are valid and unusual: what the file computes, the pruned network computes, with other sizes as well."""

from __future__ import annotations

import numpy as np
import pytest
from halving import halve
from nets import initializer, net, operators, set_initializer
from onnx import ModelProto, helper, numpy_helper

import graphprune
from graphprune.branches import with_branches
from graphprune.errors import InvalidModelError, UnreachableError
from graphprune.pipeline import load
from graphprune.runtime import run

Feeds = dict[str, np.ndarray]


def half_dead(model: ModelProto, first: int = 1, second: int = 0) -> ModelProto:
    """The model with the second half of the channels at zero: those along axis `first` of w1, and `second` of w2."""
    for weight, axis in (("w1", first), ("w2", second)):
        array = initializer(model, weight).copy()
        np.moveaxis(array, axis, 0)[array.shape[axis] // 2 :] = 0
        set_initializer(model, weight, array)
    return model


def unchanged_without_the_dead(model: ModelProto, feeds: Feeds) -> None:
    """Dead channels leave, and the network computes what the file does."""
    result = graphprune.prune(
        model, targets="channels=0.5", importance="magnitude", selection="uniform", align=1, recipe="fast", repair=()
    )
    assert result.proof is not None
    assert result.proof.reservation == ""
    for name, array in run(model, feeds).items():
        np.testing.assert_allclose(run(result.model, feeds)[name], array, atol=1e-5)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def overridable(model: ModelProto, *names: str) -> ModelProto:
    """The model with initializers that callers may replace."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


# ---- older opsets -------------------------------------------------------------------------------


RESIZED = """net (float[1,3,7,9] x) => (float[1,2,h,w] y)
<float[16,3,1,1] w1, float[2,16,1,1] w2, float[4] scales = {{{scales}}}> {{
    a = Conv(x, w1)
    r = Relu(a)
    u = {operator}<mode = "{mode}">(r, scales)
    y = Conv(u, w2)
}}"""


LARGER = ["1, 1, 2, 2", "1, 1, 1.7, 1.7", "1, 1, 1.3, 2.5"]
CASES = [("Upsample", 9, scales) for scales in LARGER] + [
    ("Resize", 10, scales) for scales in [*LARGER, "1, 1, 0.6, 0.6", "1, 1, 0.5, 2"]
]


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("operator", "opset", "scales"), CASES)
def test_resizing_before_opset_11(operator: str, opset: int, scales: str, mode: str) -> None:
    """Places are divided by the scale; the version converter leaves them to the newer default."""
    model = net(RESIZED.format(operator=operator, mode=mode, scales=scales), opset=opset)
    unchanged_without_the_dead(half_dead(model, 0, 1), {"x": normal(1, 3, 7, 9)})


def test_a_resize_without_a_later_form_is_refused() -> None:
    model = net(RESIZED.format(operator="Resize", mode="nearest", scales="1, 1, 0.4, 1.5"), opset=10)
    with pytest.raises(InvalidModelError, match=r"that shrinks one axis and enlarges another .* convert the model to opset 11"):
        load(model)


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_hardmax_before_opset_13(axis: int | None) -> None:
    """It looked at all axes from `axis` on as one."""
    model = net(
        f"""net (float[2,3,4] x) => (float[2,3,4] y) <float[4,16] w1, float[16,4] w2> {{
            a = MatMul(x, w1)
            b = MatMul(a, w2)
            y = Hardmax{"" if axis is None else f"<axis = {axis}>"}(b)
        }}""",
        opset=11,
    )
    unchanged_without_the_dead(half_dead(model), {"x": normal(2, 3, 4)})


def test_older_operators_in_bodies() -> None:
    model = net(
        """net (float[2,3,4] x, bool c) => (float[2,3,4] y) <float[4,16] w1, float[16,4] w2> {
            a = MatMul(x, w1)
            b = MatMul(a, w2)
            y = If(c) <
                then_branch = yes () => (float[2,3,4] p) { p = Hardmax<axis = 1>(b) },
                else_branch = no () => (float[2,3,4] q) { q = Neg(b) }
            >
        }""",
        opset=11,
    )
    unchanged_without_the_dead(half_dead(model), {"x": normal(2, 3, 4), "c": np.array(True)})


def test_scan_of_opset_8() -> None:
    model = net("net (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=8)
    model.graph.node.append(helper.make_node("Scan", ["x"], ["z"], "old", body=model.graph, num_scan_inputs=1))
    with pytest.raises(InvalidModelError, match="node 'old': Scan of opset 8 has a batch; convert the model to opset 9"):
        load(model)


# ---- initializers that callers may replace ------------------------------------------------------


def test_a_state_that_is_zero_unless_replaced() -> None:
    model = net(
        """net (float[5,1,3] x) => (float[5,1,1,4] y)
    <float[3,16] w1, float[1,16,16] w2, float[1,16,4] r, float[1,1,4] h> {
        a = MatMul(x, w1)
        y, z = LSTM<hidden_size = 4>(a, w2, r, "", "", h)
    }""".replace('""', "")
    )
    set_initializer(model, "h", np.zeros((1, 1, 4), np.float32))
    feeds = {"x": normal(5, 1, 3), "h": normal(1, 1, 4, seed=1)}
    unchanged_without_the_dead(overridable(half_dead(model, 1, 2), "h"), feeds)


def test_a_vector_that_is_read_twice() -> None:
    """Copies would take the value from one reader."""
    model = net("""net (float[6,4] x) => (float[6,4] y) <float[4,16] w1, float[16,4] w2, float[4] v> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        c = Add(b, v)
        y = Mul(c, v)
    }""")
    unchanged_without_the_dead(overridable(half_dead(model), "v"), {"x": normal(6, 4), "v": normal(4, seed=1)})


def test_the_end_of_a_slice() -> None:
    model = net("""net (float[6,4] x) => (float[6,k] y)
    <float[4,16] w1, float[16,4] w2, int64[1] start = {0}, int64[1] end = {3}, int64[1] axis = {1}> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        y = Slice(b, start, end, axis)
    }""")
    unchanged_without_the_dead(overridable(half_dead(model), "end"), {"x": normal(6, 4), "end": np.array([4])})


def test_chosen_channels() -> None:
    model = net("""net (float[6,4] x) => (float[6,2] y) <float[4,16] w1, int64[4] which = {0, 9, 3, 12}, float[4,2] w2> {
        a = MatMul(x, w1)
        g = Gather<axis = 1>(a, which)
        y = MatMul(g, w2)
    }""")
    with pytest.raises(UnreachableError):
        halve(overridable(model, "which"))


def test_a_weight() -> None:
    """What reads it is not seen as a linear map with known numbers."""
    model = net("""net (float[N,4] x) => (float[N,2] y) <float[4,16] w1, float[16,8] w2, float[8,2] w3> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        y = MatMul(b, w3)
    }""")
    result = graphprune.prune(overridable(model, "w3"), targets="channels=0.6", calibration={"x": normal(64, 4)}, align=1)
    assert result.proof is not None
    assert result.proof.passed
    assert list(result.keep) == ["w1:1"]


# ---- normal forms -------------------------------------------------------------------------------


def test_a_softmax_of_rows_is_not_one_of_columns() -> None:
    model = net("""net (float[2,3,4] x) => (float[2,3,4] y) <float[4,16] w1, float[16,4] w2> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        s = Shape(b)
        f = Flatten<axis = 2>(b)
        p = Softmax<axis = 0>(f)
        y = Reshape(p, s)
    }""")
    unchanged_without_the_dead(half_dead(model), {"x": normal(2, 3, 4)})


def test_one_sample_is_broadcast_to_a_size_from_the_data() -> None:
    """[N,4] + [k,4] is [N,4] for most N, and [k,4] for N = 1."""
    model = net("""net (float[N,4] x, float[7,4] t) => (float[p,q] y)
    <float[4,16] w1, float[16,4] w2, int64[1] one = {1}, int64 zero = {0}, int64[1] first = {0}, int64[1] rest = {-1}> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        m = ReduceSum<keepdims = 0>(t, one)
        n = NonZero(m)
        i = Gather<axis = 0>(n, zero)
        g = Gather<axis = 0>(t, i)
        c = Add(b, g)
        s = Shape(x)
        k = Gather<axis = 0>(s, first)
        target = Concat<axis = 0>(k, rest)
        y = Reshape(c, target)
    }""")
    half_dead(model)
    result = graphprune.prune(
        model, targets="channels=0.5", importance="magnitude", align=1, repair=(), input_shapes={"x": [7, 4]}
    )
    feeds = {"x": normal(1, 4), "t": normal(7, 4, seed=1)}
    np.testing.assert_allclose(run(result.model, feeds)["y"], run(model, feeds)["y"], atol=1e-5)


def test_names_that_graphprune_would_take_are_taken() -> None:
    model = net("""net (float[N,2,8] x) => (float[N,16] y, int64[2] y_shape)
    <float[8,12] w1, float[12,8] w2, int64[1] rest = {-1}> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        s = Shape<start = 0, end = 1>(x)
        y_shape = Concat<axis = 0>(s, rest)
        y = Reshape(b, y_shape)
    }""")
    unchanged_without_the_dead(half_dead(model), {"x": normal(3, 2, 8)})


def test_a_normal_form_with_a_shuffle_and_a_size_from_the_data_stays() -> None:
    model = net("""net (float[N,3,4,4] x) => (float[N,4,4,4] y, int64[4] z)
    <float[8,3,1,1] w1, int64[5] one = {0, 2, 4, 4, 4}, int64[4] two = {0, 8, 4, 4}, float[4,8,1,1] w2, int64[1] more = {1}> {
        a = Conv(x, w1)
        b = Reshape(a, one)
        c = Transpose<perm = [0, 2, 1, 3, 4]>(b)
        d = Reshape(c, two)
        y = Conv(d, w2)
        s = Shape(x)
        z = Add(s, more)
    }""")
    once = load(model).model
    assert load(once).model.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


@pytest.mark.parametrize("text", ["Bernoulli(half)", "Dropout(half, share, always)", "Multinomial<sample_size = 5>(half)"])
def test_random_numbers_are_drawn_at_run_time(text: str) -> None:
    model = net(f"""net (float[N,4] x) => (float[N,4] y, float[1,4] z)
    <float[4,4] w, float[1,4] half = {{0.5, 0.5, 0.5, 0.5}}, float share = {{0.5}}, bool always = {{1}}> {{
        y = MatMul(x, w)
        z = {text}
    }}""")
    assert text.partition("(")[0].partition("<")[0] in operators(load(model).model)


def test_sparse_constants_of_branches() -> None:
    model = net("""net (float[N,4] x, bool c) => (float[N,4] y) <float[4,8] w1, float[8,4] w2> {
        a = MatMul(x, w1)
        b = MatMul(a, w2)
        y = If(c) <
            then_branch = yes () => (float[N,4] p) { p = Add(b, sparse) },
            else_branch = no () => (float[N,4] q) { q = Neg(b) }
        >
    }""")
    body = model.graph.node[2].attribute[0].g
    sparse = body.sparse_initializer.add()
    sparse.dims.extend([4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([2, 3], np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 2]), ""))
    unchanged_without_the_dead(half_dead(model), {"x": normal(3, 4), "c": np.array(True)})


def test_an_if_whose_result_is_an_output_stays() -> None:
    """Its type is known as the output's, whether constants were folded or not."""
    model = net("""net (float[2,4] x, bool c) => (float[2,4] y, int64[1] z)
    <float[4,4] w, int64[1] first = {0}, int64[1] more = {1}> {
        a = MatMul(x, w)
        s = Shape(a)
        k = Gather<axis = 0>(s, first)
        z = Add(k, more)
        y = If(c) <then_branch = yes () => (float[2,4] p) { p = Relu(a) }, else_branch = no () => (float[2,4] q) { q = Neg(a) }>
    }""")
    once = with_branches(load(model).model)
    assert with_branches(load(once).model).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
