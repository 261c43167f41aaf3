"""Weights that stay inside of their model's file: the same model, the same bytes, the same errors as when all is read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import block, initializer, net, residual, wide, write
from onnx import ModelProto, TensorProto, load_model, numpy_helper

import graphprune
from graphprune import external, model_file
from graphprune.errors import InvalidModelError
from graphprune.external import is_external
from graphprune.graph import to_array
from graphprune.model_file import content_hash, read_model, serialised, whole, write_model
from graphprune.runtime import random_inputs, run
from graphprune.wire import MalformedError, outline


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file counts as large, and any weight of 64 bytes."""
    monkeypatch.setattr(model_file, "MAPPED", 0)
    monkeypatch.setattr(model_file, "LARGE", 64)


def loaded(path: Path) -> ModelProto:
    return load_model(str(path))


MODELS = [block, residual, wide]


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("made", MODELS)
def test_weights_stay_in_the_file_and_are_the_same(made: type, tmp_path: Path) -> None:
    path = write(made(), tmp_path / "m.onnx")
    model = read_model(path)
    assert sum(map(is_external, model.graph.initializer)) > 1
    for tensor, other in zip(model.graph.initializer, loaded(path).graph.initializer, strict=True):
        np.testing.assert_array_equal(to_array(tensor), numpy_helper.to_array(other))
    assert content_hash(model) == content_hash(loaded(path))
    assert b"".join(serialised(model)) == loaded(path).SerializeToString(deterministic=True)
    write_model(model, tmp_path / "again.onnx")
    assert loaded(tmp_path / "again.onnx") == loaded(path)


def masked() -> ModelProto:
    """Constants that are computed from large ones: what is not read must not count as absent."""
    return net("""masked (float[N,8,16] x) => (float[N,8,16] y)
        <float[16,16] w0, float[16,16] w1, float[8,16] mask, float low = {-100.0}, float zero = {0.0}> {
            t = Transpose(w0)
            a = MatMul(x, t)
            b = Relu(a)
            c = MatMul(b, w1)
            above = Greater(mask, zero)
            hidden = Not(above)
            shift = Where(hidden, low, zero)
            d = Add(c, shift)
            y = Softmax(d)
        }""")


@pytest.mark.usefixtures("small_is_large")
def test_constants_are_computed_from_what_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(masked(), tmp_path / "m.onnx")
    left = graphprune.load(path)
    assert [node.op_type for node in left.nodes] == ["MatMul", "Relu", "MatMul", "Add", "Softmax"]
    assert any(map(is_external, left.model.graph.initializer))
    feeds = random_inputs(left, 0)
    np.testing.assert_allclose(run(whole(left.model), feeds)["y"], run(loaded(path), feeds)["y"], atol=1e-6)
    monkeypatch.setattr(model_file, "MAPPED", 2**40)
    assert content_hash(left.model) == content_hash(graphprune.load(path).model)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("made", MODELS)
def test_pruning_gives_the_same_bytes(made: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(made(), tmp_path / "m.onnx")
    options = {"targets": ["macs=0.6"], "importance": "magnitude", "align": 1}
    left = graphprune.prune(path, **options)
    monkeypatch.setattr(model_file, "MAPPED", 2**40)
    read = graphprune.prune(path, **options)
    assert left.plan == read.plan
    assert left.model.SerializeToString(deterministic=True) == read.model.SerializeToString(deterministic=True)
    assert not any(map(is_external, left.model.graph.initializer))
    assert left.proof is not None
    assert left.proof.passed


@pytest.mark.usefixtures("small_is_large")
def test_what_is_pruned_is_cut_when_it_is_asked_for(tmp_path: Path) -> None:
    result = graphprune.prune(write(block(), tmp_path / "m.onnx"), targets=["macs=0.6"], recipe="fast", align=1)
    assert any(map(is_external, result.cut.graph.initializer))
    write_model(result.cut, tmp_path / "cut.onnx")
    assert not any(map(is_external, result.model.graph.initializer))
    write_model(result.model, tmp_path / "model.onnx")
    assert (tmp_path / "cut.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.mark.usefixtures("small_is_large")
def test_a_file_is_mapped_as_a_whole_or_weight_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [to_array(tensor) for tensor in read_model(write(block(), tmp_path / "a.onnx")).graph.initializer]
    monkeypatch.setattr(external, "MAPPED_WHOLE", 0)
    parts = [to_array(tensor) for tensor in read_model(write(block(), tmp_path / "b.onnx")).graph.initializer]
    assert sum(isinstance(array, np.memmap) for array in parts) > 1
    assert not any(isinstance(array, np.memmap) for array in whole)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("small_is_large")
def test_no_more_files_are_held_than_a_process_may_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "MOST_HELD", 0)
    assert not any(map(is_external, read_model(write(block(), tmp_path / "m.onnx")).graph.initializer))


@pytest.mark.usefixtures("small_is_large")
def test_other_programs_get_whole_models(tmp_path: Path) -> None:
    model = read_model(write(block(), tmp_path / "m.onnx"))
    assert whole(model) == loaded(tmp_path / "m.onnx")
    assert any(map(is_external, model.graph.initializer))
    assert whole(whole(model)) == whole(model)


@pytest.mark.usefixtures("small_is_large")
def test_repair_and_calibration_read_them(tmp_path: Path) -> None:
    path = write(block(), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(64, 6, 8, 8)).astype(np.float32)
    result = graphprune.prune(path, targets=["macs=0.7"], calibration={"x": x})
    assert result.weights
    assert result.proof is not None
    assert result.proof.passed


@pytest.mark.usefixtures("small_is_large")
def test_the_file_may_be_replaced_while_it_is_in_use(tmp_path: Path) -> None:
    path = write(block(), tmp_path / "m.onnx")
    model, before = read_model(path), initializer(block(), "a")
    write_model(model, path)
    write(wide(), path)
    found = next(tensor for tensor in model.graph.initializer if tensor.name == "a")
    assert is_external(found)
    np.testing.assert_array_equal(to_array(found), before)


@pytest.mark.usefixtures("small_is_large")
def test_a_wrong_size_is_an_error(tmp_path: Path) -> None:
    model = block()
    next(tensor for tensor in model.graph.initializer if tensor.name == "a").dims[0] = 11
    path = write(model, tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match=r"tensor 'a' declares 2376 bytes and holds 2592"):
        read_model(path)


@pytest.mark.usefixtures("small_is_large")
def test_external_data_beside_raw_data_is_read_as_ever(tmp_path: Path) -> None:
    model = block()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "a")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    path = write(model, tmp_path / "m.onnx")
    with pytest.raises(InvalidModelError, match="outside the model's folder"):
        read_model(path)


def test_small_files_are_read(tmp_path: Path) -> None:
    assert not any(map(is_external, read_model(write(wide(), tmp_path / "m.onnx")).graph.initializer))


@given(seed=st.integers(0, 10**6), flips=st.integers(1, 6))
def test_damaged_files_are_outlined_as_they_are_parsed_or_not_at_all(seed: int, flips: int) -> None:
    """Whatever is wrong with a file: if there is an outline, then a parser that reads all finds the same beside the data."""
    rng = random.Random(seed)
    data = bytearray(_BLOCK)
    for _ in range(flips):
        data[rng.randrange(len(data) if rng.random() < 0.5 else 400)] = rng.randrange(256)
    try:
        text, places = outline(memoryview(bytes(data)), 64)
    except MalformedError:
        return
    outlined, whole = ModelProto(), ModelProto()
    try:
        whole.ParseFromString(bytes(data))
    except Exception:
        return
    outlined.ParseFromString(text)
    for place in places:
        raw = whole.graph.initializer[place.index].raw_data
        assert raw == bytes(data[place.offset : place.offset + place.length])
        outlined.graph.initializer[place.index].raw_data = raw
    assert outlined.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


_BLOCK = block().SerializeToString()


@pytest.mark.parametrize(
    "data", [b"\x3a\x02\x0b\x00", b"\x3a\x00\x3a\x00", b"\x3a\x05\x00", b"\xff" * 12, b"\x08", b"\x3a\x04\x2a\x06\x4a\x00"]
)
def test_unusual_forms_are_left_to_the_parser(data: bytes) -> None:
    with pytest.raises(MalformedError):
        outline(memoryview(data), 1)


def test_two_fields_of_raw_data_are_left_to_the_parser() -> None:
    tensor = b"\x4a\x02ab\x4a\x02cd"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(MalformedError, match="two fields"):
        outline(memoryview(b"\x3a" + bytes([len(graph)]) + graph), 1)


def test_parts_of_large_weights_are_not_copied() -> None:
    model = net("big (float[1,512] x) => (float[1,512] y) <float[512,512] w> { y = MatMul(x, w) }")
    parts = list(serialised(model))
    assert len(parts) > 2
    assert b"".join(parts) == model.SerializeToString(deterministic=True)
