"""What a user wrote into a model survives import and pruning."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from nets import net, plain
from onnx import ModelProto, StringStringEntryProto, helper

import graphprune


def decorated(opset: int = 17) -> ModelProto:
    """A net with a note on everything that can carry one."""
    model = net(
        """
        decorated (float[N,3,8,8] image) => (float[N,5,4,4] scores)
        <float[8,3,3,3] w1, float[8] b1, float[5,8,3,3] w2> {
            c1 = Conv(image, w1, b1)
            r1 = Relu(c1)
            scores = Conv(r1, w2)
        }""",
        opset=opset,
        domains=("com.acme", "ai.onnx.ml"),
    )
    model.producer_name, model.producer_version = "acme", "1.2.3"
    model.domain, model.model_version, model.doc_string = "com.acme.vision", 42, "A model."
    model.metadata_props.extend(note("author", "Ada"))
    model.graph.doc_string = "A graph."
    model.graph.metadata_props.extend(note("graph", "G"))
    model.graph.input[0].doc_string = "RGB"
    model.graph.input[0].metadata_props.extend(note("mean", "0.5"))
    model.graph.output[0].doc_string = "logits"
    for number, node in enumerate(model.graph.node):
        node.name = f"layer{number}"
        node.doc_string = f"Node {number}."
        node.metadata_props.extend(note("namespace", f"net/{number}"))
    for tensor in model.graph.initializer:
        tensor.doc_string = f"Weight {tensor.name}."
        tensor.metadata_props.extend(note("from", f"torch.{tensor.name}"))
    annotation = model.graph.quantization_annotation.add(tensor_name="c1")
    annotation.quant_parameter_tensor_names.extend(note("SCALE_TENSOR", "b1"))
    return model


def note(key: str, value: str) -> list[StringStringEntryProto]:
    return [StringStringEntryProto(key=key, value=value)]


def props(message: object) -> dict[str, str]:
    return {entry.key: entry.value for entry in message.metadata_props}  # type: ignore[attr-defined]


def imported(opset: int) -> ModelProto:
    return graphprune.load(decorated(opset)).model


def pruned(opset: int) -> ModelProto:
    return graphprune.prune(decorated(opset), targets=["channels=0.5"], align=1).model


@pytest.fixture(params=[imported, pruned], ids=["import", "prune"])
def stage(request: pytest.FixtureRequest) -> Callable[[int], ModelProto]:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("opset", [11, 17], ids=["upgraded", "new"])
def test_the_notes_survive(stage: Callable[[int], ModelProto], opset: int) -> None:
    before, after = decorated(opset), stage(opset)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(after, field) == getattr(before, field), field
    assert props(after) == {"author": "Ada"}
    assert after.graph.name == "decorated"
    assert after.graph.doc_string == "A graph."
    assert props(after.graph) == {"graph": "G"}
    assert [node.name for node in after.graph.node] == ["layer0", "layer1", "layer2"]
    assert [node.doc_string for node in after.graph.node] == ["Node 0.", "Node 1.", "Node 2."]
    assert [props(node) for node in after.graph.node] == [{"namespace": f"net/{k}"} for k in range(3)]
    assert list(after.graph.quantization_annotation) == list(before.graph.quantization_annotation)
    opsets = {entry.domain: entry.version for entry in after.opset_import}
    assert opsets.pop("") == max(opset, 13)
    assert opsets == {"com.acme": 1, "ai.onnx.ml": 1}


@pytest.mark.parametrize("opset", [11, 17], ids=["upgraded", "new"])
def test_inputs_and_outputs_survive_with_names_shapes_and_notes(stage: Callable[[int], ModelProto], opset: int) -> None:
    before, after = decorated(opset), stage(opset)
    assert [value.name for value in after.graph.input] == ["image"]
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


@pytest.mark.parametrize("opset", [11, 17], ids=["upgraded", "new"])
def test_the_notes_of_weights_survive(stage: Callable[[int], ModelProto], opset: int) -> None:
    for tensor in stage(opset).graph.initializer:
        assert tensor.doc_string == f"Weight {tensor.name}."
        assert props(tensor) == {"from": f"torch.{tensor.name}"}


def test_the_notes_survive_constant_folding() -> None:
    """Folding rebuilds the model in another library."""
    model = net(
        """
        folded (float[N,5] x) => (float[N,3] y) <float[8,5] w1, float[8,3] w2> {
            t = Transpose<perm = [1,0]>(w1)
            a = MatMul(x, t)
            y = MatMul(a, w2)
        }""",
        domains=("com.acme",),
    )
    model.doc_string, model.model_version, model.domain = "A model.", 7, "com.acme"
    model.metadata_props.extend(note("author", "Ada"))
    model.graph.doc_string = "A graph."
    for number, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"layer{number}", f"Node {number}."
        node.metadata_props.extend(note("namespace", f"net/{number}"))
    model.graph.initializer[1].doc_string = "Weight w2."
    after = graphprune.load(model).model
    assert (after.doc_string, after.model_version, after.domain) == ("A model.", 7, "com.acme")
    assert props(after) == {"author": "Ada"}
    assert after.graph.doc_string == "A graph."
    assert [(node.name, node.doc_string, props(node)["namespace"]) for node in after.graph.node] == [
        ("layer1", "Node 1.", "net/1"),
        ("layer2", "Node 2.", "net/2"),
    ]
    assert {entry.domain for entry in after.opset_import} == {"", "com.acme"}
    assert next(t.doc_string for t in after.graph.initializer if t.name == "w2") == "Weight w2."


def test_nodes_of_a_custom_domain_survive_as_they_are() -> None:
    model = net(
        """
        custom (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] w1, float[4,8,1,1] w2> {
            a = Conv(x, w1)
            b = com.acme.Wobble<depth = 3, mode = "soft">(a)
            y = Conv(b, w2)
        }""",
        domains=("com.acme",),
    )
    after = graphprune.load(model).model
    wobble = after.graph.node[1]
    assert (wobble.domain, wobble.op_type) == ("com.acme", "Wobble")
    assert {a.name: helper.get_attribute_value(a) for a in wobble.attribute} == {"depth": 3, "mode": b"soft"}


def test_the_pruned_model_is_valid_by_the_standard() -> None:
    onnx.checker.check_model(graphprune.prune(plain(), targets=["channels=0.5"], align=1).model, full_check=True)


def test_shapes_in_a_pruned_model_are_those_of_the_pruned_model() -> None:
    result = graphprune.prune(plain(), targets=["channels=0.5"], align=1, selection="uniform")
    found = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in result.model.graph.value_info}
    assert found["c1"] == ["N", 4, 6, 6]
    assert found["r2"] == ["N", 6, 4, 4]
