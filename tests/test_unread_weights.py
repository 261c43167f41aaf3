"""Transposes and Casts of weights that stay in their file: done while they are read, with the result of doing them before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from nets import net, on_disk, weights
from onnx import ModelProto, TensorProto, numpy_helper

import graphprune
from graphprune import external, model_file
from graphprune.cli import main
from graphprune.cutting import sideways, taken, taken_sideways
from graphprune.graph import Graph, to_array
from graphprune.model_file import read_model, write_model
from graphprune.normalize import normalize
from graphprune.shape_inference import infer_shapes
from graphprune.unread_weights import fold_in_file


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything counts as too large for one message, and pieces have a few rows."""
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", 1000)
    monkeypatch.setattr(external, "PIECE", 100)


def halves() -> ModelProto:
    """Matrix products whose weights are in half precision and lie the other way round; one is read as a table as well."""
    model = net("""halves (int64[N,3] ids) => (float[N,3,90] y)
        <float16[90,60] table, float16[72,60] w1, float16[60,72] w2, float[80,60] w3, float[80] b3, float16[64,80] w4> {
            wide = Cast <to = 1> (table)
            x = Gather (wide, ids)
            wide1 = Cast <to = 1> (w1)
            turned1 = Transpose <perm = [1, 0]> (wide1)
            a = MatMul (x, turned1)
            b = Relu (a)
            turned2 = Transpose (w2)
            wide2 = Cast <to = 1> (turned2)
            c = MatMul (b, wide2)
            d = Add (x, c)
            turned3 = Transpose <perm = [1, 0]> (w3)
            e = MatMul (d, turned3)
            f = Add (e, b3)
            g = Sigmoid (f)
            wide4 = Cast <to = 1> (w4)
            turned4 = Transpose <perm = [1, 0]> (wide4)
            h = MatMul (g, turned4)
            tied = Transpose <perm = [1, 0]> (wide)
            i = MatMul (d, tied)
            s = ReduceSum <keepdims = 1> (h)
            y = Add (i, s)
        }""")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            array = np.random.default_rng(len(tensor.name)).normal(0, 0.3, tuple(tensor.dims)).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def test_the_normal_form_is_that_of_weights_in_memory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    expected = normalize(halves())
    path = on_disk(halves(), tmp_path)
    request.getfixturevalue("large")
    found = normalize(read_model(path))
    assert [node.op_type for node in found.nodes] == [node.op_type for node in expected.nodes]
    assert sum(map(external.is_external, found.model.graph.initializer)) == 5
    arrays = weights(found.model)
    assert arrays.keys() == weights(expected.model).keys()
    for name, array in weights(expected.model).items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_pruning_keeps_the_types_of_the_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options = {"targets": ["channels=0.5"], "align": 1}
    expected = graphprune.prune(halves(), **options)
    path, out = on_disk(halves(), tmp_path), tmp_path / "out.onnx"
    request.getfixturevalue("large")
    result = graphprune.prune(path, **options)
    assert result.proof is not None
    assert result.proof.passed
    assert result.keep == expected.keep
    write_model(result.cut, out)
    request.getfixturevalue("monkeypatch").undo()
    written = onnx.load(out)
    halved = {tensor.name for tensor in written.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    assert halved == {"table", "w1", "turned2", "w4"}
    feeds = {"ids": np.array([[0, 5, 89], [7, 7, 1]])}
    outputs = [ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0] for model in (written, expected.model)]
    np.testing.assert_array_equal(*outputs)


def test_what_was_cut_is_pruned_again(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options = {"targets": ["channels=0.6"], "align": 1}
    expected = graphprune.prune(graphprune.prune(halves(), **options).cut, **options)
    path = on_disk(halves(), tmp_path)
    request.getfixturevalue("large")
    again = graphprune.prune(graphprune.prune(path, **options).cut, **options)
    assert again.proof is not None
    assert again.proof.passed
    found = weights(normalize(again.cut).model)
    for name, array in weights(normalize(expected.cut).model).items():
        np.testing.assert_array_equal(found[name], array)


def test_what_is_written_is_normalised_to_itself(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path, first, second = on_disk(halves(), tmp_path), tmp_path / "first.onnx", tmp_path / "second.onnx"
    request.getfixturevalue("large")
    for source, output in ((path, first), (first, second)):
        assert CliRunner().invoke(main, ["import", str(source), "-o", str(output)]).exit_code == 0
    ours, again = onnx.load(first), onnx.load(second)
    assert [tensor.data_type for tensor in ours.graph.initializer].count(TensorProto.FLOAT16) == 4
    assert ours == again


def in_file(folder: Path, array: np.ndarray) -> TensorProto:
    (folder / "data.bin").write_bytes(array.tobytes())
    tensor = TensorProto(name="w", data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(folder / "data.bin"))
    return tensor


@given(st.data())
def test_any_order_of_turning_cutting_and_casting(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    expected = rng.normal(0, 3, data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=4))).astype(np.float16)
    tensor, narrow = in_file(tmp_path_factory.mktemp("w"), expected), expected
    for step in data.draw(st.lists(st.sampled_from(["turn", "cut", "cast"]), max_size=5)):
        if step == "turn":
            order = data.draw(st.permutations(range(expected.ndim)))
            tensor, expected, narrow = external.turned(tensor, order), expected.transpose(order), narrow.transpose(order)
        elif step == "cut":
            axis = data.draw(st.integers(0, expected.ndim - 1))
            kept = rng.permutation(expected.shape[axis])[: data.draw(st.integers(1, expected.shape[axis]))]
            tensor = external.cut(tensor, {axis: kept})
            expected, narrow = np.take(expected, kept, axis), np.take(narrow, kept, axis)
        elif external.type_in_file(tensor) == tensor.data_type:
            tensor, expected = external.cast(tensor, TensorProto.FLOAT), expected.astype(np.float32)
    assert tuple(tensor.dims) == expected.shape
    np.testing.assert_array_equal(to_array(tensor), expected)
    pieces = list(external.pieces(tensor))
    assert all(piece.flags.c_contiguous and piece.dtype == expected.dtype for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), expected)
    if expected.dtype != np.float16:
        plain = external.uncast(tensor)
        assert plain.name == "w"
        np.testing.assert_array_equal(to_array(plain), narrow)


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (0, 2, 1)])
def test_taking_sideways_is_taking(order: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    array = rng.normal(size=[37, 50, 23][: len(order)]).astype(np.float32).transpose(order)
    assert sideways(array)
    for kept in ({}, {0: np.array([5, 2, 19])}, {0: np.array([3]), len(order) - 1: np.array([20, 0, 21, 7])}):
        np.testing.assert_array_equal(taken_sideways(array, kept, np.dtype(np.float32)), taken(array, kept))


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("a = Cast <to = 10> (w)\n b = Cast <to = 1> (a)", 1),  # the first rounds
        ("a = Identity (w)\n b = Cast <to = 11> (a)", 2),
        ("s = Unsqueeze (w, zero)\n t = Flatten (s)\n b = Reshape (t, sizes)", 4),
        ("t = Transpose <perm = [1, 0]> (w)\n b = Reshape (t, sizes)", 1),  # other neighbours than in the file
        ("b = Cast <to = 7> (w)", 0),
        ("b = Add (w, w)", 0),
    ],
)
@pytest.mark.usefixtures("large")
def test_what_must_be_computed_is_left_to_others(tmp_path: Path, text: str, folded: int) -> None:
    weights = "float[90,60] w, int64[1] zero = {0}, int64[2] sizes = {90, 60}"
    model = net(f"n (float[90,60] x) => (float[M,N] y) <{weights}> {{ {text}\n c = Cast <to = 1> (b)\n y = Mul (x, c) }}")
    read = read_model(on_disk(model, tmp_path))
    graph = Graph(read, infer_shapes(read))
    assert fold_in_file(graph) == bool(folded)
    assert len(model.graph.node) - len(graph.nodes) == folded
