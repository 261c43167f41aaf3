"""Files that nobody should trust: each with its message and exit code, no traceback, no output."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from nets import initializer, net, plain, write
from onnx import ModelProto, TensorProto, helper

from graphprune import pipeline
from graphprune.errors import InvalidModelError
from graphprune.model_file import content_hash, read_model

Cli = Callable[..., Result]


def refused(cli: Cli, path: Path, message: str, code: int = 3) -> None:
    """Every verb that reads a model refuses this one, and leaves nothing behind."""
    out = path.parent / "out" / "pruned.onnx"
    out.parent.mkdir(exist_ok=True)
    for arguments in (
        ["prune", path, "-o", out, "--target", "channels=0.5", "--align", "1", "--plan", out.with_suffix(".json")],
        ["import", path, "-o", out, "--format", "onnx"],
        ["analyze", path],
        ["diff", path, path],
    ):
        result = cli(*arguments)
        assert result.exit_code == code, result.stderr
        assert message in result.stderr
        assert result.stderr.startswith("graphprune: error: ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert "Traceback" not in result.stderr + result.stdout
        assert not result.stdout
        assert not list(out.parent.iterdir())


# ---- what is no model ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an ONNX model"),
        (b"\x00", "not an ONNX"),
        (b"PK\x03\x04 this is a zip file, as torch.save writes them", "not an ONNX"),
        (b'{"schema": "graphprune.plan/1"}', "not an ONNX"),
        (b"\x08\x0a", "it has no graph, IR version or opset import"),
        (bytes(range(256)) * 8, "not an ONNX"),
    ],
)
def test_bytes_that_are_no_model(tmp_path: Path, graphprune_cli: Cli, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(graphprune_cli, path, message)


def test_a_file_that_is_missing_and_one_that_is_a_folder(tmp_path: Path, graphprune_cli: Cli) -> None:
    refused(graphprune_cli, tmp_path / "missing.onnx", "cannot read the model: No such file")
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    refused(graphprune_cli, folder, "cannot read the model")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model(tmp_path: Path, graphprune_cli: Cli, share: float) -> None:
    data = plain().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    refused(graphprune_cli, path, "model.onnx: ")


def test_every_truncation_of_a_model_is_refused_or_read_without_a_crash() -> None:
    text = "t (float[N,3] x) => (float[N,2] y) <float[3,4] w, float[4,2] v> {h = MatMul(x, w)\n y = MatMul(h, v)}"
    data = net(text).SerializeToString()
    for length in range(0, len(data), 3):
        model = ModelProto()
        try:
            model.ParseFromString(data[:length])
        except Exception:
            continue
        try:
            pipeline.load(model)
        except InvalidModelError:
            continue


# ---- external data ------------------------------------------------------------------------------


def with_external(folder: Path, location: str = "weights.bin", offset: str = "0", length: str | None = None) -> Path:
    """`plain` with w1 in another file."""
    model = plain()
    tensor = model.graph.initializer[0]
    data = initializer(model, "w1").astype(np.float32).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(data)
    return write(model, folder / "model.onnx")


def test_external_data_in_the_same_folder(tmp_path: Path, graphprune_cli: Cli) -> None:
    path = with_external(tmp_path / "m")
    out = tmp_path / "out.onnx"
    assert graphprune_cli("prune", path, "-o", out, "--target", "channels=0.5", "--align", "1").exit_code == 0
    assert np.array_equal(initializer(read_model(path), "w1"), initializer(plain(), "w1"))
    assert content_hash(read_model(path)) == content_hash(plain())
    assert not (tmp_path / "out.onnx.data").exists()


def test_external_data_in_a_folder_below(tmp_path: Path) -> None:
    path = with_external(tmp_path / "m", "deep/weights.bin")
    (tmp_path / "m" / "deep").mkdir()
    os.rename(tmp_path / "m" / "weights.bin", tmp_path / "m" / "deep" / "weights.bin")
    assert np.array_equal(initializer(read_model(path), "w1"), initializer(plain(), "w1"))


def test_external_data_that_is_missing(tmp_path: Path, graphprune_cli: Cli) -> None:
    path = with_external(tmp_path / "m", "gone.bin")
    refused(graphprune_cli, path, "external data of 'w1' is missing")


def test_external_data_outside_the_folder(tmp_path: Path, graphprune_cli: Cli) -> None:
    secret = tmp_path / "weights.bin"
    secret.write_bytes(b"\0" * 864)
    for location in ("../weights.bin", str(secret), "a/../../weights.bin", ""):
        path = with_external(tmp_path / "m", location)
        refused(graphprune_cli, path, "points outside the model's folder")


def test_external_data_behind_a_symlink(tmp_path: Path, graphprune_cli: Cli) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 864)
    path = with_external(tmp_path / "m", "link.bin")
    (tmp_path / "m" / "link.bin").symlink_to(secret)
    refused(graphprune_cli, path, "points outside the model's folder")


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        ("0", "9999", "does not fit"),
        ("4", None, "does not fit: 864 bytes are declared, the file weights.bin has 864"),
        ("-4", None, "does not fit"),
        ("0", "100", "does not fit"),
        ("0", "-1", "does not fit"),
        ("zero", None, "malformed offset or length"),
    ],
)
def test_external_data_of_another_size(
    tmp_path: Path, graphprune_cli: Cli, offset: str, length: str | None, message: str
) -> None:
    refused(graphprune_cli, with_external(tmp_path / "m", offset=offset, length=length), message)


def test_external_data_that_is_too_short(tmp_path: Path, graphprune_cli: Cli) -> None:
    path = with_external(tmp_path / "m")
    (tmp_path / "m" / "weights.bin").write_bytes(b"\0" * 863)
    refused(graphprune_cli, path, "does not fit")


# ---- tensors that lie ---------------------------------------------------------------------------


def broken(change: Callable[[ModelProto], object]) -> ModelProto:
    model = plain()
    change(model)
    return model


def less_data(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def huge(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def overflowing(model: ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**62, 2**62, 2**62])


def huge_without_data(model: ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].dims[0] = 2**50


def negative(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -8


def unknown_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def no_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "r2"


def self_loop(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "r1"


def duplicate_output(model: ModelProto) -> None:
    model.graph.node[3].output[0] = "r1"


def duplicate_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def written_input(model: ModelProto) -> None:
    model.graph.node[0].output[0] = "x"


def undefined(model: ModelProto) -> None:
    model.graph.node[2].input[0] = "nobody"


def no_output(model: ModelProto) -> None:
    model.graph.output[0].name = "nobody"


def unknown_operator(model: ModelProto) -> None:
    model.graph.node[1].op_type = "Wobble"


def too_many_inputs(model: ModelProto) -> None:
    model.graph.node[1].input.extend(["x", "x"])


def future_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (less_data, "tensor 'w1' declares 864 bytes and holds 860"),
        (huge, "tensor 'w1' declares"),
        (overflowing, "tensor 'w1' declares"),
        (huge_without_data, "tensor 'w1' declares"),
        (negative, "tensor 'w1' has a negative dimension"),
        (unknown_type, "tensor 'w1' has the unknown data type 99"),
        (no_type, "tensor 'w1' has the unknown data type 0"),
        (cycle, "the graph has a cycle: "),
        (self_loop, "the graph has a cycle: "),
        (duplicate_output, "the name 'r1' is defined 2 times; ONNX names must be unique"),
        (duplicate_initializer, "'w1' is defined 2 times; ONNX names must be unique"),
        (written_input, "the name 'x' is defined 2 times"),
        (undefined, "reads 'nobody', which nothing in the graph defines"),
        (no_output, "network output 'nobody' is not written by any node"),
        (unknown_operator, "not a valid ONNX model"),
        (too_many_inputs, "not a valid ONNX model"),
        (future_opset, "999"),
    ],
)
def test_models_that_break_the_standard(
    tmp_path: Path, graphprune_cli: Cli, change: Callable[[ModelProto], object], message: str
) -> None:
    refused(graphprune_cli, write(broken(change), tmp_path / "model.onnx"), message)


def test_the_message_of_a_cycle_names_its_nodes(tmp_path: Path) -> None:
    model = broken(cycle)
    for number, node in enumerate(model.graph.node):
        node.name = f"layer{number}"
    with pytest.raises(InvalidModelError) as error:
        pipeline.load(model)
    for number in range(4):
        assert f"'layer{number}'" in str(error.value)
    assert "layer5" not in str(error.value)


def test_a_shape_that_contradicts_the_weights_does_not_crash(tmp_path: Path, graphprune_cli: Cli) -> None:
    """Valid by name and arity, but no runtime could run it."""
    model = plain()
    model.graph.node[2].input[1] = "w1"
    path = write(model, tmp_path / "m.onnx")
    result = graphprune_cli("prune", path, "-o", tmp_path / "out.onnx", "--target", "channels=0.5", "--align", "1")
    assert result.exit_code in (3, 4, 5)
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_weights_inside_attributes_are_checked_too(tmp_path: Path, graphprune_cli: Cli) -> None:
    model = plain()
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    tensor.dims[0] = 2**40
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(helper.make_attribute("value", tensor))
    model.graph.node.insert(0, node)
    refused(graphprune_cli, write(model, tmp_path / "m.onnx"), "tensor 't' declares")
