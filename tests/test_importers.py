"""Importers without their frameworks: who is recognised, what is refused, what is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import Result
from nets import net
from onnx import numpy_helper

import graphprune
from graphprune import registry
from graphprune.errors import MissingExtraError, UsageError
from graphprune.importers.naming import name_initializers
from graphprune.sources import read_source

Cli = Callable[..., Result]


@pytest.fixture
def small() -> onnx.ModelProto:
    return net("""
        small (float[N,5] x) => (float[N,3] y) <float[5,8] w1, float[8,3] w2> {
            a = MatMul(x, w1)
            y = MatMul(a, w2)
        }""")


def accepting(source: object) -> list[str]:
    names = sorted(registry.registered("importers"))
    return [name for name in names if registry.load("importers", name)().accepts(source)]


def test_paths_are_recognised_by_what_they_are(tmp_path: Path) -> None:
    for name in ("saved/saved_model.pb", "hub/config.json", "program.json", "program.pdiparams"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = {
        "model.onnx": ["onnx"],
        "model.pt2": ["torch"],
        "model.pth": ["torch"],
        "model.keras": ["keras"],
        "model.h5": ["keras"],
        "model.tflite": ["tensorflow"],
        "model.skops": ["sklearn"],
        "model.pkl": ["sklearn"],
        "saved": ["tensorflow"],
        "hub": ["huggingface"],
        "program.json": ["paddle"],
        "other.json": [],
    }
    assert {name: accepting(tmp_path / name) for name in expected} == expected


def made_in(package: str) -> object:
    return type("Model", (), {"__module__": f"{package}.models"})()


@pytest.mark.parametrize(
    ("package", "importer"), [("torch", "torch"), ("keras", "keras"), ("flax", "jax"), ("sklearn", "sklearn"), ("other", None)]
)
def test_objects_are_recognised_by_their_class(package: str, importer: str | None) -> None:
    assert accepting(made_in(package)) == ([importer] if importer else [])


def test_an_example_input_tells_what_a_function_is_for() -> None:
    assert accepting((len, (made_in("jaxlib"),))) == ["jax"]
    assert accepting((made_in("torch"), (made_in("torch"),))) == ["torch"]


@pytest.mark.parametrize(
    ("source", "extra"),
    [("m.pt2", "torch"), ("m.keras", "keras"), ("m.tflite", "tensorflow"), ("m.skops", "sklearn"), ("m.pdmodel", "paddle")],
)
def test_a_missing_extra_is_named(graphprune_cli: Cli, tmp_path: Path, source: str, extra: str) -> None:
    for name in (source, "m.pdiparams"):
        (tmp_path / name).write_bytes(b"x")
    result = graphprune_cli("import", tmp_path / source, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 6
    assert f"pip install 'graphprune[{extra}]'" in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_a_missing_extra_of_an_object() -> None:
    with pytest.raises(MissingExtraError, match=r"graphprune\[jax\]"):
        graphprune.analyze(made_in("flax"))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "model.pkl", "model.joblib"])
def test_pickles_are_refused(graphprune_cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    result = graphprune_cli("prune", tmp_path / name, "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert result.exit_code == 3
    assert "loading a pickle runs whatever code is in it" in result.stderr


def test_hdf5_is_refused(graphprune_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    result = graphprune_cli("import", tmp_path / "model.h5", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 3
    assert "save the model as .keras" in result.stderr


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_a_folder_of_the_hub(graphprune_cli: Cli, small: onnx.ModelProto, tmp_path: Path, place: str) -> None:
    (tmp_path / "hub" / place).parent.mkdir(parents=True)
    (tmp_path / "hub" / "config.json").write_text("{}", encoding="utf-8")
    onnx.save(small, tmp_path / "hub" / place, save_as_external_data=True, location="weights", size_threshold=0)
    out = tmp_path / "out.onnx"
    result = graphprune_cli("prune", tmp_path / "hub", "-o", out, "--target", "channels=0.5", "--align", "1")
    assert result.exit_code == 0, result.stderr
    assert {tensor.name: list(tensor.dims) for tensor in onnx.load(out).graph.initializer} == {"w1": [5, 4], "w2": [4, 3]}


def test_a_folder_of_the_hub_without_onnx(graphprune_cli: Cli, small: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}", encoding="utf-8")
    result = graphprune_cli("import", tmp_path / "hub", "-o", tmp_path / "out.onnx")
    assert result.exit_code == 3
    assert "optimum-cli export onnx" in result.stderr
    onnx.save(small, tmp_path / "hub" / "decoder.onnx")
    result = graphprune_cli("import", tmp_path / "hub", "-o", tmp_path / "out.onnx")
    assert "name one of its files instead: decoder.onnx" in result.stderr


# ---- import strings -----------------------------------------------------------------------------


@pytest.fixture
def factories(small: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("graphprune_test_factories")
    module.nested = SimpleNamespace(model=made_in("elsewhere"))
    module.make = lambda: made_in("flax")
    monkeypatch.setitem(sys.modules, "graphprune_test_factories", module)
    return module


def test_a_function_is_called(factories: ModuleType) -> None:
    with pytest.raises(MissingExtraError, match=r"graphprune\[jax\]"):
        read_source("graphprune_test_factories:make")


def test_an_attribute_is_taken_as_it_is(factories: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"cannot import an object of type made_in\.<locals>\.Model|type Model"):
        read_source("graphprune_test_factories:nested.model")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("graphprune_test_factories:nothing", "has no 'nothing'"),
        ("graphprune_no_such_module:make", "cannot import 'graphprune_no_such_module'"),
    ],
)
def test_an_import_string_that_leads_nowhere(factories: ModuleType, source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_source(source)


def test_the_current_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: onnx.ModelProto) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "graphprune_local_nets.py").write_text("class Odd:\n    pass\n", encoding="utf-8")
    with pytest.raises(UsageError, match="of type Odd"):
        read_source("graphprune_local_nets:Odd")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)


# ---- names --------------------------------------------------------------------------------------


def test_parameters_are_recognised_by_their_values(small: onnx.ModelProto) -> None:
    w1, w2 = (numpy_helper.to_array(tensor) for tensor in small.graph.initializer)
    name_initializers(small, [("head.kernel", w2), ("stem.kernel", w1.T), ("unused", w1 + 1)])
    assert [tensor.name for tensor in small.graph.initializer] == ["stem.kernel", "head.kernel"]
    assert [list(node.input) for node in small.graph.node] == [["x", "stem.kernel"], ["a", "head.kernel"]]
    onnx.checker.check_model(small)


def test_parameters_that_a_branch_reads_are_renamed_there_too() -> None:
    model = net("""branches (float[2,3] x, bool f) => (float[2,4] y) <float[3,4] v> {
        y = If(f) <then_branch = t () => (float[2,4] p) { p = MatMul(x, v) }, else_branch = e () => (float[2,4] q) {
            a = Neg(x)
            q = MatMul(a, v)
        }>
    }""")
    name_initializers(model, [("fc.weight", numpy_helper.to_array(model.graph.initializer[0]))])
    bodies = [attribute.g for attribute in model.graph.node[0].attribute]
    assert [list(body.node[-1].input) for body in bodies] == [["x", "fc.weight"], ["a", "fc.weight"]]
    onnx.checker.check_model(model)


def test_parameters_that_are_not_unique_keep_the_converters_name(small: onnx.ModelProto) -> None:
    w1 = numpy_helper.to_array(small.graph.initializer[0])
    name_initializers(small, [("one", w1), ("other", w1)])
    assert small.graph.initializer[0].name == "w1"
    name_initializers(small, [("y", w1)])
    assert small.graph.initializer[0].name == "w1"
    name_initializers(small, [("taken", np.asarray(w1, np.float64) * (1 + 1e-9))])
    assert small.graph.initializer[0].name == "w1"
