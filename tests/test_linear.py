"""Nodes as linear maps: rows times matrix plus bias is what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import pytest
from nets import initializer, net, residual
from onnx import ModelProto

import graphprune
from graphprune.calibration import linear_nodes
from graphprune.graph import with_outputs
from graphprune.linear import Linear
from graphprune.runtime import random_inputs, run
from graphprune.tails import tail_of


def conv(attributes: str, weight: str = "12,4,3,3", sizes: str = "9,11") -> ModelProto:
    return net(f"""
        one (float[N,4,{sizes}] x) => (float[N,12,H,W] y) <float[{weight}] w, float[12] b> {{
            y = Conv<{attributes}>(x, w, b)
        }}""")


def deconv(attributes: str, weight: str) -> ModelProto:
    return net(f"""
        one (float[N,4,5,7] x) => (float[N,12,H,W] y) <float[{weight}] w, float[12] b> {{
            y = ConvTranspose<{attributes}>(x, w, b)
        }}""")


def only(model: ModelProto) -> tuple[graphprune.graph.Graph, Linear]:
    graph = graphprune.load(model)
    (node,) = linear_nodes(graph).values()
    return graph, node


@pytest.mark.parametrize(
    "model",
    [
        conv("pads = [1, 1, 1, 1]"),
        conv("pads = [0, 1, 2, 3], strides = [2, 3]"),
        conv("dilations = [2, 1], strides = [1, 2]"),
        conv("group = 2, pads = [1, 0, 0, 1]", "12,2,3,3"),
        conv("group = 4, dilations = [2, 2], pads = [2, 2, 2, 2]", "12,1,3,3"),
        conv('auto_pad = "SAME_UPPER", strides = [2, 2]', "12,4,3,2"),
        conv('auto_pad = "SAME_LOWER", strides = [2, 3]', "12,4,4,3"),
        conv('auto_pad = "VALID"'),
        net("a (float[N,4,9] x) => (float[N,6,M] y) <float[6,4,3] w> { y = Conv<strides = [2]>(x, w) }"),
        net("a (float[N,4,5,6,7] x) => (float[N,6,A,B,C] y) <float[6,4,1,2,3] w> { y = Conv(x, w) }"),
        deconv("strides = [1, 1]", "4,12,2,2"),
        deconv("strides = [2, 2]", "4,12,2,2"),
        deconv("strides = [2, 3], pads = [1, 0, 2, 1], output_padding = [1, 2]", "4,12,4,3"),
        deconv("dilations = [2, 3], strides = [3, 2], pads = [0, 2, 1, 0]", "4,12,3,2"),
        deconv("group = 2, strides = [2, 2], pads = [1, 1, 1, 1]", "4,6,3,3"),
        deconv("group = 4, strides = [2, 2]", "4,3,2,2"),
        net("a (float[N,4,9] x) => (float[N,6,M] y) <float[4,6,3] w> { y = ConvTranspose<strides = [2]>(x, w) }"),
        net("a (float[N,4,3,4,2] x) => (float[N,6,A,B,C] y) <float[4,6,1,2,3] w> { y = ConvTranspose<strides = [1,2,3]>(x, w) }"),
        net("a (float[N,5] x) => (float[N,7] y) <float[5,7] w, float[7] b> { y = Gemm(x, w, b) }"),
        net("a (float[N,5] x) => (float[N,7] y) <float[7,5] w> { y = Gemm<transB = 1>(x, w) }"),
        net("a (float[N,3,2,5] x) => (float[N,3,2,7] y) <float[5,7] w> { y = MatMul(x, w) }"),
        net("""a (float[N,5] x, int64[M] k) => (float[N,7] y, float[M,5] z) <float[7,5] w>
            { t = Transpose<perm = [1, 0]>(w)  y = MatMul(x, t)  z = Gather<axis = 0>(w, k) }"""),
    ],
)
def test_rows_times_matrix_is_the_result(model: ModelProto) -> None:
    graph, node = only(model)
    feeds = random_inputs(graph, 1, batch=3)
    values = run(with_outputs(graph.model, [node.result], graph.element_types), feeds) | feeds
    rng = np.random.default_rng(0)
    assert node.result_shape(values[node.data].shape) == values[node.result].shape
    picks = node.picks(values[node.result].shape, 7, rng)
    weight = graph.constant(node.weight)
    assert weight is not None
    matrix = node.matrix(weight)
    expected = np.matmul(node.rows(values[node.data], picks), matrix)
    if node.bias:
        bias = graph.constant(node.bias)
        assert bias is not None
        expected = expected + bias[node.result_channels()][:, None]
    np.testing.assert_allclose(node.results(values[node.result], picks), expected, atol=1e-5)
    np.testing.assert_array_equal(node.weight_of(matrix), weight)
    assert node.channels().shape == (node.blocks, node.columns) == matrix.shape[:2]


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm<alpha = 2.0>(x, w)",
        "y = Gemm<transA = 1>(xt, w)",
        "y = MatMul(w, x)",
    ],
)
def test_other_products_are_no_linear_maps(body: str) -> None:
    graph = graphprune.load(net(f"a (float[5,5] x, float[5,5] xt) => (float[5,5] y) <float[5,5] w> {{ {body} }}"))
    assert not linear_nodes(graph)


@pytest.mark.parametrize("attributes", ['auto_pad = "SAME_UPPER"', "output_shape = [10, 14]"])
def test_transposed_convolutions_whose_padding_is_not_given(attributes: str) -> None:
    assert not linear_nodes(graphprune.load(deconv(f"{attributes}, strides = [2, 2]", "4,12,3,3")))


def test_picks_are_positions_of_every_sample_without_repetition() -> None:
    _, node = only(conv("pads = [1, 1, 1, 1]"))
    sample, row, column = node.picks((3, 12, 9, 11), 20, np.random.default_rng(0))
    assert np.bincount(sample).tolist() == [20, 20, 20]
    assert len({*zip(sample.tolist(), row.tolist(), column.tolist(), strict=True)}) == 60
    assert row.max() < 9
    assert column.max() < 11
    everything = node.picks((2, 12, 2, 3), 20, np.random.default_rng(0))
    assert len(everything[0]) == 12


# ---- tails --------------------------------------------------------------------------------------


def tail_values(model: ModelProto, position: int) -> None:
    """total = gain * result + offset + other, on random inputs."""
    graph = graphprune.load(model)
    node = linear_nodes(graph)[position]
    tail = tail_of(graph, node)
    feeds = random_inputs(graph, 2, batch=3)
    names = [name for name in (node.result, tail.total, tail.other) if name]
    values = run(with_outputs(graph.model, [name for name in names if name not in feeds], graph.element_types), feeds) | feeds
    shape = [1] * values[node.result].ndim
    shape[node.result_axis] = -1
    expected = tail.gain.reshape(shape) * values[node.result] + tail.offset.reshape(shape)
    np.testing.assert_allclose(values[tail.total], expected + (values[tail.other] if tail.other else 0), atol=1e-5)


def test_the_tail_of_a_residual_branch_is_the_sum() -> None:
    model = net("""
        r (float[N,4,6,6] x) => (float[N,4,6,6] y)
        <float[4,4,3,3] w, float[4] s, float[4] b, float[4] m, float[4] v, float[4,1,1] g> {
            c = Conv<pads = [1, 1, 1, 1]>(x, w)
            n = BatchNormalization(c, s, b, m, v)
            k = Mul(g, n)
            t = Add(x, k)
            y = Relu(t)
        }""")
    tail_values(model, 0)
    graph = graphprune.load(model)
    tail = tail_of(graph, linear_nodes(graph)[0])
    assert (tail.total, tail.other, tail.straight, tail.range) == ("t", "x", "k", (0, np.inf))
    assert tail.shift is not None
    assert (tail.shift.tensor, tail.shift.factor) == ("m", -1)
    assert (tail.alone.total, tail.alone.other) == ("k", "")


def test_the_bias_of_a_product_is_added_behind_it() -> None:
    model = net("""
        r (float[N,3,8] x) => (float[N,3,8] y) <float[8,8] w, float[8] b> {
            p = MatMul(x, w)
            q = Add(b, p)
            y = Add(q, x)
        }""")
    tail_values(model, 0)
    graph = graphprune.load(model)
    tail = tail_of(graph, linear_nodes(graph)[0])
    assert tail.shift is not None
    assert (tail.shift.tensor, tail.shift.factor) == ("b", 1)
    assert (tail.total, tail.other) == ("y", "x")


@pytest.mark.parametrize("tokens", [8, 3])
def test_a_normalisation_along_another_axis_ends_the_tail(tokens: int) -> None:
    model = net(f"""
        r (float[N,{tokens},8] x) => (float[N,{tokens},8] y)
        <float[8,8] w, float[{tokens}] s, float[{tokens}] b, float[{tokens}] m, float[{tokens}] v> {{
            p = MatMul(x, w)
            y = BatchNormalization(p, s, b, m, v)
        }}""")
    tail_values(model, 0)
    graph = graphprune.load(model)
    assert tail_of(graph, linear_nodes(graph)[0]).total == "p"


def test_a_result_that_is_read_twice_ends_the_tail() -> None:
    model = net("""
        r (float[N,8] x) => (float[N,8] y) <float[8,8] w, float[8,8] u> {
            p = MatMul(x, w)
            q = MatMul(p, u)
            y = Add(p, q)
        }""")
    graph = graphprune.load(model)
    first, second = (tail_of(graph, node) for node in linear_nodes(graph).values())
    assert (first.total, first.other, first.shift) == ("p", "", None)
    assert (second.total, second.other) == ("y", "p")


def test_clips_bound_what_is_seen() -> None:
    model = net("""
        r (float[N,8] x) => (float[N,8] y) <float[8,8] w, float low = {-1.0}, float high = {2.0}> {
            p = MatMul(x, w)
            y = Clip(p, low, high)
        }""")
    graph = graphprune.load(model)
    assert tail_of(graph, linear_nodes(graph)[0]).range == (-1, 2)


def test_every_layer_of_a_network_is_found() -> None:
    model = residual()
    graph = graphprune.load(model)
    for position in linear_nodes(graph):
        tail_values(model, position)
    assert {node.weight for node in linear_nodes(graph).values()} >= {name for name in ("stem",) if initializer(model, name).size}
