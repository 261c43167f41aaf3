"""Batches whose processes are killed, here and on Ray: nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from batches import HALF, events, jobs
from click.testing import Result

from graphprune import registry
from graphprune.engines.ray_cluster import _check_reachable
from graphprune.errors import UsageError

Cli = Callable[..., Result]


def start(*arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "graphprune", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def check_whole(folder: Path) -> None:
    """Results that are there are complete."""
    for result in (folder / "results").glob("*") if folder.exists() else ():
        assert {each.name for each in result.iterdir()} == {"model.onnx", "plan.json", "result.json", "config.yaml"}
        assert json.loads((result / "result.json").read_text())["proof"]["passed"]
        onnx.load(result / "model.onnx")


def check_log(folder: Path, count: int) -> None:
    """Nothing is begun again once it is finished or known as done."""
    finished: Counter[str] = Counter()
    for entry in events(folder):
        digest = entry.get("digest")
        if entry["event"] == "job_started":
            assert not finished[digest], "done twice"
        finished[digest] += entry["event"] == "job_finished"
    assert max(finished.values()) == 1
    assert len(list((folder / "results").iterdir())) == count
    assert not list((folder / "unfinished").iterdir())


def test_killed_again_and_again(place: Path) -> None:
    """The whole process group, with SIGKILL, at random moments."""
    seeds = random.Random(11)
    path = jobs(place, "models: ['*.onnx']\n" + HALF + "matrix: {seed: [0, 1, 2, 3, 4, 5]}\n")
    out = place / "out"
    for _ in range(5):
        process = start(path, "-o", out, "--resume", "--workers", "2")
        time.sleep(seeds.uniform(0.5, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        check_whole(out)
    process = start(path, "-o", out, "--resume", "--workers", "2")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    check_whole(out)
    check_log(out, 12)
    begun = len(events(out, "job_started"))
    process = start(path, "-o", out, "--resume")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(events(out, "job_started")) == begun


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_behind_when_only_the_main_process_is_killed(place: Path, number: signal.Signals) -> None:
    path = jobs(place, "models: plain.onnx\n" + HALF.replace("1}", "1, eval: 'scores_of_jobs:slow'}"))
    out = place / "out"
    process = start(path, "-o", out)
    end = time.monotonic() + 20
    while (time.monotonic() < end and not (out / "events.jsonl").exists()) or not events(out, "job_started"):
        time.sleep(0.05)
    (worker,) = {entry["pid"] for entry in events(out, "job_started")}
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert b"Traceback" not in errors
    while time.monotonic() < end and alive(worker):
        time.sleep(0.05)
    assert not alive(worker)
    path.write_text("models: plain.onnx\n" + HALF)
    process = start(path, "-o", out, "--resume")
    process.communicate(timeout=60)
    assert process.returncode == 0
    check_log(out, 1)


def test_a_result_that_another_process_had_first_stays(tmp_path: Path) -> None:
    """On a cluster a process of a killed batch may still be at work."""
    from graphprune.worker import _publish

    unfinished, result = tmp_path / "unfinished", tmp_path / "result"
    for folder, text in ((unfinished, "late"), (result, "first")):
        folder.mkdir()
        (folder / "model.onnx").write_text(text)
    assert not _publish(unfinished, result)
    assert (result / "model.onnx").read_text() == "first"
    assert _publish(unfinished, tmp_path / "other")
    assert (tmp_path / "other" / "model.onnx").read_text() == "late"
    with pytest.raises(UsageError, match="cannot write there"):
        _publish(tmp_path / "other", tmp_path / "gone" / "result")


# ---- Ray ----------------------------------------------------------------------------------------


def test_both_engines_are_registered() -> None:
    assert {"local", "ray"} <= set(registry.registered("engines"))
    assert registry.load("engines", "local").name == "local"


def test_ray_that_is_not_installed(place: Path, graphprune_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = graphprune_cli("batch", jobs(place, "models: plain.onnx\n" + HALF), "--engine", "ray")
    assert result.exit_code == 6
    assert "pip install 'graphprune[ray]'" in result.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_does_not_answer(address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        named = address.format(free.getsockname()[1])
        with pytest.raises(UsageError, match=f"cannot reach the Ray cluster at {named}: .*refused"):
            _check_reachable(named)
        free.listen()
        _check_reachable(named)
    _check_reachable("auto")


@pytest.mark.ray
def test_ray_does_the_same_jobs(place: Path) -> None:
    pytest.importorskip("ray")
    functions = ", ".join(f"'scores_of_jobs:{name}'" for name in ("good", "slow", "crash", "killed_once"))
    limits = "limits: {time: 5.0, retries: 1}\n"
    path = jobs(place, "models: plain.onnx\n" + HALF + f"matrix: {{eval: [{functions}]}}\n" + limits)
    process = start(path, "-o", place / "ray", "--engine", "ray", "--workers", "2")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 9, errors
    found = json.loads((place / "ray" / "summary.json").read_text())["jobs"]
    states = {record["name"].rpartition(":")[2]: (record["state"], record["attempts"]) for record in found}
    assert states == {"good": ("done", 1), "slow": ("timeout", 1), "crash": ("died", 2), "killed_once": ("done", 2)}


@pytest.mark.ray
def test_ray_with_a_worker_killed_and_the_driver_killed(place: Path) -> None:
    pytest.importorskip("ray")
    path = jobs(place, "models: ['*.onnx']\n" + HALF + "matrix: {seed: [0, 1, 2, 3, 4, 5]}\nlimits: {retries: 3}\n")
    out = place / "ray"
    process = start(path, "-o", out, "--engine", "ray", "--workers", "2", "--resume")
    killed = 0
    while process.poll() is None and killed < 2:
        time.sleep(0.2)
        for each in Path("/proc").glob("[0-9]*"):
            try:
                command, parent = (each / "cmdline").read_bytes(), (each / "status").read_text()
            except OSError:
                continue
            if command.startswith(b"ray::contained") and f"\nNSsid:\t{os.getsid(process.pid)}" in parent and killed < 2:
                os.kill(int(each.name), signal.SIGKILL)
                killed += 1
    _, errors = process.communicate(timeout=180)
    assert killed, "no worker was seen"
    assert process.returncode == 0, errors
    assert events(out, "job_retried")
    check_whole(out)
    out = place / "again"
    process = start(path, "-o", out, "--engine", "ray", "--workers", "2", "--resume")
    while not (out / "events.jsonl").exists() or len(events(out, "job_finished")) < 3:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    process = start(path, "-o", out, "--engine", "ray", "--workers", "2", "--resume")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    check_whole(out)
    check_log(out, 12)
