"""The first half of the proof: the normal form against the model as it was given."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result as Outcome
from nets import initializer, net, operators, plain, residual, set_initializer, write
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import graphprune
from graphprune import pipeline
from graphprune.errors import ProofError
from graphprune.given import Given
from graphprune.graph import Graph
from graphprune.model_file import read_model
from graphprune.proof import Proof
from graphprune.value_numbers import same_computation

HALF = {"targets": "channels=0.5", "align": 1}

LEGACY = """net (float[N,3,8,8] x) => (float[N,4,4,16] y)
<float[8,3,3,3] w, float[4,8,1,1] v, int64[4] sizes = {0, 4, 4, 16}> {
    a = Conv<pads = [1, 1, 1, 1]>(x, w)
    r = Relu(a)
    b = Conv(r, v)
    s = Identity(sizes)
    t = Reshape(b, s)
    y = Softmax<axis = 3>(t)
}"""
"""Before opset 13, with a constant to fold: the normal form is another graph."""


def legacy() -> ModelProto:
    return net(LEGACY, opset=11)


def proof_of(source: object) -> Proof:
    proof = graphprune.prune(source, **HALF).proof
    assert proof is not None
    return proof


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[ModelProto], None]) -> None:
    """Let normalisation make a mistake."""
    right = pipeline.normalize

    def wrong(model: ModelProto, shapes: object = None) -> Graph:
        graph = right(model, shapes)  # type: ignore[arg-type]
        change(graph.model)
        return Graph(graph.model, graph.shapes, graph.sized)

    monkeypatch.setattr(pipeline, "normalize", wrong)


def double(model: ModelProto) -> None:
    set_initializer(model, "w", 2 * initializer(model, "w"))


@pytest.fixture(params=["file", "object"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    return write(legacy(), tmp_path / "model.onnx") if request.param == "file" else legacy()


def test_both_agree(source: object) -> None:
    proof = proof_of(source)
    assert proof.passed
    assert proof.reservation == ""


def test_a_mistake_of_normalisation_is_found(source: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked original has it, too."""
    changing(monkeypatch, double)
    with pytest.raises(ProofError, match=r"normal form .* not compute what the model computes: 'a' differs \(error 5\.0e-01"):
        proof_of(source)


def test_a_normal_form_for_single_samples_alone_is_found(source: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof would go on with one sample, where nothing is wrong."""
    changing(monkeypatch, lambda model: set_initializer(model, "t_shape", np.array([1, 4, 4, 16], np.int64)))
    with pytest.raises(
        ProofError, match=r"does not run on inputs of the shapes \{'x': \(2, 3, 8, 8\)\}, on which the model runs"
    ):
        proof_of(source)


def test_it_is_found_where_a_plan_is_applied_or_verified(source: object, monkeypatch: pytest.MonkeyPatch) -> None:
    result = graphprune.prune(source, **HALF)
    graphprune.verify(source, result.plan, result.model)
    changing(monkeypatch, double)
    monkeypatch.setattr(pipeline, "replay", lambda graph, plan: (result.analysis, result.analysis.present(plan.keep)))
    with pytest.raises(ProofError, match="the normal form"):
        graphprune.apply_plan(source, result.plan)
    with pytest.raises(ProofError, match="the normal form"):
        graphprune.verify(source, result.plan, result.model)


def test_it_is_not_looked_for_without_the_proof(source: object, monkeypatch: pytest.MonkeyPatch) -> None:
    changing(monkeypatch, double)
    assert graphprune.prune(source, verify=False, **HALF).proof is None


def test_a_mistake_in_the_inside_that_hardly_shows_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax of small numbers is nearly the same whatever they are."""
    model = legacy()
    set_initializer(model, "v", 1e-5 * initializer(model, "v"))
    changing(monkeypatch, double)
    with pytest.raises(ProofError, match="'a' differs"):
        proof_of(model)


def test_a_file_that_changed_meanwhile_is_not_compared(tmp_path: Path) -> None:
    path = write(legacy(), tmp_path / "model.onnx")
    graph = graphprune.load(path)
    write(plain(), path)
    assert proof_of(graph).reservation == "not compared with the model as it was given: it has changed meanwhile"
    path.unlink()
    proof = proof_of(graph)
    assert proof.reservation.endswith("it has changed meanwhile"), "the outcome stays"
    assert str(proof).endswith("inner results); not compared with the model as it was given: it has changed meanwhile")


def test_a_model_that_cannot_run_as_it_was_given() -> None:
    graph = graphprune.load(legacy())
    wrong = legacy()
    set_initializer(wrong, "sizes", np.array([0, 2, 4, 16]))
    graph.given = Given(wrong)
    start = "not compared with the model as it was given: ONNX Runtime cannot run the model as it was given: "
    assert proof_of(graph).reservation.startswith(start)


@pytest.mark.parametrize("opset", [11, 17])
def test_random_numbers_are_no_difference(opset: int) -> None:
    """ONNX Runtime seeds a node by its place, and the constant in front of it goes."""
    model = net(
        """net (float[2,3,8,8] x) => (float[2,4,8,8] y, float[1] k)
        <float[8,3,1,1] w, float[4,8,1,1] v, float[1] one = {1}, float[1] two = {2}> {
            k = Add(one, two)
            a = Conv(x, w)
            r = Relu(a)
            b = Conv(r, v)
            z = RandomNormal<shape = [2, 4, 8, 8]>()
            y = Add(b, z)
        }""",
        opset=opset,
    )
    graph = graphprune.load(model)
    graph.given = Given(model)
    assert pipeline.check_normal_form(graph, []) == ""


def test_the_outcome_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second prune of a graph meets the same error, and needs no file."""
    path = write(legacy(), tmp_path / "model.onnx")
    changing(monkeypatch, double)
    graph = graphprune.load(path)
    for _ in range(2):
        with pytest.raises(ProofError, match="the normal form"):
            proof_of(graph)
        path.unlink(missing_ok=True)


def test_graphs_and_results_can_be_pickled(source: object) -> None:
    result = graphprune.prune(source, **HALF)
    graph = graphprune.load(source)
    assert pickle.loads(pickle.dumps(graph)).given is not None or not isinstance(source, Path)
    assert len(pickle.loads(pickle.dumps(result)).model.graph.node) == len(result.model.graph.node)


def test_nothing_holds_a_model_longer_than_the_comparison() -> None:
    result = graphprune.prune(legacy(), **HALF)
    assert result.original.given is not None
    assert result.original.given.model is None
    assert result.analysis.graph.given is None


def test_inputs_that_nobody_can_make_up(graphprune_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    model = net(
        """net (string[N] s, float[N,3] x) => (float[N,3] y, string[N] t) <float[3] a, float[3] b> {
        c = Add(a, b)
        y = Mul(x, c)
        t = Identity(s)
    }"""
    )
    result = graphprune_cli("import", write(model, tmp_path / "model.onnx"), "-o", tmp_path / "out.onnx")
    assert result.exit_code == 0, result.output
    assert "not compared with the model as it was given: input 's' has type object" in result.output


def test_dead_code_of_the_file_does_not_run(tmp_path: Path) -> None:
    """This Loop would take an hour."""
    model = legacy()
    loop = net("""net (float[N,3,8,8] x) => (float[N,3,8,8] z) <int64 times = {10000000000}, bool go = {1}> {
        z = Loop(times, go, x) <body = body (int64 i, bool k, float[N,3,8,8] c) => (bool l, float[N,3,8,8] d) {
            l = Identity(k)
            d = Neg(c)
        }>
    }""")
    model.graph.node.extend(loop.graph.node)
    model.graph.initializer.extend(loop.graph.initializer)
    assert proof_of(write(model, tmp_path / "model.onnx")).reservation == ""


def test_nodes_out_of_order() -> None:
    model = legacy()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert proof_of(model).reservation == ""


# ---- value numbers ------------------------------------------------------------------------------


def same(change: Callable[[ModelProto], object]) -> bool:
    one, other = residual(), residual()
    change(other)
    return same_computation(one, other)


def rename(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name += "_other"
        for field in (node.input, node.output):
            field[:] = [name + "_other" if name and name not in ("x", "y") else name for name in field]
    for tensor in model.graph.initializer:
        tensor.name += "_other"


def into_nodes(model: ModelProto) -> None:
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    model.graph.ClearField("initializer")
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    model.graph.ClearField("node")
    model.graph.node.extend(copies)


def store_as_floats(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, array.shape, array.ravel()))


def append_dead_code(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["x"], ["nobody"]))


@pytest.mark.parametrize("change", [lambda model: None, rename, into_nodes, store_as_floats, append_dead_code])
def test_the_same_computation_written_otherwise(change: Callable[[ModelProto], object]) -> None:
    assert same(change)


def change_a_weight(model: ModelProto) -> None:
    array = initializer(model, "inner").copy()
    array.flat[-1] = np.nextafter(array.flat[-1], np.float32(9))
    set_initializer(model, "inner", array)


def swap_operands(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Add")
    node.input[:] = node.input[::-1]


def change_an_attribute(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    node.attribute.append(helper.make_attribute("epsilon", 1e-4))


def change_the_opset(model: ModelProto) -> None:
    model.opset_import[0].version += 1


def change_an_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value += 2


def define_an_operator(model: ModelProto) -> None:
    relu = helper.make_node("Neg", ["a"], ["b"])
    function = helper.make_function("", "Relu", ["a"], ["b"], [relu], [helper.make_opsetid("", 17)])
    model.functions.append(function)


CHANGES = [change_a_weight, swap_operands, change_an_attribute, change_the_opset, change_an_input, define_an_operator]


@pytest.mark.parametrize("change", CHANGES)
def test_another_computation(change: Callable[[ModelProto], object]) -> None:
    assert not same(change)


def loop_that_captures(name: str) -> ModelProto:
    return net(f"""net (float[4] x) => (float[4] y) <float[4] one, float[4] two, int64 times = {{3}}, bool go = {{1}}> {{
        y = Loop(times, go, x) <body = body (int64 i, bool k, float[4] c) => (bool l, float[4] d) {{
            l = Identity(k)
            d = Add(c, {name})
        }}>
    }}""")


def test_what_a_body_captures_counts() -> None:
    """Bodies with the same text, and another weight of that name."""
    other = loop_that_captures("one")
    assert same_computation(loop_that_captures("one"), other)
    set_initializer(other, "one", initializer(other, "two"))
    assert not same_computation(loop_that_captures("one"), other)


def test_which_of_several_results_counts() -> None:
    text = "net (float[4,8] x) => (float[4,4] y) {{ {} = Split<axis = 1, num_outputs = 2>(x) }}"
    assert not same_computation(net(text.format("y, z"), opset=18), net(text.format("z, y"), opset=18))


def test_nothing_is_said_of_graphs_out_of_order() -> None:
    model = residual()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert not same_computation(model, residual())


def test_weights_that_stay_in_their_file(tmp_path: Path) -> None:
    """Equal by their place; weights of another file are other weights."""
    text = """net (float[N,1024] x) => (float[N,1024] y) <float[1024,1024] w, float[1024,1024] v> {
        a = MatMul(x, w)
        y = MatMul(a, v)
    }"""
    paths = [write(net(text), tmp_path / name) for name in ("one.onnx", "other.onnx")]
    one, again, other = (read_model(path) for path in (paths[0], paths[0], paths[1]))
    assert operators(one) == ["MatMul", "MatMul"]
    assert same_computation(one, again)
    assert not same_computation(one, other)
