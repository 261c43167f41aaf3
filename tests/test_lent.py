"""Models in memory: their large weights are read where they are.  Start reading at the first test."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from halving import halve
from nets import net, plain, write
from onnx import ModelProto, TensorProto

import graphprune
from graphprune import in_memory, lent, model_file
from graphprune.errors import InvalidModelError
from graphprune.external import is_external
from graphprune.model_file import whole


@pytest.fixture(autouse=True)
def small_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "LARGE", 256)


def prune(model: ModelProto, **options: object) -> graphprune.Result:
    return graphprune.prune(model, targets=["channels=0.5"], align=1, **options)  # type: ignore[arg-type]


def test_large_weights_are_not_copied_and_the_model_is_left_as_it_was() -> None:
    model = plain()
    before = model.SerializeToString(deterministic=True)
    result = prune(model, verify=False)
    assert any(map(is_external, result.original.model.graph.initializer))
    assert not any(map(is_external, result.model.graph.initializer))
    assert model.SerializeToString(deterministic=True) == before


def test_the_result_is_that_of_weights_that_were_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    found = halve(plain())
    monkeypatch.setattr(in_memory, "LARGE", 2**40)
    assert halve(plain()).model.SerializeToString(deterministic=True) == found.model.SerializeToString(deterministic=True)
    assert halve(plain()).plan.to_json() == found.plan.to_json()


def test_what_was_proven_stays_when_the_model_changes() -> None:
    model = plain()
    result, untouched = prune(model), prune(plain())
    for tensor in model.graph.initializer:
        tensor.raw_data = bytes(len(tensor.raw_data))
    assert result.model.SerializeToString(deterministic=True) == untouched.model.SerializeToString(deterministic=True)
    assert result.plan.to_json() == untouched.plan.to_json()


def test_a_location_that_nobody_keeps_is_refused() -> None:
    """A pickled graph, say, in another process; or a model that somebody made to read the weights of another."""
    result = prune(plain(), verify=False)
    model = ModelProto.FromString(result.original.model.SerializeToString())
    del result
    gc.collect()
    other = prune(plain(), verify=False)
    assert other.original
    with pytest.raises(InvalidModelError, match="which was not read with the model"):
        prune(model)
    with pytest.raises(InvalidModelError, match="given in memory"):
        lent.lent_to(model)


def test_notes_of_weights_survive() -> None:
    model = net("""
        mlp (float[4,16] x) => (float[4,8] y)
        <float[16,32] w1, float[32,8] w2> {
            a = MatMul(x, w1)
            b = Relu(a)
            y = MatMul(b, w2)
        }""")
    model.graph.initializer[0].doc_string = "the first"
    model.graph.initializer[0].metadata_props.add(key="origin", value="here")
    first = prune(model, verify=False).model.graph.initializer[0]
    assert (first.doc_string, first.metadata_props[0].value) == ("the first", "here")


@pytest.mark.parametrize("verify", [True, False])
def test_damaged_weights_are_named(verify: bool) -> None:
    model = plain()
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.raw_data = tensor.raw_data[:-4]
    with pytest.raises(InvalidModelError, match=rf"'{tensor.name}' has {len(tensor.raw_data)} bytes of data, its shape asks for"):
        prune(model, verify=verify)


def test_a_graph_keeps_what_it_reads_and_no_longer() -> None:
    analysis = prune(plain(), verify=False).analysis
    name = next(tensor.name for tensor in analysis.graph.initializers.values() if is_external(tensor))
    assert analysis.graph.constant(name) is not None
    gc.collect()
    assert lent._LENT
    del analysis
    gc.collect()
    assert not lent._LENT


def test_a_model_that_outlives_its_result_says_so() -> None:
    model = prune(plain(), verify=False).original.model
    gc.collect()
    with pytest.raises(InvalidModelError, match="keep the Result, Analysis or Graph"):
        whole(model)


@pytest.mark.parametrize("location", ["weights.bin", "/etc/hostname", ""])
def test_files_that_were_not_read_with_the_model_are_refused(location: str) -> None:
    """As onnx.load(..., load_external_data=False) leaves them: a path could be any."""
    model = plain()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    for use in (prune, graphprune.analyze, graphprune.load):
        with pytest.raises(InvalidModelError, match=f"'w1' is in the file '{location}', which was not read with the model; give"):
            use(model)


@pytest.mark.parametrize(("data_type", "size", "message"), [(99, 4, "the unknown data type 99"), (1, -4, "a negative dimension")])
def test_tensors_that_onnx_does_not_know_are_refused(data_type: int, size: int, message: str) -> None:
    model = plain()
    model.graph.initializer[0].data_type = data_type
    model.graph.initializer[0].dims[0] = size
    for use in (prune, graphprune.analyze, graphprune.load):
        with pytest.raises(InvalidModelError, match=f"the model: tensor 'w1' has {message}"):
            use(model)


def test_a_model_of_our_own_may_have_its_weights_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(plain(), tmp_path / "m.onnx")
    for name in ("MAPPED", "LARGE"):
        monkeypatch.setattr(model_file, name, 16)
    model = model_file.read_model(path)
    assert any(map(is_external, model.graph.initializer))
    assert prune(model).model.SerializeToString() == prune(plain()).model.SerializeToString()
