"""Times of single nodes: what ONNX Runtime fuses and renames is traced back."""

from __future__ import annotations

import pytest
from nets import net, plain, residual
from onnx import ModelProto

from graphprune import profiling
from graphprune.errors import UsageError
from graphprune.graph import Graph
from graphprune.layers import layers_of
from graphprune.pipeline import prune
from graphprune.profiling import NodeTimes, node_times


def layer_names(model: ModelProto) -> tuple[ModelProto, ModelProto, list[str]]:
    result = prune(model, targets=["channels=0.5"], align=1, verify=False)
    layers = layers_of(result.analysis, result.analysis.present({}))
    return result.original.model, result.model, [layer.node for layer in layers]


@pytest.mark.parametrize("model", [plain(), residual()], ids=["plain", "residual"])
def test_every_layer_is_found_before_and_after(model: ModelProto) -> None:
    before, after, names = layer_names(model)
    for each in (before, after):
        times = node_times(each, names)
        assert set(times.nodes) == set(names)
        assert all(time > 0 for time in times.nodes.values())
        assert times.total == pytest.approx(sum(times.nodes.values()) + times.other)


def test_a_product_with_a_bias_is_found_although_it_becomes_another_operator() -> None:
    model = net("""
        mlp (float[4,16] x) => (float[4,8] y)
        <float[16,32] w1, float[32] b1, float[32,8] w2, float[8] b2> {
            a = MatMul(x, w1)
            b = Add(a, b1)
            c = Relu(b)
            d = MatMul(c, w2)
            y = Add(d, b2)
        }""")
    before, _, names = layer_names(model)
    assert set(node_times(before, names).nodes) == set(names)


def test_a_name_that_is_part_of_another_is_not_mixed_up() -> None:
    model = net("""
        twins (float[1,8,4,4] x) => (float[1,8,4,4] y)
        <float[8,8,1,1] w1, float[8,8,3,3] w2> {
            a = Conv(x, w1)
            y = Conv<pads = [1,1,1,1]>(a, w2)
        }""")
    model.graph.node[0].name, model.graph.node[1].name = "conv", "conv_nchwc"
    before, _, names = layer_names(model)
    assert set(node_times(before, names).nodes) == {"conv", "conv_nchwc"}


def test_what_was_not_asked_for_is_other_time() -> None:
    before, _, names = layer_names(plain())
    everything, nothing = node_times(before, names), node_times(before, [])
    assert nothing.nodes == {}
    assert nothing.total > 0
    assert everything.other > 0
    assert NodeTimes({"a": 1.0, "b": 2.0}, 0.5).total == 3.5


def test_nodes_in_branches_are_counted_once() -> None:
    model = net("""
        choice (float[1,4,8,8] x, bool c) => (float[1,4,8,8] y) <float[4,4,1,1] w1, float[4,4,1,1] w2> {
            y = If(c) <
                then_branch = one () => (float[1,4,8,8] a) { a = Conv(x, w1) },
                else_branch = two () => (float[1,4,8,8] b) { b = Conv(x, w2) }
            >
        }""")
    runs = profiling._profile(model, Graph(model), 1, None)
    assert len(runs) == profiling.RUNS - profiling.WARM
    for events in runs:
        assert {event["args"]["op_name"] for event in events} >= {"Conv"}
        assert not {event["args"]["op_name"] for event in events} & {"If"}


def test_a_product_that_takes_a_transposition_in_is_found() -> None:
    model = net("""
        turned (float[1,16,6] x) => (float[1,6,8] y)
        <float[16,32] w1, float[32,8] w2> {
            t = Transpose<perm = [0,2,1]>(x)
            a = MatMul(t, w1)
            r = Relu(a)
            y = MatMul(r, w2)
        }""")
    before, _, names = layer_names(model)
    assert set(node_times(before, names).nodes) == set(names)


def test_a_model_that_cannot_run_is_named() -> None:
    model = net("""
        sizes (float[N] x) => (float[M] y) <int64[1] shape = {3}> {
            y = Reshape(x, shape)
        }""")
    with pytest.raises(UsageError, match=r"ONNX Runtime cannot run the model: .*Check --input-shape"):
        node_times(model, [])
