"""Files that are written: whole or not at all, large ones in two parts, and read back the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from nets import initializer, net, plain, write
from onnx import ModelProto, numpy_helper

import graphprune
from graphprune import model_file
from graphprune.errors import UsageError
from graphprune.model_file import content_hash, read_model, write_model

Cli = Callable[..., Result]


def test_an_output_that_cannot_be_written(tmp_path: Path, graphprune_cli: Cli) -> None:
    model = write(plain(), tmp_path / "m.onnx")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, message in ((tmp_path / "no" / "out.onnx", "does not exist"), (folder, "cannot write there")):
        for arguments in (
            ["prune", model, "-o", path, "--target", "channels=0.5", "--align", "1"],
            ["prune", model, "-o", tmp_path / "o.onnx", "--plan", path, "--target", "channels=0.5", "--align", "1"],
            ["import", model, "-o", path],
        ):
            result = graphprune_cli(*arguments)
            assert result.exit_code == 2
            assert f"{path}: " in result.stderr
            assert message in result.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "m.onnx"]
    assert not list(folder.iterdir())


def test_a_report_that_cannot_be_written_leaves_no_model(tmp_path: Path, graphprune_cli: Cli) -> None:
    model = write(plain(), tmp_path / "m.onnx")
    arguments = ["prune", model, "-o", tmp_path / "o.onnx", "--target", "channels=0.5", "--align", "1"]
    result = graphprune_cli(*arguments, "--json", tmp_path / "no" / "r.json")
    assert result.exit_code == 2
    assert not (tmp_path / "o.onnx").exists()


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file.os, "replace", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        write_model(plain(), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_an_output_over_its_own_input(tmp_path: Path, graphprune_cli: Cli) -> None:
    model = write(plain(), tmp_path / "m.onnx")
    assert graphprune_cli("prune", model, "-o", model, "--target", "channels=0.5", "--align", "1").exit_code == 0
    assert len(initializer(read_model(model), "w1")) < 8


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    mask = os.umask(0o022)
    try:
        write_model(plain(), path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644


def test_weights_beyond_the_limit_of_a_message_go_to_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above 2 GB, with the limit lowered to 1 kB."""
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", 1000)
    big = net("big (float[N,40] x) => (float[N,3] y) <float[40,50] a, float[50,3] b> {h = MatMul(x, a)\n y = MatMul(h, b)}")
    big.graph.initializer[0].doc_string = "large"
    path = tmp_path / "m.onnx"
    write_model(big, path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 2000
    again = read_model(path)
    assert np.array_equal(initializer(again, "a"), initializer(big, "a"))
    assert again.graph.initializer[0].doc_string == "large"
    assert content_hash(again) == content_hash(big)
    onnx.checker.check_model(str(path))


def test_the_hash_is_the_models_not_the_files(tmp_path: Path) -> None:
    assert content_hash(plain()) == content_hash(plain())
    changed = plain()
    changed.graph.node[0].name = "other"
    assert content_hash(changed) != content_hash(plain())


@pytest.mark.parametrize("limit", [1000, 30_000])
def test_weights_above_the_limit_stay_in_their_file(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit weights are mapped, not read; the result is the same, whether it fits one message (30 kB) or not."""
    model = net("""
        large (float[N,64] x) => (float[N,3] y) <float[64,80] w1, float[80,70] w2, float[70,3] w3, float[80] b> {
            a = MatMul(x, w1)
            c = Add(a, b)
            d = MatMul(c, w2)
            y = MatMul(d, w3)
        }""")
    path = tmp_path / "large.onnx"
    copy = ModelProto.FromString(model.SerializeToString())  # saving changes its argument
    onnx.save(copy, path, save_as_external_data=True, location="large.data", size_threshold=0)
    expected = graphprune.prune(model, targets=["channels=0.5"], align=1)
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", limit)
    graph = graphprune.load(path)
    places = {tensor.name: tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.model.graph.initializer}
    assert places == {"w1": True, "w2": True, "w3": False, "b": False}
    result = graphprune.prune(graph, targets=["channels=0.5"], align=1)
    assert result.keep == expected.keep
    assert result.proof is not None
    assert result.proof.passed
    out = tmp_path / "out.onnx"
    model_file.write_model(result.model, out)
    assert out.with_name("out.onnx.data").exists() == (limit == 1000)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer}
    for tensor in expected.model.graph.initializer:
        np.testing.assert_array_equal(found[tensor.name], numpy_helper.to_array(tensor))
    assert graphprune.apply_plan(path, result.plan).keep == result.keep
