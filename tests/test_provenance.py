"""A pruned model says where it comes from, and the same run still gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result
from nets import plain, residual, write

import graphprune
from graphprune.errors import InvalidModelError
from graphprune.model_file import write_model
from graphprune.provenance import entries, forget, inspect, record

Cli = Callable[..., Result]
HALF = ["--target", "channels=0.5", "--align", "1"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = residual()
    made.metadata_props.add(key="author", value="Ada")
    return write(made, tmp_path / "model.onnx")


def test_a_pruned_model_says_where_it_comes_from(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    assert graphprune_cli("prune", model, "-o", out, *HALF, "--plan", plan, "--seed", "5").exit_code == 0
    written = json.loads(plan.read_text())
    found = inspect(out)
    assert found.metadata == {"author": "Ada"}
    assert found.provenance["source_sha256"] == written["model_sha256"]
    assert found.provenance["plan_sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert found.provenance["version"] == graphprune.__version__
    assert json.loads(found.provenance["options"]) == written["options"]
    assert found.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()


def test_apply_writes_the_same_bytes_as_prune(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    out, plan, again = tmp_path / "out.onnx", tmp_path / "plan.json", tmp_path / "again.onnx"
    graphprune_cli("prune", model, "-o", out, *HALF, "--plan", plan)
    assert graphprune_cli("apply", model, plan, "-o", again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()


def test_apply_records_the_plan_that_it_was_given(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    """Also the version of graphprune that wrote it."""
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    graphprune_cli("prune", model, "-o", out, *HALF, "--plan", plan)
    plan.write_text(plan.read_text().replace(graphprune.__version__, "0.0.7"))
    assert graphprune_cli("apply", model, plan, "-o", out).exit_code == 0
    found = inspect(out).provenance
    assert found["version"] == "0.0.7"
    assert found["plan_sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()


def test_pruning_a_pruned_model_replaces_its_provenance(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    graphprune_cli("prune", model, "-o", first, "--target", "channels=0.8", "--align", "1")
    graphprune_cli("prune", first, "-o", second, "--target", "channels=0.8", "--align", "1")
    keys = [entry.key for entry in onnx.load(second).metadata_props]
    assert len(keys) == len(set(keys)) == 5
    assert inspect(first).provenance["source_sha256"] != inspect(second).provenance["source_sha256"]


def test_inspect_prints_it(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    graphprune_cli("prune", model, "-o", out, *HALF)
    result = graphprune_cli("inspect", out)
    assert result.exit_code == 0
    for text in ("source_sha256", "plan_sha256", inspect(out).provenance["plan_sha256"], "Ada"):
        assert text in result.stdout
    found = json.loads(graphprune_cli("inspect", out, "--json", "-").stdout)
    assert found["provenance"] == inspect(out).provenance
    assert found["inputs"] == {"x": ["N", 3, 8, 8]}
    assert "none: not written by graphprune" in graphprune_cli("inspect", model).stdout
    (tmp_path / "no.onnx").write_bytes(b"\x00")
    assert graphprune_cli("inspect", tmp_path / "no.onnx").exit_code == 3
    assert graphprune_cli("inspect", tmp_path / "gone.onnx").exit_code == 3


def test_from_python() -> None:
    result = graphprune.prune(plain(), targets=["channels=0.5"], align=1)
    assert not result.model.metadata_props
    marked = record(result.model, result.plan)
    assert {entry.key for entry in marked.metadata_props} == {
        "graphprune.source_sha256",
        "graphprune.plan_sha256",
        "graphprune.version",
        "graphprune.options",
    }
    onnx.checker.check_model(marked)


@pytest.mark.parametrize("weights", ["inside", "data", "safetensors"])
def test_metadata_that_is_late_is_in_the_file_as_if_it_were_not(tmp_path: Path, weights: str) -> None:
    result = graphprune.prune(plain(), targets=["channels=0.5"], align=1)
    result.cut.metadata_props.add(key="author", value="Ada")
    result.cut.metadata_props.add(key="graphprune.version", value="of an older result")
    late = write_model(forget(result.cut), tmp_path / "late.onnx", weights, lambda: entries(result.plan))
    whole = write_model(record(result.cut, result.plan), tmp_path / "whole.onnx", weights)
    assert late[-1].read_bytes() == whole[-1].read_bytes()
    found, wanted = (onnx.load(files[0], load_external_data=False) for files in (late, whole))
    assert list(found.metadata_props) == list(wanted.metadata_props)
    assert [entry.key.partition(".")[0] for entry in found.metadata_props] == ["author", *["graphprune"] * 4]


def test_a_source_that_cannot_be_hashed_leaves_no_file(tmp_path: Path) -> None:
    def fails() -> dict[str, str]:
        raise InvalidModelError("the file of 'w' became shorter while it was read")

    for weights in ("inside", "data"):
        with pytest.raises(InvalidModelError, match="became shorter"):
            write_model(plain(), tmp_path / "out.onnx", weights, fails)
    assert not list(tmp_path.iterdir())
