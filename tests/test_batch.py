"""Batches: folders, rows, limits, retries, what is done anew, wrong usage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import onnx
import pytest
from batches import HALF, events, jobs
from click.testing import Result
from filelock import FileLock
from nets import plain, residual, write

from graphprune.batch import Record, _mark_front
from graphprune.contents import content_digest

Cli = Callable[..., Result]


def test_every_job_has_a_folder_and_a_row(place: Path, graphprune_cli: Cli) -> None:
    path = jobs(place, "models: ['*.onnx']\n" + HALF + "matrix: {min-channels: [1, 2]}\n")
    result = graphprune_cli("batch", path, "--workers", "2", "--json", place / "table.json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("done") == 4
    assert "[4/4]" in result.stderr
    out = place / "jobs.results"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["failed"] == 0
    assert summary["jobs"] == json.loads((place / "table.json").read_text())["jobs"]
    for record in summary["jobs"]:
        folder = out / record["folder"]
        assert {each.name for each in folder.iterdir()} == {"model.onnx", "plan.json", "result.json", "config.yaml"}
        assert record["params"] == pytest.approx(
            json.loads((folder / "result.json").read_text())["after"]["params"]
            / json.loads((folder / "result.json").read_text())["before"]["params"]
        )
        onnx.checker.check_model(str(folder / "model.onnx"))
    # the configuration of a result gives the same bytes again
    (place / "again").mkdir()
    again = place / "again" / "again.onnx"
    config = folder / "config.yaml"
    done = graphprune_cli("prune", "--config", config, "-o", again, "--plan", place / "p.json", "--save-config", place / "c.yaml")
    assert done.exit_code == 0, done.stderr
    assert again.read_bytes() == (folder / "model.onnx").read_bytes()
    assert (place / "p.json").read_bytes() == (folder / "plan.json").read_bytes()
    # and a second run does nothing
    assert graphprune_cli("batch", path).exit_code == 2
    assert "--resume goes on there" in graphprune_cli("batch", path).stderr
    again_result = graphprune_cli("batch", path, "--resume")
    assert again_result.exit_code == 0
    assert again_result.stdout.count("reused") == 4
    assert len(events(out, "job_started")) == 4


def test_failing_jobs_do_not_stop_the_others(place: Path, graphprune_cli: Cli) -> None:
    (place / "broken.onnx").write_bytes(b"no model")
    text = """
models: ["*.onnx", "gone.onnx"]
options: {target: channels=0.5, align: 1}
matrix:
  include:
    - {model: plain.onnx, eval: "scores_of_jobs:good", require: "accuracy>=0.9"}
    - {model: extra.onnx}
"""
    assert graphprune_cli("batch", jobs(place, text)).exit_code == 2  # gone.onnx matches no file
    path = jobs(place, text.replace(', "gone.onnx"', ""))
    result = graphprune_cli("batch", path, "--workers", "2")
    assert result.exit_code == 9
    assert "3 of 4 jobs failed, the first: broken: " in result.stderr
    summary = json.loads((place / "jobs.results" / "summary.json").read_text())
    assert {record["name"].split()[0]: (record["state"], record["exit_code"]) for record in summary["jobs"]} == {
        "broken": ("failed", 3),
        "plain": ("failed", 8),
        "residual": ("done", 0),
        "extra": ("failed", 3),
    }
    assert not list((place / "jobs.results" / "unfinished").iterdir())
    assert len(list((place / "jobs.results" / "results").iterdir())) == 1
    failed = events(place / "jobs.results", "job_failed")
    assert {entry["exit_code"] for entry in failed} == {3, 8}


def test_limits_crashes_and_retries(place: Path, graphprune_cli: Cli) -> None:
    """Time, memory, a crash, one that is gone the second time, and output that belongs to nobody."""
    functions = ["slow", "greedy", "crash", "killed_once", "talkative", "good"]
    listed = ", ".join(f"'scores_of_jobs:{name}'" for name in functions)
    limits = "limits: {time: 3.0, memory: 2GB, retries: 1}\n"
    path = jobs(place, "models: plain.onnx\n" + HALF + f"matrix: {{eval: [{listed}]}}\n" + limits)
    out = place / "out"
    result = graphprune_cli("batch", path, "-o", out, "--workers", "2", "--json", "-")
    assert result.exit_code == 9, result.stderr
    found = {record["name"].rpartition(":")[2]: record for record in json.loads(result.stdout)["jobs"]}
    assert {name: (r["state"], r["attempts"]) for name, r in found.items()} == {
        "slow": ("timeout", 1),
        "greedy": ("failed", 1),
        "crash": ("died", 2),
        "killed_once": ("done", 2),
        "talkative": ("done", 1),
        "good": ("done", 1),
    }
    assert found["slow"]["message"] == "over its time limit of 3 s"
    assert found["greedy"]["message"] == "out of memory: the job needs more than its limit of 2000 MB"
    assert found["crash"]["message"].startswith("its process died (SIGABRT); see logs/")
    assert "Fatal Python error: Aborted" in (out / "logs" / f"{found['crash']['digest']}.log").read_text()
    log = (out / "logs" / f"{found['talkative']['digest']}.log").read_text()
    assert "on standard output" in log
    assert "on standard error" in log
    assert [entry["digest"] for entry in events(out, "job_retried")].count(found["crash"]["digest"]) == 1
    assert not list((out / "unfinished").iterdir())
    assert found["good"]["pareto"] is False
    assert found["talkative"]["pareto"] is True


def test_two_batches_in_one_folder(place: Path, graphprune_cli: Cli) -> None:
    path = jobs(place, "models: plain.onnx\n" + HALF)
    (place / "jobs.results").mkdir()
    with FileLock(place / "jobs.results" / ".lock"):
        result = graphprune_cli("batch", path)
    assert result.exit_code == 2
    assert "another batch is at work there" in result.stderr
    assert not (place / "jobs.results" / "events.jsonl").exists()


def test_what_changes_is_done_anew_and_what_does_not_is_not(place: Path, graphprune_cli: Cli) -> None:
    path = jobs(place, "models: plain.onnx\n" + HALF)
    out = place / "jobs.results"

    def started() -> int:
        assert graphprune_cli("batch", path, "--resume").exit_code == 0
        return len(events(out, "job_started"))

    assert started() == 1
    os.rename(place / "plain.onnx", place / "moved.onnx")
    path.write_text("models: moved.onnx\n# the same content\n" + HALF)
    assert started() == 1
    write(plain(), place / "moved.onnx")
    assert started() == 1
    write(residual(), place / "moved.onnx")
    assert started() == 2
    broken = next((out / "results").iterdir())
    (broken / "result.json").write_text("{")
    write(plain(), place / "moved.onnx")
    path.write_text("models: [moved.onnx, residual.onnx]\n" + HALF)
    assert started() == 3


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"before": 3}', "BEFORE", "TARGETS"], ids=["keys", "list", "null", "type", "figure", "target"]
)
def test_a_result_that_somebody_broke_is_made_anew(place: Path, graphprune_cli: Cli, text: str) -> None:
    path = jobs(place, "models: plain.onnx\n" + HALF)
    assert graphprune_cli("batch", path).exit_code == 0
    (folder,) = (place / "jobs.results" / "results").iterdir()
    before = json.loads((folder / "result.json").read_text())
    texts = {"BEFORE": {"before": before["before"] | {"macs": "many"}}, "TARGETS": {"targets": [{"target": 3}]}}
    (folder / "result.json").write_text(json.dumps(before | texts[text]) if text in texts else text)
    result = graphprune_cli("batch", path, "--resume")
    assert result.exit_code == 0, result.stderr
    after = json.loads((folder / "result.json").read_text())
    assert after["before"] == before["before"]
    assert len(events(place / "jobs.results", "job_finished")) == 2


def test_jobs_that_cannot_begin_are_told_as_well(place: Path, graphprune_cli: Cli) -> None:
    path = jobs(place, "models: [plain.onnx]\n" + HALF + "matrix: {include: [{model: gone.onnx}]}\n")
    result = graphprune_cli("batch", path)
    assert result.exit_code == 9
    assert "[1/2] gone: failed" in result.stderr
    (failed,) = events(place / "jobs.results", "job_failed")
    assert "there is no such file or folder" in failed["message"]
    assert (failed["state"], failed["exit_code"], failed["digest"]) == ("failed", 3, "")
    again = graphprune_cli("batch", path, "--resume")
    assert "plain: reused" in again.stderr


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit("bye"), KeyError("x")])
def test_whatever_ends_a_job_is_a_report(place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """In the process of a job; and where its report is fetched."""
    from graphprune import worker
    from graphprune.engines.local import report_of
    from graphprune.jobs import read_jobs

    for folder in ("logs", "unfinished"):
        (place / folder).mkdir()
    (named,) = read_jobs(jobs(place, "models: plain.onnx\n" + HALF)).jobs
    task = worker.Task(named.name, "digest", named.job, place)

    def ends(*_: object) -> bool:
        raise error

    monkeypatch.setattr(worker, "run", ends)
    monkeypatch.setattr(worker, "_capture_output", lambda path: None)
    monkeypatch.setattr(worker.limits, "begin", lambda: None)
    report = worker.work(task)
    assert (report.state, report.exit_code) == ("failed", 1)
    assert type(error).__name__ in report.message
    future: Future[worker.Report] = Future()
    future.set_exception(error)
    assert report_of(task, future).state == "died"  # type: ignore[arg-type]


def test_a_model_that_changes_under_way(place: Path, graphprune_cli: Cli) -> None:
    write(residual(), place / "other.onnx")
    path = jobs(place, "models: plain.onnx\n" + HALF.replace("1}", "1, eval: 'scores_of_jobs:meddling'}"))
    result = graphprune_cli("batch", path)
    assert result.exit_code == 9
    assert "changed while the job ran" in result.stderr
    assert not list((place / "jobs.results" / "results").iterdir())


def test_odd_names_stay_inside_the_folder(place: Path, graphprune_cli: Cli) -> None:
    odd = place / "[red]..%2f \n\x1b[31mä.onnx"
    write(plain(), odd)
    text = json.dumps({"models": [odd.name], "options": {"target": "channels=0.5", "align": 1}})
    before = set(place.parent.iterdir())
    result = graphprune_cli("batch", jobs(place, text), "-o", place / "out")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert set(place.parent.iterdir()) == before
    assert len(list((place / "out" / "results").iterdir())) == 1


def test_results_are_no_models_of_the_next_run(place: Path, graphprune_cli: Cli) -> None:
    path = jobs(place, "models: ['**/*.onnx']\n" + HALF)
    found = [graphprune_cli("batch", path, *more) for more in ([], ["--resume"])]
    assert [each.exit_code for each in found] == [0, 0], found[1].stderr
    results = list(place.rglob("results/*/model.onnx"))
    assert len(results) == len(list(place.glob("*.onnx")))


def test_a_dry_run_lists_the_jobs(place: Path, graphprune_cli: Cli) -> None:
    result = graphprune_cli("batch", jobs(place, "models: ['*.onnx']\n" + HALF), "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.count("waiting") == 2
    assert not (place / "jobs.results").exists()


def test_wrong_usage(place: Path, graphprune_cli: Cli) -> None:
    path = jobs(place, "models: plain.onnx\n" + HALF)
    for arguments, message in [
        (["--engine", "moon"], "no engines is called 'moon'; there are: local, ray"),
        (["-o", place / "plain.onnx"], "cannot write there"),
    ]:
        result = graphprune_cli("batch", path, *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    assert graphprune_cli("batch", place / "gone.yaml").exit_code == 2


def test_the_front() -> None:
    points = [(0.5, 0.9, True), (0.5, 0.8, False), (0.4, 0.85, True), (0.6, 0.9, False), (0.4, 0.85, True)]
    records = [Record(str(k), "m", "", "done", macs=macs, accuracy=acc) for k, (macs, acc, _) in enumerate(points)]
    records += [Record("other model", "n", "", "done", macs=0.9, accuracy=0.1), Record("failed", "m", "", "failed")]
    _mark_front(records)
    assert [record.pareto for record in records] == [*(on for *_, on in points), True, None]


def test_weights_of_a_paddle_model_count_as_its_contents(tmp_path: Path) -> None:
    model, weights = tmp_path / "n.pdmodel", tmp_path / "n.pdiparams"
    model.write_bytes(b"program")
    weights.write_bytes(b"one")
    before = content_digest(str(model))
    weights.write_bytes(b"another")
    assert content_digest(str(model)) != before
