"""Gates: what is required, what was measured, exit code 8 and no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from nets import plain, write

from graphprune import bench
from graphprune.errors import UsageError
from graphprune.requirements import METRICS, parse_requirements

Cli = Callable[..., Result]
HALF = ["--target", "channels=0.5", "--align", "1"]

SCORES = """
def half(model):
    return len(model.graph.initializer[0].dims) / 8

def nothing(model):
    return float("nan")

def broken(model):
    raise KeyError("x")

def whole(model):
    return not any(tensor.external_data for tensor in model.graph.initializer)

number = 3
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scores_of_gates.py").write_text(SCORES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0005)
    return write(plain(), tmp_path / "model.onnx")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "eval.npz"
    np.savez(path, x=rng.standard_normal((70, 3, 8, 8)), labels=rng.integers(0, 5, 70))
    return path


@pytest.mark.parametrize(
    ("clause", "before", "after", "passed"),
    [
        ("params<=50%", 200, 100, True),
        ("params<=50%", 200, 101, False),
        ("params<0.5", 200, 100, False),
        ("params<=100", 200, 100, None),
        ("params<=0.1K", 200, 100, True),
        ("bytes<=2KiB", 9000, 2049, False),
        ("macs>=0.3x", 100, 30, True),
        ("channels<=30", 100, 30, None),
        ("latency<=0.7x", 10.0, 7.1, False),
        ("latency<=110%", 10.0, 10.9, True),
        ("latency<=7.2ms", 10.0, 7.1, True),
        ("latency<=7200us", 10.0, 7.1, True),
        ("latency<0.007s", 10.0, 7.1, False),
        ("latency<=7", 10.0, 7.1, None),
        ("accuracy>=0.91", 0.92, 0.91, True),
        ("accuracy>=91%", 0.92, 0.909, False),
        ("accuracy>=99x", 0.92, 0.9, False),
        ("accuracy>=0.98x", 0.92, 0.91, True),
        ("accuracy>0.91", 0.92, 0.91, False),
        ("accuracy_drop<=1%", 0.911, 0.901, True),
        ("accuracy_drop<=0.001", 0.911, 0.91, True),
        ("accuracy_drop<=0.001", 0.911, 0.909, False),
        ("accuracy_drop<=1x", 0.911, 0.909, None),
        ("accuracy>=1K", 0.911, 0.909, None),
    ],
)
def test_units_and_comparisons(clause: str, before: float, after: float, passed: bool | None) -> None:
    """None: the clause is an error."""
    if passed is None:
        with pytest.raises(UsageError, match=f"--require: '{clause}'"):
            parse_requirements(clause)
        return
    (requirement,) = parse_requirements(clause)
    assert requirement.check(before, after).passed is passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "'accuracy' is not of the form METRIC<=VALUE"),
        ("macs<=0.5,,params<=0.5", "'' is not of the form"),
        ("macs=0.5", "'macs=0.5' is not of the form"),
        ("macs<=0.5, speed<=2", "'speed<=2': unknown metric 'speed'; there are: accuracy, accuracy_drop, latency, macs"),
        ("latency<=3", "'latency<=3': latency needs the unit ms, us or s, or % or x"),
        ("params<=3Q", "'params<=3Q': unknown unit 'Q'"),
        ("macs<=nan", "is not of the form"),
        ("macs<=1e999x", "'macs<=1e999x': the number is too large"),
        ("params<=1e308G", "'params<=1e308G': the number is too large"),
        ("", "Invalid value for '--require': it is empty"),
    ],
)
def test_errors_name_the_clause(graphprune_cli: Cli, model: Path, text: str, message: str) -> None:
    result = graphprune_cli("prune", model, "-o", "out.onnx", *HALF, "--require", text)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out.onnx").exists()


def test_what_is_met(graphprune_cli: Cli, model: Path, samples: Path) -> None:
    text = "accuracy>=0%,accuracy_drop<=1,latency<=100x,params<=90%,macs<=90%"
    result = graphprune_cli("prune", model, "-o", "out.onnx", *HALF, "--require", text, "--eval", samples, "--json", "r.json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(" met ") == 5
    found = json.loads(Path("r.json").read_text())
    assert [entry["requirement"] for entry in found["requirements"]] == text.split(",")
    by_metric = {entry["metric"]: entry for entry in found["requirements"]}
    assert by_metric["accuracy"]["measured"] == found["accuracy"]["after"]
    assert by_metric["accuracy_drop"]["measured"] == found["accuracy"]["before"] - found["accuracy"]["after"]
    assert by_metric["macs"]["measured"] == found["after"]["macs"] / found["before"]["macs"]
    assert by_metric["macs"] | {"measured": 0} == {
        "requirement": "macs<=90%",
        "metric": "macs",
        "comparison": "<=",
        "wanted": 0.9,
        "unit": "share",
        "measured": 0,
        "passed": True,
    }
    assert found["after"]["file_bytes"] == Path("out.onnx").stat().st_size


def test_what_is_not_met_leaves_the_result_and_no_model(graphprune_cli: Cli, model: Path) -> None:
    Path("out.onnx").write_text("there before")
    files = ["--plan", "p.json", "--json", "r.json", "--save-config", "c.yaml"]
    result = graphprune_cli("prune", model, "-o", "out.onnx", *HALF, "--require", "params<=1%,macs<=99%", *files)
    assert result.exit_code == 8
    assert "error: 1 of 2 requirements not met: params<=1% (measured 0." in result.stderr
    assert "not met" in result.stdout
    assert Path("out.onnx").read_text() == "there before"
    assert not Path("p.json").exists()
    assert not Path("c.yaml").exists()
    found = json.loads(Path("r.json").read_text())
    assert [entry["passed"] for entry in found["requirements"]] == [False, True]
    graphprune_cli("prune", model, "-o", "out.onnx", *HALF)
    assert found["after"]["file_bytes"] == Path("out.onnx").stat().st_size
    result = graphprune_cli("prune", model, "-o", "out.onnx", *HALF, "--require", "params<=1%", "--json", "-")
    assert result.exit_code == 8
    assert json.loads(result.stdout)["requirements"][0]["passed"] is False


def test_accuracy_needs_samples(graphprune_cli: Cli, model: Path) -> None:
    for metric in ("accuracy>=0.9", "accuracy_drop<=1%"):
        result = graphprune_cli("prune", model, "-o", "out.onnx", *HALF, "--require", metric)
        assert result.exit_code == 2
        assert "accuracy needs --eval" in result.stderr


def test_a_function_of_the_user_gets_all_weights(graphprune_cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.model_file.MAPPED", 0)
    monkeypatch.setattr("graphprune.model_file.LARGE", 64)
    result = graphprune_cli("prune", model, "-o", "out.onnx", *HALF, "--eval", "scores_of_gates:whole", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"] == {"before": 1.0, "after": 1.0}


def test_a_function_of_the_user_scores(graphprune_cli: Cli, model: Path) -> None:
    arguments = ["prune", model, "-o", "out.onnx", *HALF, "--json", "-", "--eval"]
    result = graphprune_cli(*arguments, "scores_of_gates:half", "--require", "accuracy>=0.5,accuracy_drop<=0")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"] == {"before": 0.5, "after": 0.5}
    Path("out.onnx").unlink()
    for name, message in [
        ("nothing", "scores_of_gates:nothing gave nan; a finite number is needed"),
        ("broken", "scores_of_gates:broken failed: KeyError: 'x'"),
        ("number", "it is of type int; --eval takes a function of an ONNX model"),
        ("missing", "has no 'missing'"),
    ]:
        result = graphprune_cli(*arguments, f"scores_of_gates:{name}")
        assert result.exit_code == 2
        assert message in result.stderr
    assert "cannot import 'no_such_module'" in graphprune_cli(*arguments, "no_such_module:f").stderr
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--target", "channels=0.5"], 0),
        (["--target", "channels=2x"], 2),
        (["--target", "macs=0.0001"], 4),
        (["--target", "channels=0.5", "--require", "macs<=1%"], 8),
    ],
)
def test_exit_codes_of_the_gate(graphprune_cli: Cli, model: Path, arguments: list[str], code: int) -> None:
    assert graphprune_cli("prune", model, "-o", "out.onnx", "--align", "1", *arguments).exit_code == code


@given(st.text(alphabet=st.sampled_from("<>=,%x.0159eEKMGBmsu- _acurylatenpdro"), max_size=30) | st.sampled_from(METRICS))
def test_any_text_is_requirements_or_an_error(text: str) -> None:
    with suppress(UsageError):
        parse_requirements(text)
