"""What is rare but stands in real files: each is pruned and agrees with the oracle, or is pinned with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from halving import groups, halve, pinned
from nets import initializer, net
from onnx import ModelProto, helper, numpy_helper

import graphprune
from graphprune.edit import positions_in
from graphprune.errors import UnreachableError


def linear(middle: str, weights: str = "", out: int = 8, opset: int = 17) -> ModelProto:
    """A matrix product to 8 features, something in between, and one that reads `out` of them."""
    return net(
        f"""
        linear (float[N,5] x) => (float[N,3] y) <float[5,8] w1, float[{out},3] w2{weights}> {{
            h = MatMul(x, w1)
            {middle}
            y = MatMul(z, w2)
        }}""",
        opset=opset,
    )


def image(middle: str, weights: str = "", inputs: str = "", opset: int = 17) -> ModelProto:
    """A layer before, a convolution to 8 channels, something in between, and a convolution that reads them."""
    return net(
        f"""
        image (float[2,3,4,4] x{inputs}) => (float[2,2,A,B] y)
        <float[6,3,1,1] w0, float[8,6,1,1] w1, float[2,8,1,1] w2{weights}> {{
            g = Conv(x, w0)
            h = Conv(g, w1)
            {middle}
            y = Conv(z, w2)
        }}""",
        opset=opset,
    )


# ---- element types ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_float_types(kind: str) -> None:
    model = net(f"""
        kinds ({kind}[N,5] x) => ({kind}[N,3] y) <{kind}[5,8] w1, {kind}[8] b, {kind}[8,3] w2> {{
            h = MatMul(x, w1)
            g = Add(h, b)
            r = Relu(g)
            y = MatMul(r, w2)
        }}""")
    result = halve(model, tolerance=1e-2 if kind == "float16" else 1e-12)
    assert initializer(result.model, "w1").dtype == initializer(model, "w1").dtype
    assert result.before.bytes == result.before.params * (2 if kind == "float16" else 8)


def test_bfloat16_can_be_pruned_though_no_kernel_can_prove_it() -> None:
    model = net("""
        brain (bfloat16[N,5] x) => (bfloat16[N,3] y) <bfloat16[5,8] w1, bfloat16[8,3] w2> {
            h = MatMul(x, w1)
            y = MatMul(h, w2)
        }""")
    result = graphprune.prune(model, targets=["channels=0.5"], align=1, verify=False)
    kept = result.plan.keep["w1:1"]
    assert np.array_equal(initializer(result.model, "w1").view(np.uint16), initializer(model, "w1").view(np.uint16)[:, kept])


# ---- ties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["t = Transpose(w1)\n y = MatMul(h, t)", "y = Gemm<transB = 1>(h, w1)"])
def test_an_autoencoder_with_tied_weights(last: str) -> None:
    model = net(f"tied (float[N,6] x) => (float[N,6] y) <float[6,8] w1> {{\n h = MatMul(x, w1)\n {last}\n }}")
    assert list(groups(model).values()) == [8]
    halve(model)


def test_a_weight_that_another_network_computes() -> None:
    """A hypernetwork: the second network's weight is an activation of the first."""
    model = net("""
        hyper (float[1,4] c, float[N,5] x) => (float[N,3] y)
        <float[4,6] e, float[6,40] p, int64[2] shape = {5, 8}, float[8,3] w2> {
            q = MatMul(c, e)
            w = MatMul(q, p)
            k = Reshape(w, shape)
            h = MatMul(x, k)
            y = MatMul(h, w2)
        }""")
    assert sorted(groups(model).values()) == [6, 8]
    halve(model, silence=True)


def test_a_weight_multiplied_by_a_mask_at_run_time() -> None:
    halve(
        net("""
        masked (float[N,6] x) => (float[N,3] y) <float[6,8] w1, float[6,8] m, float[8,3] w2> {
            c = Mul(w1, m)
            h = MatMul(x, c)
            y = MatMul(h, w2)
        }""")
    )


def test_rotary_embedding_couples_the_two_halves() -> None:
    """Slice, negate and concatenate in the other order: feature k and k + 4 go together."""
    model = linear(
        """a = Slice(h, zero, four, at)
            b = Slice(h, four, eight, at)
            n = Neg(b)
            r = Concat<axis = -1>(n, a)
            c = Mul(h, cosine)
            s = Mul(r, sine)
            z = Add(c, s)""",
        ", float[8] cosine, float[8] sine, int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] at = {1}",
    )
    assert groups(model) == {"w1:1": 4}
    halve(model)


# ---- shapes and values that depend on sizes ------------------------------------------------------


def test_indices_of_a_pooling_that_are_computed_with() -> None:
    """They count through all channels, so removing some changes them."""
    model = image("p, i = MaxPool<kernel_shape = [2,2], strides = [2,2]>(h)\n f = Cast<to = 1>(i)\n z = Add(p, f)")
    assert groups(model) == {"w0:0": 6}
    halve(model)


def test_unpooling_pins() -> None:
    window = "kernel_shape = [2,2], strides = [2,2]"
    model = image(f"p, i = MaxPool<{window}>(h)\n z = MaxUnpool<{window}>(p, i)")
    assert groups(model) == {"w0:0": 6}
    halve(model)


def test_the_number_of_channels_as_a_value() -> None:
    """x / C, with C read from the shape."""
    model = linear("s = Shape(h)\n n = Gather(s, one)\n f = Cast<to = 1>(n)\n z = Div(h, f)", ", int64 one = {1}")
    analysis = graphprune.analyze(model)
    if analysis.groups:
        halve(model)
    else:
        assert pinned(model)["w1:1"] == "its size is computed with at run time"


def test_batch_normalisation_in_training_mode() -> None:
    vectors = "".join(f", float[8] {name}" for name in "somv")
    model = image("z, m1, v1 = BatchNormalization<training_mode = 1>(h, s, o, m, v)", vectors)
    assert set(groups(model)) >= {"w0:0"}
    halve(model)


def test_padding_by_rule() -> None:
    model = net("""
        same (float[N,3,7,7] x) => (float[N,2,4,4] y) <float[8,3,3,3] w1, float[2,8,3,3] w2> {
            h = Conv<auto_pad = "SAME_UPPER">(x, w1)
            y = Conv<auto_pad = "SAME_LOWER", strides = [2,2]>(h, w2)
        }""")
    assert groups(model) == {"w1:0": 8}
    halve(model)


@pytest.mark.parametrize("shape", ["0,0,-1", "-1,0,8", "0,-1,8"])
def test_reshape_targets_with_copies(shape: str) -> None:
    model = net(f"""
        copies (float[N,T,6] x) => (float[N,T,3] y)
        <float[6,8] w1, int64[4] split = {{0,0,2,4}}, int64[3] join = {{{shape}}}, float[8,3] w2> {{
            h = MatMul(x, w1)
            s = Reshape(h, split)
            j = Reshape(s, join)
            y = MatMul(j, w2)
        }}""")
    assert sorted(groups(model).values()) == [2, 4]
    halve(model, channels=0.7)


def test_tensors_without_elements() -> None:
    model = image("e = Conv(g, none)\n z = Concat<axis = 1>(h, e)", ", float[0,6,1,1] none")
    halve(model)


# ---- pinned -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("middle", "extra", "inputs", "operator"),
    [
        ("z = ReverseSequence<batch_axis = 0, time_axis = 1>(h, i)", "", ", int64[2] i", "ReverseSequence"),
        ("z = MaxRoiPool<pooled_shape = [4,4]>(h, r)", "", ", float[2,5] r", "MaxRoiPool"),
    ],
)
def test_operators_that_nobody_has_a_rule_for(middle: str, extra: str, inputs: str, operator: str) -> None:
    model = image(middle, extra, inputs)
    assert groups(model) == {"w0:0": 6}
    assert operator in pinned(model)["w1:0"]
    if operator != "MaxRoiPool":
        halve(model)


def test_sequences_pin() -> None:
    model = image("q = SplitToSequence<axis = 1>(h, sizes)\n z = SequenceAt(q, zero)", ", int64 zero = {0}, int64[1] sizes = {8}")
    assert "w1:0" in pinned(model)
    halve(model)


def test_a_loop_that_captures_a_value() -> None:
    model = image("z = Identity(h)", ", int64 trips = {3}, bool go = {1}")
    body = onnx.parser.parse_graph("""
        body (int64 i, bool go_in, float[2,8,4,4] state) => (bool go_out, float[2,8,4,4] next) {
            go_out = Identity(go_in)
            next = Add(state, h)
        }""")
    model.graph.node[2].CopyFrom(helper.make_node("Loop", ["trips", "go", "h"], ["z"], body=body))
    assert groups(model) == {"w0:0": 6}
    halve(model)


def test_a_sparse_weight_stays_as_it_is() -> None:
    model = linear("z = Relu(h)")
    dense = initializer(model, "w2").copy()
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "w2"]
    flat = dense.ravel()
    places = np.arange(0, flat.size, 2)
    values, indices = numpy_helper.from_array(flat[places], "w2"), numpy_helper.from_array(places.astype(np.int64), "w2_places")
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8, 3]))
    with pytest.raises(UnreachableError):
        graphprune.prune(model, targets=["channels=0.5"], align=1)


def test_outputs_that_are_weights_or_inputs() -> None:
    model = linear("z = Relu(h)")
    for name, shape in (("w1", [5, 8]), ("x", ["N", 5])):
        model.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
    assert groups(model) == {}
    assert "network output 'w1'" in pinned(model)["w1:1"]


def test_a_network_without_nodes() -> None:
    model = net("empty (float[N,5] x) => (float[N,5] x) {}")
    with pytest.raises(UnreachableError, match="every axis is pinned"):
        graphprune.prune(model, targets=["channels=0.5"])


# ---- orders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "subset", "expected"), [([5, 0, 3], [0, 3, 5], [1, 2, 0]), ([2, 4, 9], [9, 2], [2, 0]), ([7], [], [])]
)
def test_positions_in_a_list_of_any_order(kept: list[int], subset: list[int], expected: list[int]) -> None:
    """A three-cycle: its inverse is another permutation."""
    assert positions_in(np.array(kept), np.array(subset, np.int64)).tolist() == expected
