"""Exporters and the verb `export`: what they write computes what the model computes, or nothing is written.

Those of OpenVINO need the extra: `pytest -m openvino`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result
from marks import with_openvino
from nets import net, plain, residual, write
from onnx import ModelProto

from graphprune import export_command, pipeline, registry
from graphprune.errors import ProofError, UsageError
from graphprune.exporters import agreement, onnxruntime_model
from graphprune.exporters.base import Written, staged
from graphprune.pipeline import load
from graphprune.provenance import record
from graphprune.runtime import random_inputs, run

Cli = Callable[..., Result]

WITH_BRANCHES = """net (float[N,4] x, bool c) => (float[N,3] y) <float[4,3] w, float[4,3] v> {
    y = If (c) <
        then_branch = yes () => (float[N,3] a) { a = MatMul(x, w) },
        else_branch = no () => (float[N,3] b) { b = MatMul(x, v) }
    >
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(residual(), tmp_path / "model.onnx")


def computed(path: Path, feeds: dict[str, Any]) -> list[Any]:
    return list(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds))


# ---- ONNX Runtime ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arguments"), [("net.ort", []), ("net.onnx", ["--format", "onnxruntime"]), ("net.onnx", [])])
def test_what_is_exported_computes_the_same(
    graphprune_cli: Cli, model: Path, tmp_path: Path, name: str, arguments: list[str]
) -> None:
    out = tmp_path / name
    result = graphprune_cli("export", model, "-o", out, *arguments, "--json", "-")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["files"] == {str(out): out.stat().st_size}
    assert facts["difference"] is None or facts["difference"] < 1e-5
    feeds = random_inputs(load(model), seed=3)
    for value, expected in zip(computed(out, feeds), run(onnx.load(model), feeds).values(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    assert sorted(tmp_path.iterdir()) == sorted([model, out])


@pytest.mark.parametrize("name", ["net.ort", "net.onnx"])
def test_an_input_without_axes(graphprune_cli: Cli, tmp_path: Path, name: str) -> None:
    path = write(net("net (float x, float[2,3] z) => (float[2,3] y) { y = Mul(x, z) }"), tmp_path / "model.onnx")
    result = graphprune_cli("export", path, "-o", tmp_path / name, "--format", "ort" if name == "net.ort" else "onnxruntime")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("output", "arguments", "message"),
    [
        ("net.ort", ["--json", "net.ort"], "two results would be written there"),
        ("net.onnx", ["--format", "onnx{weights=data}", "--json", "net.onnx.data"], "two results would be written there"),
        ("model.onnx", ["--format", "onnxruntime"], "this command reads it; write the result to another file"),
    ],
)
def test_nothing_is_overwritten(
    graphprune_cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch, output: str, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(model.parent)
    before = model.read_bytes()
    result = graphprune_cli("export", "model.onnx", "-o", output, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    assert model.read_bytes() == before


def test_the_weights_of_the_source_stay(graphprune_cli: Cli, tmp_path: Path) -> None:
    """They may be in a file that is called as the result's would be."""
    onnx.save(residual(), tmp_path / "a.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    before = (tmp_path / "b.onnx.data").read_bytes()
    result = graphprune_cli("export", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx", "--format", "onnx{weights=data}")
    assert result.exit_code == 2
    assert "b.onnx.data: this command reads it" in result.stderr
    assert (tmp_path / "b.onnx.data").read_bytes() == before


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_levels_of_optimisation(graphprune_cli: Cli, model: Path, tmp_path: Path, level: str) -> None:
    """What has been optimised has fewer nodes, and from `extended` on fused ones of ONNX Runtime's own."""
    out = tmp_path / "net.onnx"
    assert graphprune_cli("export", model, "-o", out, "--format", f"onnxruntime{{level={level}}}").exit_code == 0
    nodes = onnx.load(out).graph.node
    assert len(nodes) < len(onnx.load(model).graph.node)
    assert any(node.domain.startswith("com.microsoft") for node in nodes) == (level != "basic")


def test_provenance_survives(graphprune_cli: Cli, tmp_path: Path) -> None:
    result = pipeline.prune(residual(), targets="channels=0.5", align=1)
    pruned = write(record(result.model, result.plan), tmp_path / "pruned.onnx")
    found = {}
    for name, spec in (("net.ort", "ort"), ("net.onnx", "onnxruntime")):
        assert graphprune_cli("export", pruned, "-o", tmp_path / name, "--format", spec).exit_code == 0
        session = ort.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        found[spec] = session.get_modelmeta().custom_metadata_map["graphprune.source_sha256"]
    assert set(found.values()) == {result.plan.model_sha256}


@pytest.mark.parametrize("name", ["net.ort", "net.onnx"])
def test_branches_are_exported(graphprune_cli: Cli, tmp_path: Path, name: str) -> None:
    source = write(net(WITH_BRANCHES), tmp_path / "model.onnx")
    assert (
        graphprune_cli("export", source, "-o", tmp_path / name, "--format", "ort" if "ort" in name else "onnxruntime").exit_code
        == 0
    )
    for choice in (True, False):
        feeds = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32), "c": np.array(choice)}
        (value,), (expected,) = computed(tmp_path / name, feeds), run(onnx.load(source), feeds).values()
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_weights_above_the_limit_stand_beside(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As models above 2 GB, with a lower limit: the optimised model has its weights in a file of its own."""
    monkeypatch.setattr(onnxruntime_model, "fits_message", lambda given: False)
    layer = net("net (float[N,64] x) => (float[N,512] y) <float[64,512] w> { y = MatMul(x, w) }")
    out = tmp_path / "net.onnx"
    written = registry.make("exporters", "onnxruntime").write(load(layer).model, out)
    assert written.files == (out, tmp_path / "net.onnx.data")
    assert written.files[1].stat().st_size >= 64 * 512 * 4
    feeds = random_inputs(load(layer), seed=1)
    np.testing.assert_allclose(computed(out, feeds)[0], run(layer, feeds)["y"], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"the format 'ort' holds at most 2 GB"):
        registry.make("exporters", "ort").write(load(layer).model, tmp_path / "net.ort")


def test_input_shapes_become_fixed(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    name = onnx.load(model).graph.input[0].name
    assert graphprune_cli("export", model, "-o", tmp_path / "net.onnx", "--input-shape", f"{name}=4,3,8,8").exit_code == 0
    dims = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [4, 3, 8, 8]


# ---- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.ort", "net.onnx"])
def test_a_difference_leaves_no_file(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    right = agreement.run
    monkeypatch.setattr(agreement, "run", lambda *args, **more: {key: v * 1.001 for key, v in right(*args, **more).items()})
    (tmp_path / name).write_text("what was there before")
    result = graphprune_cli("export", model, "-o", tmp_path / name, "--format", "ort" if "ort" in name else "onnxruntime")
    assert result.exit_code == 5
    assert "the optimised model's output" in result.stderr
    assert "differs from ONNX Runtime's by 1.0e-03 of scale (1.0e-04 is allowed); nothing was written" in result.stderr
    assert (tmp_path / name).read_text() == "what was there before"
    assert sorted(tmp_path.iterdir()) == sorted([model, tmp_path / name])


def test_what_optimisations_change_is_no_rounding(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimiser with a fault: with and without it the results differ, and the file is refused."""
    right = agreement.run

    def faulty(given: ModelProto, feeds: Any, optimize: bool = False) -> dict[str, Any]:
        return {key: value * (1.0 if optimize else 1.01) for key, value in right(given, feeds, optimize).items()}

    monkeypatch.setattr(agreement, "run", faulty)
    result = graphprune_cli("export", model, "-o", tmp_path / "net.ort")
    assert result.exit_code == 5
    assert "by 9.9e-03 of scale" in result.stderr
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["net.foo"], "net.foo: no format writes files that end like this; give --format, or another suffix (onnx: .onnx;", 2),
        (["net.xml", "--format", "ort"], "net.xml: the format 'ort' writes NAME.ort", 2),
        (["net.zip", "--format", "tvm"], "net.zip: the output is a library NAME.so, or NAME.tar", 2),
        (
            ["net.onnx", "--format", "nothing"],
            "no exporters is called 'nothing'; there are: onnx, onnxruntime, openvino, ort, tvm",
            2,
        ),
        (["net.ort", "--format", "ort{level=9}"], "exporters 'ort': option level='9': Input should be 'basic'", 2),
        (["net.ort", "--format", "ort{depth=9}"], "exporters 'ort' has no option 'depth'; it has: level", 2),
        (["nowhere/net.ort"], "the folder", 2),
        (["net.ort", "--input-shape", "z=1,2"], "the model has no such input", 2),
    ],
)
def test_errors(graphprune_cli: Cli, model: Path, tmp_path: Path, arguments: list[str], message: str, code: int) -> None:
    result = graphprune_cli("export", model, "-o", tmp_path / arguments[0], *arguments[1:])
    assert result.exit_code == code
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == [model]


def test_a_model_that_the_runtime_cannot_load(graphprune_cli: Cli, tmp_path: Path) -> None:
    odd = plain()
    odd.graph.node[0].domain = "nobody"
    odd.opset_import.add(domain="nobody", version=1)
    path = write(odd, tmp_path / "odd.onnx")
    result = graphprune_cli("export", path, "-o", tmp_path / "odd.ort")
    assert result.exit_code == 3
    assert "ONNX Runtime cannot load the model:" in result.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_that_the_model_cannot_take(graphprune_cli: Cli, tmp_path: Path) -> None:
    """What dynamic sizes stand for is a guess: where the model does not run with them, the message says what to give."""
    picky = net("net (float[N,K] x) => (float[N,3] y) <float[7,3] w> { y = MatMul(x, w) }")
    path = write(picky, tmp_path / "picky.onnx")
    result = graphprune_cli("export", path, "-o", tmp_path / "picky.ort")
    assert result.exit_code == 2
    assert "ONNX Runtime cannot run the model on random inputs, to compare:" in result.stderr
    assert "Check --input-shape" in result.stderr
    assert list(tmp_path.iterdir()) == [path]
    assert graphprune_cli("export", path, "-o", tmp_path / "picky.ort", "--input-shape", "x=2,7").exit_code == 0


def test_a_file_that_does_not_run_is_refused(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("no kernel\nat all")

    monkeypatch.setattr(onnxruntime_model, "_run", broken)
    result = graphprune_cli("export", model, "-o", tmp_path / "net.ort")
    assert result.exit_code == 5
    assert "the optimised model cannot be run: no kernel; nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("verb", [["export", "-o", "net.xml"], ["bench", "--backend", "openvino"]])
def test_a_missing_extra_is_named(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.chdir(tmp_path)
    result = graphprune_cli(*verb, model)
    assert result.exit_code == 6
    assert "pip install 'graphprune[openvino]'" in result.stderr
    assert list(tmp_path.iterdir()) == [model]


# ---- the door -------------------------------------------------------------------------------------


class Text(registry.load("exporters", "onnx").__bases__[0]):  # type: ignore[misc]
    """A plugin's exporter."""

    name = "text"
    suffixes = (".txt", ".md")

    def write(self, model: ModelProto, path: Path) -> Written:
        path.write_text(onnx.printer.to_text(model))
        return Written((path,), None)


def test_a_plugin_writes_what_its_suffix_says(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {
        "onnx": registry.load("exporters", "onnx"),
        "text": Text,
        "other": type("Other", (Text,), {"name": "other", "suffixes": (".md",)}),
    }
    monkeypatch.setattr(registry, "registered", lambda kind: classes)
    monkeypatch.setattr(registry, "load", lambda kind, name: classes[name])
    assert export_command.format_of(tmp_path / "a.onnx") == "onnx"
    assert graphprune_cli("export", model, "-o", tmp_path / "a.txt").exit_code == 0
    assert (tmp_path / "a.txt").read_text().startswith("<")
    result = graphprune_cli("export", model, "-o", tmp_path / "a.md")
    assert result.exit_code == 2
    assert "several formats write .md files (other, text): choose one by --format" in result.stderr


def test_staged_files_appear_together(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    second.write_text("old")
    with staged(first, second, third) as (one, two, _):
        one.write_text("1")
        two.write_text("2")
        assert second.read_text() == "old"
    assert (first.read_text(), second.read_text()) == ("1", "2")
    with pytest.raises(ProofError), staged(first, second) as (one, _):  # noqa: PT012
        one.write_text("wrong")
        raise ProofError("differs")
    assert first.read_text() == "1"
    assert sorted(tmp_path.iterdir()) == [first, second]
    with pytest.raises(UsageError, match="cannot write there"), staged(tmp_path / "nowhere" / "a"):
        pass


# ---- OpenVINO -------------------------------------------------------------------------------------


@with_openvino
def test_openvino_computes_the_same(graphprune_cli: Cli, tmp_path: Path) -> None:
    """Both files are read by OpenVINO alone, weights are not rounded, and the graph says where it came from."""
    import openvino

    result = pipeline.prune(residual(), targets="channels=0.5", align=1)
    model = write(record(result.model, result.plan), tmp_path / "model.onnx")
    out = tmp_path / "net.xml"
    told = graphprune_cli("export", model, "-o", out, "--json", "-")
    assert told.exit_code == 0, told.stderr
    facts = json.loads(told.stdout)
    assert set(facts["files"]) == {str(out), str(tmp_path / "net.bin")}
    assert facts["difference"] < 1e-5
    core = openvino.Core()
    read = core.read_model(out)
    assert read.get_rt_info(["graphprune", "source_sha256"]).astype(str) == result.plan.model_sha256
    assert all(value.get_element_type() == openvino.Type.f32 for value in [*read.inputs, *read.outputs])
    feeds = random_inputs(load(model), seed=3)
    values = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)
    for name, expected in run(onnx.load(model), feeds).items():
        np.testing.assert_allclose(values[name], expected, rtol=1e-4, atol=1e-5)
    assert sorted(tmp_path.iterdir()) == sorted([model, out, tmp_path / "net.bin"])


@with_openvino
def test_a_difference_leaves_neither_file(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = agreement.run
    monkeypatch.setattr(agreement, "run", lambda *args, **more: {key: v * 1.001 for key, v in right(*args, **more).items()})
    result = graphprune_cli("export", model, "-o", tmp_path / "net.xml")
    assert result.exit_code == 5
    assert "OpenVINO's output" in result.stderr
    assert list(tmp_path.iterdir()) == [model]


@with_openvino
def test_operators_that_openvino_does_not_know(graphprune_cli: Cli, tmp_path: Path) -> None:
    odd = plain()
    odd.graph.node[0].domain = "nobody"
    odd.opset_import.add(domain="nobody", version=1)
    path = write(odd, tmp_path / "odd.onnx")
    result = graphprune_cli("export", path, "-o", tmp_path / "odd.xml")
    assert result.exit_code == 3
    assert "OpenVINO cannot run the model:" in result.stderr
    assert "nobody" in result.stderr
    assert list(tmp_path.iterdir()) == [path]


@with_openvino
def test_bench_by_openvino(graphprune_cli: Cli, model: Path) -> None:
    result = graphprune_cli("bench", model, "--backend", "openvino", "--batch", "2", "--json", "-")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["backend"] == "openvino"
    assert found["models"][0]["median_ms"] > 0


@with_openvino
def test_the_backend_computes_what_onnx_runtime_does(model: Path) -> None:
    feeds = random_inputs(load(model), seed=5)
    again = registry.load("backends", "openvino")(onnx.load(model), feeds, 1)
    again()
    results = again()
    for name, expected in run(onnx.load(model), feeds).items():
        np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-5)
