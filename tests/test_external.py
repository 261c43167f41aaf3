"""Weights that stay in their files: cut and summed piece by piece, with the result of cutting them in memory."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import net, on_disk, weights
from onnx import ModelProto, TensorProto, numpy_helper

import graphprune
from graphprune import external, model_file
from graphprune.cutting import CACHED, ahead, in_threads, taken
from graphprune.errors import InvalidModelError
from graphprune.graph import to_array
from graphprune.model_file import content_hash, read_model, write_model
from graphprune.weights import _sums_of_both


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything counts as too large for one message and to stay mapped, and pieces have a few rows."""
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", 1000)
    monkeypatch.setattr(external, "MAPPED_WHOLE", 0)
    monkeypatch.setattr(external, "PIECE", 1000)


@pytest.mark.usefixtures("large")
def test_the_hash_does_not_hang_on_the_field_that_numbers_are_in() -> None:
    raw, typed = wide(), wide()
    for tensor in typed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.float_data.extend(to_array(tensor).ravel().tolist())
            tensor.ClearField("raw_data")
    assert content_hash(raw) == content_hash(typed)


def wide() -> ModelProto:
    """Some weights of more elements than are always read."""
    return net("""wide (float[N,3,8,8] x) => (float[N,4,8,8] y)
        <float[64,3,3,3] w0, float[64] b0, float[64,64,3,3] w1, float[96,64,1,1] w2, float[4,96,1,1] w3> {
            a = Conv <pads=[1,1,1,1]> (x, w0, b0)
            b = Relu (a)
            c = Conv <pads=[1,1,1,1]> (b, w1)
            d = Add (b, c)
            e = Conv (d, w2)
            f = Relu (e)
            y = Conv (f, w3)
        }""")


def test_pruning_in_the_file_is_pruning_in_memory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    expected = graphprune.prune(wide(), targets=["channels=0.5"], align=1)
    path = on_disk(wide(), tmp_path)
    request.getfixturevalue("large")
    result = graphprune.prune(path, targets=["channels=0.5"], align=1)
    assert any(external.is_external(tensor) for tensor in result.model.graph.initializer)
    assert result.proof is not None
    assert result.proof.passed
    found, wanted = weights(result.model), weights(expected.model)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    out = tmp_path / "out.onnx"
    write_model(result.model, out)
    for name, array in weights(read_model(out)).items():
        np.testing.assert_array_equal(wanted[name], array)


def test_the_plan_is_the_same_and_replays(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = on_disk(wide(), tmp_path)
    request.getfixturevalue("large")
    result = graphprune.prune(path, targets=["channels=0.5"], align=1)
    again = graphprune.apply_plan(path, result.plan)
    assert {name: array.tolist() for name, array in weights(again.model).items()} == {
        name: array.tolist() for name, array in weights(result.model).items()
    }


@pytest.mark.usefixtures("large")
def test_equal_models_have_one_hash_wherever_their_weights_are(tmp_path: Path) -> None:
    model = wide()
    first, second = on_disk(model, tmp_path), tmp_path / "again.onnx"
    write_model(read_model(first), second)
    assert content_hash(read_model(first)) == content_hash(read_model(second))
    changed = read_model(first)
    changed.graph.initializer[0].dims[0] -= 1
    assert content_hash(changed) != content_hash(read_model(first))


def stored(tmp_path: Path, array: np.ndarray) -> TensorProto:
    (tmp_path / "data.bin").write_bytes(b"x" * 8 + array.tobytes())
    tensor = TensorProto(name="w", data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", str(tmp_path / "data.bin")), ("offset", "8"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
@pytest.mark.parametrize("axes", [{0: [4, 0, 2]}, {1: [6, 1]}, {0: [3, 1], 1: [0, 5, 2], 2: [1]}])
def test_a_cut_of_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, axes: dict[int, list[int]]) -> None:
    monkeypatch.setattr(external, "PIECE", 30)
    array = np.random.default_rng(0).integers(-100, 100, (5, 7, 3)).astype(dtype)
    tensor, expected = stored(tmp_path, array), array
    for axis, kept in axes.items():
        tensor = external.cut(tensor, {axis: np.array(kept)})
        expected = np.take(expected, kept, axis=axis)
    again = external.cut(tensor, {axis: np.array([0]) for axis in axes})
    np.testing.assert_array_equal(to_array(tensor), expected)
    np.testing.assert_array_equal(np.concatenate(list(external.pieces(tensor))), expected)
    np.testing.assert_array_equal(to_array(again), expected[tuple(slice(1) if k in axes else slice(None) for k in range(3))])
    assert list(tensor.dims) == list(expected.shape)


@pytest.fixture
def unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file counts as small enough to stay mapped; pieces have a few rows."""
    monkeypatch.setattr(external, "MAPPED_WHOLE", 0)
    monkeypatch.setattr(external, "PIECE", 60)
    external._whole.cache_clear()


def held(tmp_path: Path, array: np.ndarray) -> TensorProto:
    """A tensor in a file that stays open."""
    tensor = stored(tmp_path, array)
    external.point_to(tensor, external.held(tmp_path / "data.bin"))
    return tensor


@pytest.mark.usefixtures("unmapped")
@pytest.mark.parametrize("longest", [2**22, 10], ids=["read", "mapped"])
@pytest.mark.parametrize(
    "cuts",
    [{0: [1, 2, 5, 6, 8]}, {0: [8, 0, 3]}, {1: [6, 1]}, {0: [3, 4, 11], 1: [0, 5, 2]}, {0: []}, {1: []}],
    ids=["rows", "rows far apart", "columns", "both", "no rows", "no columns"],
)
def test_cuts_are_read_from_files_that_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: int, cuts: dict[int, list[int]]
) -> None:
    monkeypatch.setattr(external, "LONGEST_ROW", longest)
    array = np.random.default_rng(0).normal(size=(12, 7, 3)).astype(np.float32)
    indices = {axis: np.array(kept, np.int64) for axis, kept in cuts.items()}
    expected = array
    for axis, kept in indices.items():
        expected = np.take(expected, kept, axis=axis)
    tensor = held(tmp_path, array)
    assert (external.row_reader(tensor) is not None) == (longest > 10)
    found = list(external.pieces(external.cut(tensor, indices)))
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, *expected.shape[1:]), np.float32), *found]), expected)
    assert external.row_reader(external.cut(tensor, indices)) is None
    for whole, wanted in ((tensor, array), (external.cut(tensor, indices), expected)):
        assert b"".join(piece.tobytes() for piece in external.fleeting_pieces(whole)) == wanted.tobytes()


@pytest.mark.usefixtures("unmapped")
def test_rows_are_read_in_the_type_that_is_wanted(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
    read = external.row_reader(external.cast(held(tmp_path, array), TensorProto.FLOAT16))
    assert read is not None
    np.testing.assert_array_equal(read(3, 9), array[3:9].astype(np.float16))


@pytest.mark.usefixtures("unmapped")
def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    read = external.row_reader(held(tmp_path, np.ones((12, 7), np.float32)))
    assert read is not None
    (tmp_path / "data.bin").write_bytes(bytes(100))
    with pytest.raises(InvalidModelError, match="the file of 'w' became shorter while it was read"):
        read(0, 12)


def test_a_file_cannot_bring_cuts_of_its_own(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = on_disk(wide(), tmp_path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data.add(key=f"{external.KEPT}0", value="999999")
        tensor.external_data.add(key=external.SHAPE, value="1000000 1000000")
    path.write_bytes(model.SerializeToString())
    request.getfixturevalue("large")
    for name, array in weights(read_model(path)).items():
        np.testing.assert_array_equal(array, weights(wide())[name])


def test_scores_are_those_of_weights_in_memory(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = on_disk(wide(), tmp_path)
    options = {"targets": ["channels=0.6"], "align": 1, "verify": False, "importance": "magnitude{p=2}"}
    wanted = graphprune.prune(wide(), **options).keep
    request.getfixturevalue("large")
    assert graphprune.prune(path, **options).keep == wanted


@pytest.mark.parametrize("rows", [0, 1, 5, 200, 2100])
@pytest.mark.parametrize("width", [1, 700, CACHED + 1])
def test_threads_share_all_rows_in_order(rows: int, width: int) -> None:
    shares = in_threads(lambda starts: [range(k, min(k + starts.step, starts.stop)) for k in starts], rows, width)
    assert [row for share in shares for piece in share for row in piece] == list(range(rows))
    assert all(len(piece) * width <= max(width, CACHED) for share in shares for piece in share)


@pytest.mark.parametrize("shape", [(3000, 500), (2, 1100, 600), (1500, 40, 5, 5), (2_000_000,), (0, 7)])
def test_indices_of_large_arrays(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 100, shape, np.int16)
    for axes in ([], [0], [len(shape) - 1], list(range(len(shape)))):
        kept = {axis: rng.permutation(shape[axis])[: shape[axis] // 2] for axis in axes}
        wanted = array
        for axis, indices in kept.items():
            wanted = np.take(wanted, indices, axis)
        assert np.array_equal(taken(array, kept), wanted)
        assert np.shares_memory(taken(array, kept), array) == (not axes and array.size > 0)


@pytest.mark.parametrize(("power", "exponent"), [(1, 1), (2, 2), (3.0, 3)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 4, 2), (3, 0, 1), (1200, 300, 9), (7, 400_000, 1)])
def test_sums_of_large_weights(shape: tuple[int, int, int], power: float, exponent: int) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = np.abs(values.astype(np.float64)) ** exponent
    for found, axes in zip(_sums_of_both(shape, lambda start, stop: values[start:stop], power), ((1, 2), (0, 2)), strict=True):
        np.testing.assert_allclose(found, wanted.sum(axis=axes), rtol=3e-6)


def test_items_that_are_made_ahead_keep_their_order() -> None:
    assert list(ahead(iter([3, 1, 2]))) == [3, 1, 2]
    assert list(islice(ahead(count(1)), 3)) == [1, 2, 3]


def test_what_fails_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda starts: 1 // (starts.start - starts.start), 2000, 2000)
    with pytest.raises(ZeroDivisionError):
        list(ahead(1 // k for k in (1, 0)))


@pytest.mark.usefixtures("large")
def test_weights_of_a_loop_are_read_at_once(tmp_path: Path) -> None:
    """They cannot be left in a file: what is written names places for initializers alone."""
    model = net("""looped (float[1,80] x) => (float[1,80] y) <int64 trips = {2}, bool go = {1}> {
        y = Loop(trips, go, x) <body = b (int64 i, bool c, float[1,80] s) => (bool d, float[1,80] n) {
            d = Identity(c)
            n = MatMul(s, w)
        }>
    }""")
    inner = numpy_helper.from_array(np.random.default_rng(0).standard_normal((80, 80)).astype(np.float32), "w")
    model.graph.node[0].attribute[0].g.initializer.append(inner)
    path = on_disk(model, tmp_path)
    body = read_model(path).graph.node[0].attribute[0].g
    np.testing.assert_array_equal(numpy_helper.to_array(body.initializer[0]), numpy_helper.to_array(inner))
    (tmp_path / "elsewhere").mkdir()
    write_model(read_model(path), tmp_path / "elsewhere" / "out.onnx")
    read_model(tmp_path / "elsewhere" / "out.onnx")


@pytest.mark.usefixtures("large")
def test_a_result_that_replaces_its_original_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(wide(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    result = graphprune.prune(path, targets=["channels=0.5"], align=1)
    for target in (path, tmp_path / "again.onnx"):
        write_model(result.cut, target)
    wanted, found = weights(read_model(path)), weights(read_model(tmp_path / "again.onnx"))
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def as_nodes(model: ModelProto) -> ModelProto:
    """The same with Constant nodes instead of initializers."""
    nodes = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_constant_nodes_stay_in_their_file_too(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    expected = graphprune.prune(wide(), targets=["channels=0.5"], align=1)
    path = tmp_path / "model.onnx"
    data = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0, "convert_attribute": True}
    onnx.save(as_nodes(wide()), path, **data)
    request.getfixturevalue("large")
    result = graphprune.prune(path, targets=["channels=0.5"], align=1)
    assert result.proof is not None
    assert result.proof.passed
    assert any(external.is_external(tensor) for tensor in result.cut.graph.initializer)
    for name, array in weights(expected.cut).items():
        np.testing.assert_array_equal(weights(result.cut)[name], array)


def test_weights_in_branches_that_fit_no_message_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net("""chosen (bool c, float[N,64] x) => (float[N,64] y) {
        y = If (c) <then_branch = a () => (float[N,64] a) { wa = Constant <value = float[1] {1.0}> () a = Mul (x, wa) },
                    else_branch = b () => (float[N,64] b) { b = Relu (x) }>
    }""")
    constant = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
    constant.CopyFrom(numpy_helper.from_array(np.ones((300, 1, 64), np.float32)))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True)
    assert graphprune.load(path)
    monkeypatch.setattr(model_file, "INNER", 1000)
    with pytest.raises(InvalidModelError, match=r"weights are inside of branches, loops or functions.* initializers of the main"):
        read_model(path)


@pytest.mark.usefixtures("large")
def test_data_that_two_weights_name_is_written_once(tmp_path: Path) -> None:
    """An embedding and a head that share their numbers in the file, as some exporters tie them."""
    model = net("""
        tied (int64[N] ids) => (float[N,128] y)
        <float[128,40] table, float[40,48] a, float[48,40] b, float[128,40] head> {
            e = Gather(table, ids)
            h = MatMul(e, a)
            r = Relu(h)
            s = MatMul(r, b)
            z = Add(s, e)
            y = Gemm<transB = 1>(z, head)
        }""")
    path = on_disk(model, tmp_path)
    tied = onnx.load(path, load_external_data=False)
    table, head = (next(each for each in tied.graph.initializer if each.name == name) for name in ("table", "head"))
    del head.external_data[:]
    head.external_data.extend(table.external_data)
    onnx.save(tied, path)
    result = graphprune.prune(path, targets="params=0.7", align=1)
    _, data = write_model(result.cut, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    places = {each.name: each.external_data[1].value for each in written.graph.initializer if each.external_data}
    assert places["table"] == places["head"]
    found = weights(onnx.load(tmp_path / "out.onnx"))
    np.testing.assert_array_equal(found["table"], found["head"])
    assert found["table"].shape[1] < 40
    assert data.stat().st_size < sum(array.nbytes for array in found.values())
