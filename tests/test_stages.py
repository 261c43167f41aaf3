"""The event log of a run: what is written when, and that every line is what the published schema says."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from nets import plain, write

from graphprune import pipeline
from graphprune.errors import UsageError
from graphprune.event_log import EventLog
from graphprune.run import Job
from graphprune.stages import EVENTS, Recorder, event_name, events_schema, recorded

Cli = Callable[..., Result]
HALF = ["--target", "channels=0.5", "--align", "1"]
TYPES = {"string": str, "integer": int, "number": (int, float), "object": dict}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(plain(), tmp_path / "model.onnx")


def lines(path: Path) -> list[dict[str, Any]]:
    """The events of a file; each has exactly the fields of its schema, with their types."""
    kinds = {kind["properties"]["event"]["const"]: kind for kind in events_schema()["oneOf"]}
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in found:
        fields = kinds[entry["event"]]["properties"]
        assert set(entry) == set(kinds[entry["event"]]["required"]) == set(fields)
        for key, value in entry.items():
            assert key == "event" or isinstance(value, TYPES[fields[key]["type"]])
    return found


def test_a_run_from_beginning_to_end(graphprune_cli: Cli, model: Path, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    result = graphprune_cli(
        "prune", model, "-o", tmp_path / "out.onnx", *HALF, "--events", log, "--json", tmp_path / "result.json"
    )
    assert result.exit_code == 0, result.stderr
    found = lines(log)
    assert found[0]["event"] == "run_started"
    assert found[0]["options"]["recipe"] == "fast"
    assert found[0]["options"]["target"] == ["channels=0.5"]
    begun = [entry["stage"] for entry in found if entry["event"] == "stage_started"]
    ended = [entry["stage"] for entry in found if entry["event"] == "stage_finished"]
    assert begun == ended
    assert begun == [
        *("reading and normalising", "finding groups", "scoring channels", "selecting channels", "rewriting", "proving")
    ]
    assert found[-1]["event"] == "run_finished"
    told = json.loads((tmp_path / "result.json").read_text())
    told.pop("groups")
    assert found[-1]["result"] == told
    assert sum(entry.get("seconds", 0) for entry in found[:-1]) <= found[-1]["seconds"] + 0.01
    assert {entry["pid"] for entry in found} == {os.getpid()}
    assert graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *HALF, "--events", log).exit_code == 0
    assert len({entry["run"] for entry in lines(log)}) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (["--target", "channels=1K"], "UnreachableError", 4),
        ([*HALF, "--require", "params<=1%"], "RequirementError", 8),
        ([*HALF, "--keep", "nothing"], "UsageError", 2),
    ],
)
def test_the_error_that_ends_a_run(
    graphprune_cli: Cli, model: Path, tmp_path: Path, arguments: list[str], error: str, code: int
) -> None:
    result = graphprune_cli("prune", model, "-o", tmp_path / "out.onnx", *arguments, "--events", tmp_path / "e.jsonl")
    assert result.exit_code == code
    last = lines(tmp_path / "e.jsonl")[-1]
    assert (last["event"], last["error"], last["exit_code"]) == ("run_failed", error, code)
    assert last["message"] in result.stderr
    stages = [entry["event"] for entry in lines(tmp_path / "e.jsonl") if "stage" in entry]
    assert stages.count("stage_started") == stages.count("stage_finished") >= 1


def test_errors_of_our_own_making_are_written_too(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(pipeline, "prune", broken)
    assert graphprune_cli("prune", model, "-o", tmp_path / "o.onnx", *HALF, "--events", tmp_path / "e.jsonl").exit_code == 1
    last = lines(tmp_path / "e.jsonl")[-1]
    assert (last["error"], last["exit_code"]) == ("KeyError", 1)


def test_warnings_are_written_and_still_shown(tmp_path: Path) -> None:
    log = tmp_path / "e.jsonl"
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: shown.append(str(message))
        with recorded(log, Job("model.onnx")):
            warnings.warn("look out", RuntimeWarning, stacklevel=1)
        assert shown == ["look out"]
        warnings.warn("not in the log", RuntimeWarning, stacklevel=1)
        assert shown == ["look out", "not in the log"]
    warned = [(entry["category"], entry["message"]) for entry in lines(log) if entry["event"] == "warned"]
    assert warned == [("RuntimeWarning", "look out")]


def test_what_follows_a_colon_is_no_stage_of_its_own(tmp_path: Path) -> None:
    recorder = Recorder(EventLog(tmp_path / "e.jsonl"))
    for text in ("scoring: 1 of 2", "scoring: 2 of 2", "proving"):
        recorder(text)
    recorder.finished({"groups": [1], "macs": 2})
    found = lines(tmp_path / "e.jsonl")
    assert [entry["stage"] for entry in found if entry["event"] == "stage_started"] == ["scoring", "proving"]
    assert found[-1]["result"] == {"macs": 2}


def test_a_log_that_cannot_be_written(graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = graphprune_cli("prune", model, "-o", tmp_path / "o.onnx", *HALF, "--events", tmp_path / "nowhere" / "e.jsonl")
    assert result.exit_code == 2
    assert "nowhere does not exist" in result.stderr

    def full(self: EventLog, event: str, **values: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventLog, "write", full)
    with (
        pytest.raises(UsageError, match=r"e.jsonl: cannot write events there: No space left"),
        recorded(tmp_path / "e.jsonl", Job()),
    ):
        pass
    assert not (tmp_path / "o.onnx").exists()


def test_names_of_events() -> None:
    expected = ["run_started", "stage_started", "stage_finished", "warned", "run_finished", "run_failed"]
    assert [event_name(kind) for kind in EVENTS] == expected
