"""If: branches are analysed, pruned and proven like the rest, and go back to where they were."""

from __future__ import annotations

import numpy as np
import onnx
import oracle
import pytest
from halving import groups, keep_exactly, members, pinned
from nets import net
from onnx import ModelProto, TensorProto, helper, numpy_helper

import graphprune
from graphprune.branches import with_branches

RNG = np.random.default_rng(11)


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def branch(name: str, nodes: list[onnx.NodeProto], result: str, weights: list[TensorProto] | None = None) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)], weights or [])


def chooses(then: onnx.GraphProto, other: onnx.GraphProto, out: int = 8) -> ModelProto:
    """Two convolutions with an If between them that makes `out` channels."""
    model = net(f"""
        chooses (float[2,3,6,6] x, bool flag) => (float[2,4,6,6] y) <float[6,3,1,1] w0, float[4,{out},1,1] w1> {{
            a = Conv(x, w0)
            b = Identity(a)
            y = Conv(b, w1)
        }}""")
    node = helper.make_node(
        "If", ["flag"], ["b"], name="choice", doc_string="one or the other", then_branch=then, else_branch=other
    )
    model.graph.node[1].CopyFrom(node)
    return model


def convolutions() -> ModelProto:
    """Each branch has a convolution with a weight of the same name."""
    graphs = [
        branch(
            name,
            [helper.make_node("Conv", ["a", "w"], ["c"]), helper.make_node(operator, ["c"], ["d"])],
            "d",
            [weight("w", 8, 6, 1, 1)],
        )
        for name, operator in (("yes", "Relu"), ("no", "Neg"))
    ]
    return chooses(*graphs)


def both(model: ModelProto, result: graphprune.Result) -> None:
    """Either branch of the pruned network equals the masked one: weights that are contracted are zeroed by hand."""
    original = onnx.ModelProto.FromString(with_branches(result.original.model).SerializeToString())
    kept = result.plan.tensors["w0"]["0"]
    arrays = {tensor.name: tensor for tensor in original.graph.initializer}
    zeroed = numpy_helper.to_array(arrays["w0"]).copy()
    zeroed[np.setdiff1d(np.arange(6), kept)] = 0
    arrays["w0"].CopyFrom(numpy_helper.from_array(zeroed, "w0"))
    for name, axes in result.plan.tensors.items():
        if name == "w1":
            masked = numpy_helper.to_array(arrays["w1"]).copy()
            masked[:, np.setdiff1d(np.arange(masked.shape[1]), axes["1"])] = 0
            arrays["w1"].CopyFrom(numpy_helper.from_array(masked, "w1"))
    feeds = oracle.random_feeds(model)
    for flag in (True, False):
        feeds["flag"] = np.asarray(flag)
        expected, actual = oracle.run(original, feeds)["y"], oracle.run(result.model, feeds)["y"]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def halve(model: ModelProto) -> graphprune.Result:
    result = graphprune.prune(model, targets=["channels=0.5"], align=1, selection="uniform")
    assert result.proof is not None
    assert result.proof.passed
    onnx.checker.check_model(result.model)
    both(model, result)
    again = graphprune.apply_plan(model, result.plan, verify=False)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    return result


def test_weights_in_both_branches_belong_to_the_groups() -> None:
    model = convolutions()
    assert members(model, "w0:0") == {"w0:0 producer", "w:1 consumer", "w_1:1 consumer"}
    assert members(model, "w:0") == {"w:0 producer", "w_1:0 producer", "w1:1 consumer"}
    result = halve(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "If", "Conv"]
    node = result.model.graph.node[1]
    assert (node.name, node.doc_string) == ("choice", "one or the other")
    assert [[inner.op_type for inner in a.g.node] for a in node.attribute] == [["Conv", "Relu"], ["Conv", "Neg"]]


def test_a_branch_may_hand_on_what_is_outside() -> None:
    then = branch("yes", [helper.make_node("Identity", ["a"], ["t"])], "t")
    other = branch("no", [helper.make_node("Relu", ["a"], ["e"])], "e")
    model = chooses(then, other, out=6)
    assert members(model, "w0:0") == {"w0:0 producer", "w1:1 consumer"}
    halve(model)


def test_branches_within_branches() -> None:
    inner = [branch(name, [helper.make_node(op, ["a"], ["i"])], "i") for name, op in (("p", "Tanh"), ("q", "Relu"))]
    nested = helper.make_node("If", ["flag"], ["n"], name="inner", then_branch=inner[0], else_branch=inner[1])
    then = branch("yes", [nested, helper.make_node("Neg", ["n"], ["t"])], "t")
    other = branch("no", [helper.make_node("Relu", ["a"], ["e"])], "e")
    model = chooses(then, other, out=6)
    assert groups(model) == {"w0:0": 6}
    result = halve(model)
    outer = result.model.graph.node[1].attribute[0].g
    assert [node.op_type for node in outer.node] == ["If", "Neg"]


def test_branches_of_two_ifs_without_names() -> None:
    """Each holds an If that writes the same value as the other one's."""

    def nested(*operators: str) -> onnx.NodeProto:
        graphs = [branch(name, [helper.make_node(op, ["a"], ["i"])], "i") for name, op in zip("pq", operators, strict=True)]
        return helper.make_node("If", ["flag"], ["o"], then_branch=graphs[0], else_branch=graphs[1])

    model = chooses(branch("yes", [nested("Tanh", "Relu")], "o"), branch("no", [nested("Neg", "Abs")], "o"), out=6)
    assert groups(model) == {"w0:0": 6}
    result = halve(model)
    bodies = [attribute.g.node[0] for attribute in result.model.graph.node[1].attribute]
    found = [[attribute.g.node[0].op_type for attribute in body.attribute] for body in bodies]
    assert found == [["Tanh", "Relu"], ["Neg", "Abs"]]


def test_what_the_rewrite_adds_stays_in_the_branch() -> None:
    """A strided Slice of kept channels becomes a Slice and a Gather."""
    slice_ = helper.make_node("Slice", ["a", "s", "e", "axis", "step"], ["t"], name="every second")
    constants = [numpy_helper.from_array(np.array([v]), n) for n, v in (("s", 0), ("e", 6), ("axis", 1), ("step", 2))]
    then = branch("yes", [slice_], "t", constants)
    other = branch("no", [helper.make_node("Conv", ["a", "w"], ["o"])], "o", [weight("w", 3, 6, 1, 1)])
    result = keep_exactly(chooses(then, other, out=3), {"w0:0": [0, 1]})
    assert [node.op_type for node in result.model.graph.node[1].attribute[0].g.node] == ["Slice", "Gather"]


def test_a_branch_that_the_inputs_do_not_take_is_proven_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = convolutions()
    result = graphprune.prune(model, targets=["channels=0.5"], align=1, selection="uniform")
    for place in range(2):
        wrong = ModelProto.FromString(result.model.SerializeToString())
        node = wrong.graph.node[1].attribute[place].g.node[0]
        tensor = next(tensor for tensor in wrong.graph.initializer if tensor.name == node.input[1])
        tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1, axis=1), tensor.name))
        assert not graphprune.verify(model, result.plan, wrong).passed


def test_importing_is_idempotent() -> None:
    once = with_branches(graphprune.load(convolutions()).model)
    twice = with_branches(graphprune.load(once).model)
    assert once.SerializeToString(deterministic=True) == twice.SerializeToString(deterministic=True)
    onnx.checker.check_model(once)


def test_results_of_different_ranks_pin() -> None:
    then = branch("yes", [helper.make_node("Relu", ["a"], ["t"])], "t")
    reduced = helper.make_node("Flatten", ["a"], ["e"])
    model = chooses(then, branch("no", [reduced], "e"), out=6)
    assert groups(model) == {}
    assert pinned(model)["w0:0"]
