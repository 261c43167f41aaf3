"""Text, files and archives that are not what they say: refused by name, and nothing outside of their folder is touched."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_models import populate
from nets import net, plain, write
from onnx import ModelProto, helper

from graphprune import limits, model_file, pipeline, worker
from graphprune.archives import check_archive
from graphprune.errors import InvalidModelError, UsageError
from graphprune.model_file import read_model
from graphprune.plan import read_plan
from graphprune.run import Job
from graphprune.samples import read_samples

# ---- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"conv_one", b"conv\xffone", "a name in a NodeProto is not UTF-8 text"),
        (b"conv_one", b"conv\x1bone", r"the name 'conv\x1bone' has control characters"),
        (b"conv_one", b"conv\none", r"the name 'conv\none' has control characters"),
        (b"some doc", b"some\x07doc", r"the doc_string 'some\x07doc' has control characters"),
    ],
)
def test_text_in_a_model(tmp_path: Path, graphprune_cli: Any, old: bytes, new: bytes, message: str) -> None:
    model = plain()
    model.graph.node[0].name, model.doc_string = "conv_one", "some doc"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(old, new))
    result = graphprune_cli("analyze", path)
    assert result.exit_code == 3
    assert message in result.stderr


def test_prose_may_have_lines(tmp_path: Path) -> None:
    model = plain()
    model.doc_string = "one\n\ttwo\r\n"
    assert read_model(write(model, tmp_path / "m.onnx")).doc_string == "one\n\ttwo\r\n"


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, graphprune_cli: Any) -> None:
    model = plain()
    model.graph.node[0].input[1] = model.graph.initializer[0].name = "[/red]w[bold]"
    result = graphprune_cli("analyze", write(model, tmp_path / "m.onnx"))
    assert result.exit_code == 0, result.output
    assert "[/red]w[bold]" in result.stdout


def test_too_many_dimensions(tmp_path: Path) -> None:
    model = plain()
    for _ in range(100):
        model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 1
    with pytest.raises(InvalidModelError, match="a tensor has 104 dimensions; more than 64 cannot be worked with"):
        read_model(write(model, tmp_path / "m.onnx"))


# ---- files --------------------------------------------------------------------------------------


def test_pipes_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    graph = pipeline.load(plain())
    for read, error in (
        (read_model, InvalidModelError),
        (read_plan, UsageError),
        (lambda path: read_samples(path, graph), UsageError),
    ):
        with pytest.raises(error, match="not a regular file"):
            read(pipe)


def test_a_plan_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_LIMITS", "0.01")
    (tmp_path / "p.json").write_bytes(b" " * 2**21)
    with pytest.raises(UsageError, match=r"p\.json: larger than 128 MiB, which is the limit for a plan"):
        read_plan(tmp_path / "p.json")


def test_external_data_where_no_initializer_is(tmp_path: Path) -> None:
    """In a constant, in a function and in a sparse tensor."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "canary").write_bytes(b"\0" * 400)
    populate(tmp_path / "in", tmp_path / "secret")
    tensor = _external("link")
    constant = helper.make_node("Constant", [], ["t"], value=tensor)
    for place in ("constant", "function", "sparse"):
        model = plain()
        if place == "constant":
            model.graph.node.insert(0, constant)
        elif place == "function":
            model.functions.append(helper.make_function("d", "f", [], ["t"], [constant], [helper.make_opsetid("", 17)]))
        else:
            model.graph.sparse_initializer.add(dims=[100]).values.CopyFrom(tensor)
        with pytest.raises(InvalidModelError, match="points outside the model's folder"):
            read_model(write(model, tmp_path / "in" / "m.onnx"))


def test_external_data_that_many_tensors_name_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[int] = []
    monkeypatch.setattr(model_file, "grant", granted.append)
    (tmp_path / "data").write_bytes(b"\0" * 600)
    model = plain()
    for number in range(5):
        model.graph.initializer.append(_external("data"))
        model.graph.initializer[-1].name = f"t{number}"
    path = write(model, tmp_path / "m.onnx")
    read_model(path)
    assert granted == [path.stat().st_size, 400, 200, 0, 0, 0]


def _external(location: str) -> Any:
    tensor = helper.make_tensor("t", 1, [0], [])
    tensor.dims[:] = [100]
    tensor.data_location = 1
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_archives_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHPRUNE_LIMITS", "0.01")
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("weights", "w", force_zip64=True) as entry:
        for _ in range(20):
            entry.write(b"\0" * 2**20)
    with pytest.raises(InvalidModelError, match=r"m.keras: what is packed in it takes 21 MB of memory"):
        check_archive(path)


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out"])
def test_archives_that_lead_out_of_their_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InvalidModelError, match="leads out of the folder"):
        check_archive(path)


def test_samples_that_lie(tmp_path: Path) -> None:
    graph = pipeline.load(plain())
    path = tmp_path / "s.npz"
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="cannot read the samples: Object arrays cannot be loaded"):
        read_samples(path, graph)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3, 8, 8)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(UsageError, match="cannot read the samples"):
        read_samples(path, graph)


@pytest.mark.parametrize("labels", [np.zeros((4, 2)), np.array(["a"] * 4)])
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros((4, 3, 8, 8), np.float32), labels=labels)
    with pytest.raises(UsageError, match="one number per sample is needed"):
        read_samples(tmp_path / "s.npz", pipeline.load(plain()))


def test_a_function_that_calls_itself(tmp_path: Path, graphprune_cli: Any) -> None:
    model = plain()
    calls = [helper.make_node("f", ["a"], ["b"], domain="d")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    model.functions.append(helper.make_function("d", "f", ["a"], ["b"], calls, opsets))
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("f", ["x"], ["z"], domain="d"))
    result = graphprune_cli("analyze", write(model, tmp_path / "m.onnx"))
    assert result.exit_code == 3
    assert "its functions cannot be inlined" in result.stderr


def test_a_model_that_cannot_be_upgraded(tmp_path: Path, graphprune_cli: Any) -> None:
    """The version converter infers shapes, and what it then raises is not its own error."""
    model = net("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }", opset=9)
    model.graph.node.append(helper.make_node("Atanh", [], ["z"]))
    result = graphprune_cli("analyze", write(model, tmp_path / "m.onnx"))
    assert result.exit_code == 3
    assert "cannot upgrade the model from opset 9" in result.stderr


def test_what_a_job_trips_over_is_the_fault_of_an_unsound_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(worker, "_work", stumble)
    monkeypatch.setattr(worker, "_capture_output", lambda *_: None)
    monkeypatch.setattr(limits, "begin", lambda: None)
    model = plain()
    sound = write(model, tmp_path / "sound.onnx")
    model.graph.node[2].input[1] = "w1"
    unsound = write(model, tmp_path / "unsound.onnx")
    reports = [worker.work(worker.Task("t", "d", Job(model=str(path)), tmp_path)) for path in (sound, unsound)]
    assert (reports[0].exit_code, reports[0].message) == (1, "internal error (IndexError: list index out of range)")
    assert reports[1].exit_code == 3
    assert "unsound.onnx: not a valid ONNX model" in reports[1].message


def test_what_trips_over_an_unsound_model_blames_the_model(
    tmp_path: Path, graphprune_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> ModelProto:
        raise IndexError("list index out of range")

    monkeypatch.setattr(pipeline, "analyze", stumble)
    sound = write(plain(), tmp_path / "sound.onnx")
    model = plain()
    model.graph.node[2].input[1] = "w1"
    result = graphprune_cli("analyze", write(model, tmp_path / "unsound.onnx"))
    assert result.exit_code == 3
    assert "unsound.onnx: not a valid ONNX model" in result.stderr
    result = graphprune_cli("analyze", sound)
    assert result.exit_code == 1
    assert "internal error (IndexError" in result.stderr
