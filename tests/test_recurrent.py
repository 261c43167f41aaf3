"""LSTM, GRU and RNN: the hidden size goes through gates, directions, states and peepholes."""

from __future__ import annotations

from itertools import product

import pytest
from halving import groups, halve, keep_exactly, members, pinned, shapes
from nets import attribute, net
from onnx import ModelProto

import graphprune

GATES = {"LSTM": (4, 8), "GRU": (3, 6), "RNN": (1, 2)}


def recurrent(operator: str, directions: int = 1, inputs: str = ", b", weights: str = "", extra: str = "") -> ModelProto:
    """A projection, a recurrent layer and a head."""
    gates, biases = GATES[operator]
    direction = "bidirectional" if directions == 2 else "forward"
    return net(f"""
        recurrent (float[5,2,3] x) => (float[5,2,4] y)
        <float[3,6] w0, float[{directions},{8 * gates},6] w, float[{directions},{8 * gates},8] r,
         float[{directions},{8 * biases}] b, float[{8 * directions},4] w1, int64[3] flat = {{5,2,{8 * directions}}}{weights}> {{
            f = MatMul(x, w0)
            {extra}
            o = {operator}<hidden_size = 8, direction = "{direction}">(f, w, r{inputs})
            t = Transpose<perm = [0,2,1,3]>(o)
            h = Reshape(t, flat)
            y = MatMul(h, w1)
        }}""")


@pytest.mark.parametrize(("operator", "directions", "bias"), list(product(GATES, (1, 2), (True, False))))
def test_the_hidden_size_shrinks(operator: str, directions: int, bias: bool) -> None:
    model = recurrent(operator, directions, ", b" if bias else "")
    own = {"w:1 producer", "r:1 producer", "r:2 consumer", "w1:0 consumer"}
    assert members(model, "w:1") == own | ({"b:1 carrier"} if bias else set())
    assert groups(model) == {"w0:1": 6, "w:1": 8}
    halve(model)


def test_sizes_are_written_and_gates_stay_in_order() -> None:
    result = keep_exactly(recurrent("LSTM", 2), {"w:1": [1, 2, 5]})
    assert attribute(result.model, "LSTM", "hidden_size") == 3
    found = shapes(result.model)
    assert (found["w"], found["r"], found["b"], found["w1"]) == ([2, 12, 6], [2, 12, 3], [2, 24], [6, 4])
    assert result.plan.tensors["w"]["1"] == [8 * gate + unit for gate in range(4) for unit in (1, 2, 5)]


def test_macs_count_input_and_recurrence_for_every_step() -> None:
    result = halve(recurrent("LSTM", 2, ", b"))
    steps = 5 * 2
    own = steps * 2 * 4 * 8 * (6 + 8)
    assert result.before.macs == steps * 3 * 6 + own + steps * 16 * 4


def test_a_linear_step_before_the_reset_gate() -> None:
    model = recurrent("GRU")
    node = next(node for node in model.graph.node if node.op_type == "GRU")
    node.attribute.add(name="linear_before_reset", i=1, type=2)
    halve(model)


def test_peepholes_and_initial_states() -> None:
    weights = ", float[1,24] p, float[1,2,8] h0, float[1,2,8] c0"
    model = recurrent("LSTM", 1, ", b, , h0, c0, p", weights)
    assert {"p:1 carrier", "h0:2 carrier", "c0:2 carrier"} <= members(model, "w:1")
    halve(model)


def test_an_initial_state_that_is_computed_belongs_to_the_group() -> None:
    extra = "s = Slice(x, zero, one)\n h0 = MatMul(s, ws)"
    model = recurrent("GRU", 1, ", b, , h0", ", float[3,8] ws, int64[1] zero = {0}, int64[1] one = {1}", extra)
    assert {"ws:1 producer", "r:2 consumer"} <= members(model, "ws:1")
    halve(model)


def test_an_initial_state_from_outside_pins() -> None:
    model = recurrent("GRU", 1, ", b, , h0")
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "h0"
    for dim, size in zip(model.graph.input[1].type.tensor_type.shape.dim, (1, 2, 8), strict=True):
        dim.dim_value = size
    assert groups(model) == {"w0:1": 6}
    assert pinned(model)["w:1"] == "network input 'h0' keeps its shape"


def test_zero_states_are_dropped_whatever_they_are_made_from() -> None:
    extra = "d = Shape(f)\n n = Slice(d, one, two)\n e = Concat<axis = 0>(one, n, eight)\n h0 = ConstantOfShape(e)"
    weights = ", int64[1] one = {1}, int64[1] two = {2}, int64[1] eight = {8}"
    model = recurrent("LSTM", 1, ", b, , h0, h0", weights, extra)
    assert groups(model) == {"w0:1": 6, "w:1": 8}
    result = halve(model)
    node = next(node for node in result.model.graph.node if node.op_type == "LSTM")
    assert len(node.input) == 4


def test_the_batch_may_come_first() -> None:
    """layout = 1, which ONNX Runtime has no kernel for: checked against the time-first network by the result of shrinking."""
    model = recurrent("LSTM", 1, ", b")
    first = ModelProto.FromString(model.SerializeToString())
    node = next(node for node in first.graph.node if node.op_type == "LSTM")
    node.attribute.add(name="layout", i=1, type=2)
    for value, sizes in ((first.graph.input[0], (2, 5, 3)), (first.graph.output[0], (2, 5, 4))):
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    shape = next(tensor for tensor in first.graph.initializer if tensor.name == "flat")
    shape.ClearField("raw_data")
    shape.int64_data[:] = [2, 5, 8]
    transpose = next(node for node in first.graph.node if node.op_type == "Transpose")
    transpose.attribute[0].ints[:] = [0, 1, 2, 3]
    one, two = (graphprune.prune(each, targets=["channels=0.5"], align=1, verify=False) for each in (model, first))
    assert one.keep == two.keep
    assert {t.name: list(t.dims) for t in one.model.graph.initializer if t.name != "flat"} == {
        t.name: list(t.dims) for t in two.model.graph.initializer if t.name != "flat"
    }


def test_samples_that_are_channels_are_counted() -> None:
    """What a recurrent layer takes for its batch may be a prunable axis of a convolution."""
    model = net("""
        odd (float[4,3,6] x) => (float[4,2,1,5] y)
        <float[7,3,1] w0, float[1,20,6] w, float[1,20,5] r, float[2,7,1,1] w1, int64[4] order = {4,7,1,5}> {
            f = Conv(x, w0)
            o = LSTM<hidden_size = 5>(f, w, r)
            t = Transpose<perm = [0,2,1,3]>(o)
            y = Conv(t, w1)
        }""")
    assert groups(model) == {"w0:0": 7}
    halve(model)
