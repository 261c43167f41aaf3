"""Files that are written: whole or not at all, large ones in two parts, and read back the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import Result
from nets import initializer, net, plain, write
from onnx import ModelProto, numpy_helper

import graphprune
from graphprune import model_file, registry
from graphprune.atomic import atomic_file
from graphprune.errors import UsageError
from graphprune.model_file import content_hash, read_model, write_model
from graphprune.plan import weights_path
from graphprune.runtime import random_inputs, run

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


# ---- weights in a file beside the model ----------------------------------------------------------

MIXED = """
    mixed (float[N,40] x) => (float[N,3] y, float16[N,9] z, float[5,8] r, int8[300] i, int64[400] k)
    <float[40,50] a, float[50,3] b, float[3] c, float16[40,9] h, int64[2] s = {5, 8}, int8[300] j,
     int64[400] l, float[0,4] empty> {
        m = MatMul(x, a)
        n = MatMul(m, b)
        y = Add(n, c)
        f = Cast<to = 10>(x)
        z = MatMul(f, h)
        first = Flatten<axis = 0>(x)
        r = Reshape(first, s)
        i = Identity(j)
        k = Identity(l)
    }"""


def mixed() -> ModelProto:
    """Several types, one of them not stored as bytes."""
    model = net(MIXED)
    plain_floats = next(tensor for tensor in model.graph.initializer if tensor.name == "b")
    values = numpy_helper.to_array(plain_floats).ravel().tolist()
    plain_floats.ClearField("raw_data")
    plain_floats.float_data.extend(values)
    plain_floats.doc_string = "kept"
    return model


@pytest.mark.parametrize("weights", ["inside", "data", "safetensors"])
def test_a_model_is_the_same_wherever_its_weights_are(weights: str, tmp_path: Path) -> None:
    model, path = mixed(), tmp_path / "m.onnx"
    files = registry.make("exporters", f"onnx{{weights={weights}}}").write(model, path).files
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["m.onnx", f"m.onnx.{weights}"][: 1 + (weights != "inside")]
    again = read_model(path)
    for before, after in zip(model.graph.initializer, again.graph.initializer, strict=True):
        assert (before.name, before.data_type, list(before.dims)) == (after.name, after.data_type, list(after.dims))
        assert before.doc_string == after.doc_string
        np.testing.assert_array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))
    onnx.load(path)


def test_weights_as_safetensors_are_read_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = tmp_path / "m.onnx"
    write_model(mixed(), path, "safetensors")
    found = load_file(path.with_name("m.onnx.safetensors"))
    assert set(found) == {"a", "b", "c", "h", "j"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, initializer(mixed(), name))


def test_a_model_with_safetensors_is_pruned(tmp_path: Path, graphprune_cli: Cli) -> None:
    path, smaller, out = tmp_path / "m.onnx", tmp_path / "smaller.onnx", tmp_path / "out.onnx"
    write_model(plain(), path, "safetensors")
    assert graphprune_cli("prune", path, "-o", smaller, "--target", "channels=0.5", "--align", "1").exit_code == 0
    assert graphprune_cli("export", smaller, "-o", out, "--format", "onnx{weights=safetensors}").exit_code == 0
    assert out.with_name("out.onnx.safetensors").exists()
    feeds = random_inputs(graphprune.load(smaller), 0)
    for one, other in zip(run(onnx.load(smaller), feeds).values(), run(onnx.load(out), feeds).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_known_places_for_weights(tmp_path: Path, graphprune_cli: Cli) -> None:
    path = write(plain(), tmp_path / "m.onnx")
    found = graphprune_cli("export", path, "-o", tmp_path / "out.onnx", "--format", "onnx{weights=zip}")
    assert found.exit_code == 2
    assert "weights" in found.stderr
    assert "safetensors" in found.stderr


def test_sizes_stay_in_the_model_where_shape_inference_reads_them(tmp_path: Path) -> None:
    model = net("""resized (float[1,3,4,4] x) => (float[1,8,7,8] y)
        <float[8,3,1,1] w, float[8] b, float[4] scales = {1.0, 1.0, 2.0, 2.0}, int32[1] one = {1},
         int32[1] many = {99}, int32[1] at = {2}> {
            a = Conv(x, w, b)
            c = Resize<mode = "nearest">(a, , scales)
            y = Slice(c, one, many, at)
        }""")
    path = tmp_path / "m.onnx"
    write_model(model, path, "safetensors")
    inside = [t.name for t in onnx.load(path, load_external_data=False).graph.initializer if t.HasField("raw_data")]
    assert inside == ["scales", "one", "many", "at"]
    session = onnxruntime.InferenceSession(str(path))
    assert session.run(None, {"x": np.ones((1, 3, 4, 4), np.float32)})[0].shape == (1, 8, 7, 8)


@pytest.mark.parametrize("weights", ["inside", "data", "safetensors"])
def test_the_size_of_a_model_is_that_of_all_its_files(weights: str, tmp_path: Path, graphprune_cli: Cli) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    files = write_model(mixed(), path, weights)
    out.with_name("out.onnx.data").write_bytes(b"of another model" * 1000)
    found = graphprune_cli("prune", path, "-o", out, "--target", "channels=0.5", "--align", "1", "--no-verify", "--json", "-")
    facts = json.loads(found.stdout)
    assert facts["before"]["file_bytes"] == sum(file.stat().st_size for file in files)
    assert facts["after"]["file_bytes"] == out.stat().st_size


def test_links_are_followed_and_devices_are_not_replaced(tmp_path: Path, graphprune_cli: Cli) -> None:
    path = write(plain(), tmp_path / "m.onnx")
    target, link, pipe = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    assert graphprune_cli("analyze", path, "--json", link).exit_code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())
    found = graphprune_cli("prune", path, "-o", tmp_path / "o.onnx", "--target", "channels=0.5", "--align", "1", "--json", pipe)
    assert found.exit_code == 2
    assert "pipe: not a regular file" in found.stderr
    with pytest.raises(UsageError, match="not a regular file"), atomic_file(pipe):
        pass
    assert pipe.is_fifo()


def test_results_do_not_overwrite_each_other_or_what_is_read(tmp_path: Path, graphprune_cli: Cli) -> None:
    path, out = write(plain(), tmp_path / "m.onnx"), tmp_path / "o.onnx"
    prune = ["prune", path, "-o", out, "--target", "channels=0.5", "--align", "1"]
    for more, message in (
        (["--plan", out], "two results would be written there"),
        (["--plan", tmp_path / "r", "--report", tmp_path / "r"], "two results would be written there"),
        (["--json", path], "this command reads it"),
    ):
        found = graphprune_cli(*prune, *more)
        assert found.exit_code == 2
        assert message in found.stderr
    assert not out.exists()
    assert graphprune_cli(*prune, "--plan", tmp_path / "p").exit_code == 0
    found = graphprune_cli("apply", path, tmp_path / "p", "-o", tmp_path / "p")
    assert found.exit_code == 2
    assert "this command reads it" in found.stderr


PRUNE = ("prune", "m.onnx", "-o", "o.onnx", "--target", "channels=0.5", "--align", "1")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("view", "m.onnx", "-o", "m.onnx"), "m.onnx"),
        (("analyze", "m.onnx", "--json", "m.onnx"), "m.onnx"),
        (("analyze", "m.onnx", "--json", "m.onnx.data"), "m.onnx.data"),
        (("diff", "m.onnx", "p.onnx", "--json", "p.onnx"), "p.onnx"),
        (("bench", "m.onnx", "p.onnx", "--json", "p.onnx"), "p.onnx"),
        (("inspect", "m.onnx", "--json", "m.onnx"), "m.onnx"),
        (("verify", "m.onnx", "plan.json", "p.onnx", "--json", "plan.weights.safetensors"), "plan.weights.safetensors"),
        (("apply", "m.onnx", "plan.json", "-o", "m.onnx.data"), "m.onnx.data"),
        (("import", "m.onnx", "-o", "m.onnx.data"), "m.onnx.data"),
        (("compare", "m.onnx", "--eval", "eval.npz", "--report", "eval.npz"), "eval.npz"),
        (("compare", "m.onnx", "--eval", "eval.npz", "--calibration", "c.npz", "--json", "c.npz"), "c.npz"),
        (("batch", "jobs.yaml", "--json", "jobs.yaml"), "jobs.yaml"),
        (("batch", "jobs.yaml", "--json", "m.onnx"), "m.onnx"),
        ((*PRUNE, "--config", "c.yaml", "--report", "c.yaml"), "c.yaml"),
        ((*PRUNE, "--config", "c.yaml", "--save-config", "c.yaml"), "c.yaml"),
        ((*PRUNE, "--calibration", "c.npz", "--events", "c.npz"), "c.npz"),
        ((*PRUNE, "--plan", "m.onnx.data"), "m.onnx.data"),
    ],
)
def test_no_verb_writes_over_what_it_reads(
    tmp_path: Path, graphprune_cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(plain(), tmp_path / "m.onnx", "data")
    write(plain(), tmp_path / "p.onnx")
    (tmp_path / "jobs.yaml").write_text("models: [m.onnx]\noptions: {target: channels=0.5}\n")
    (tmp_path / "c.yaml").write_text("recipe: fast\n")
    for each in ("eval.npz", "c.npz", "plan.json", "plan.weights.safetensors"):
        (tmp_path / each).write_bytes(b"is not read")
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    found = graphprune_cli(*arguments)
    assert (found.exit_code, found.stderr) == (
        2,
        f"graphprune: error: {name}: this command reads it; write the result to another file\n",
    )
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_weights_beside_an_output_are_not_those_that_are_read(
    tmp_path: Path, graphprune_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model keeps its weights where those of the output would go, if they were large."""
    monkeypatch.chdir(tmp_path)
    write_model(plain(), tmp_path / "o.onnx", "data")
    (tmp_path / "o.onnx").rename("m.onnx")
    for arguments in (PRUNE, ("import", "m.onnx", "-o", "o.onnx")):
        found = graphprune_cli(*arguments)
        assert found.exit_code == 2
        assert "o.onnx.data: this command reads it" in found.stderr
    write_model(plain(), tmp_path / "p.onnx", "data")
    assert graphprune_cli("import", "p.onnx", "-o", "p.onnx").exit_code == 0


def test_a_graph_that_is_too_large_for_one_file_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    weights = model_file.weight_bytes(model)
    monkeypatch.setattr(model_file, "PROTOBUF_LIMIT", weights + 3000)
    assert model_file.fits_message(model)
    model.graph.node[0].doc_string = "a stack trace " * 1000
    assert not model_file.fits_message(model)
    assert len(write_model(model, tmp_path / "m.onnx")) == 2


def test_repaired_weights_are_a_result_too(tmp_path: Path, graphprune_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(plain(), tmp_path / "m.onnx")
    found = graphprune_cli(*PRUNE, "--plan", "p.json", "--json", "p.weights.safetensors")
    assert found.exit_code == 2
    assert "p.weights.safetensors: two results would be written there" in found.stderr


def test_a_result_may_take_the_place_of_its_model(tmp_path: Path, graphprune_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(plain(), tmp_path / "m.onnx")
    assert graphprune_cli("import", "m.onnx", "-o", "m.onnx").exit_code == 0
    assert graphprune_cli("prune", "m.onnx", "-o", "m.onnx", "--target", "channels=0.5", "--align", "1").exit_code == 0


@pytest.mark.parametrize(
    ("name", "companion"), [("p.json", "p.weights.safetensors"), ("plan_0.5", "plan_0.5.weights.safetensors")]
)
def test_each_plan_has_weights_of_its_own(name: str, companion: str) -> None:
    assert weights_path(Path(name)) == Path(companion)
