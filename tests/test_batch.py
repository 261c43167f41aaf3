"""Batches: expansion, limits, and that nothing is lost or done twice whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from click.testing import Result
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import plain, residual, write

from graphprune import registry
from graphprune.batch import Record, _mark_front
from graphprune.errors import UsageError
from graphprune.jobs import MOST_JOBS, parse_bytes, read_jobs

Cli = Callable[..., Result]

SCORES = """
import os, pathlib, signal, time

def good(model):
    return len(model.graph.initializer) / 10

def slow(model):
    time.sleep(60)

def greedy(model):
    return float(bytearray(b"x") * (3 << 30) == b"")

def crash(model):
    os.abort()

def killed_once(model):
    mark = pathlib.Path("killed")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1

def talkative(model):
    print("on standard output")
    os.write(2, b"on standard error")
    return 1

def meddling(model):
    with open("plain.onnx", "ab") as file:
        file.write(b"")
    os.replace("other.onnx", "plain.onnx") if os.path.exists("other.onnx") else None
    return 1
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models and functions that score them; the current folder."""
    write(plain(), tmp_path / "plain.onnx")
    write(residual(), tmp_path / "residual.onnx")
    (tmp_path / "scores_of_jobs.py").write_text(SCORES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "scores_of_jobs", raising=False)
    return tmp_path


def jobs(folder: Path, text: str, name: str = "jobs.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def events(folder: Path, kind: str = "") -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if not kind or entry["event"] == kind]


def names(path: Path) -> list[str]:
    return [each.name for each in read_jobs(path).jobs]


HALF = "options: {target: channels=0.5, align: 1}\n"

# ---- expansion ----------------------------------------------------------------------------------


def test_a_matrix_is_every_combination_in_order(place: Path) -> None:
    path = jobs(
        place,
        """
models: ["*.onnx"]
options: {align: 1, keep: ^x}
matrix:
  target: [channels=0.5, [channels=0.7, params=0.8]]
  seed: [0, 1]
""",
    )
    found = read_jobs(path)
    assert len(found.jobs) == 8
    assert [each.name for each in found.jobs][:4] == [
        "plain channels=0.5 0",
        "plain channels=0.5 1",
        "plain channels=0.7,params=0.8 0",
        "plain channels=0.7,params=0.8 1",
    ]
    job = found.jobs[3].job
    assert job.model == str(place / "plain.onnx")
    assert (job.options.targets, job.options.seed, job.options.keep) == (("channels=0.7", "params=0.8"), 1, ("^x",))


def test_include_and_exclude_as_in_github_actions(place: Path) -> None:
    text = """
models: [plain.onnx, residual.onnx]
matrix:
  target: [channels=0.5, channels=0.7]
  seed: [0, 1]
  exclude:
    - {model: "res*.onnx", seed: 1}
    - {target: channels=0.7, seed: 1}
  include:
    - {seed: 1, min-channels: 2}
    - {model: plain.onnx, target: channels=0.9, align: 2}
    - {on-unsupported: error}
"""
    found = [(each.job.model.rpartition("/")[2], each.job.options) for each in read_jobs(jobs(place, text)).jobs]
    assert [(model, o.targets[0], o.seed, o.min_channels, o.align, o.on_unsupported) for model, o in found] == [
        ("plain.onnx", "channels=0.5", 0, 1, "auto", "error"),
        ("plain.onnx", "channels=0.5", 1, 2, "auto", "error"),
        ("plain.onnx", "channels=0.7", 0, 1, "auto", "error"),
        ("residual.onnx", "channels=0.5", 0, 1, "auto", "error"),
        ("residual.onnx", "channels=0.7", 0, 1, "auto", "error"),
        ("plain.onnx", "channels=0.9", 0, 1, "2", "pin"),
    ]


def test_paths_are_relative_to_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "deep").mkdir()
    text = "models: [../plain.onnx]\noptions: {calibration: c.npz, eval: 'module:function'}\nmatrix: {target: [macs=0.5]}\n"
    path = jobs(place / "deep", text)
    monkeypatch.chdir("/")
    job = read_jobs(path).jobs[0].job
    assert job.model == str(place / "plain.onnx")
    assert job.options.calibration == str(place / "deep" / "c.npz")
    assert job.eval == "module:function"


def test_jobs_in_toml(place: Path) -> None:
    text = (
        'models = "plain.onnx"\n[options]\nalign = 1\n[matrix]\ntarget = ["channels=0.5", "channels=0.7"]\n[limits]\ntime = 5.0\n'
    )
    found = read_jobs(jobs(place, text, "jobs.toml"))
    assert len(found.jobs) == 2
    assert found.limits.time == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no job: name `models`"),
        ("- a\n", "jobs.yaml:1: the top level must be keys"),
        ("models: [gone*.onnx]\n", r"jobs.yaml:1: 'gone\*.onnx' matches no file"),
        ("modles: [plain.onnx]\n", "jobs.yaml:1: modles: unknown key; is 'models' meant?"),
        ("models: plain.onnx\nmatrix:\n  targets: [macs=0.5]\n", "jobs.yaml:3: matrix.targets: unknown key; is 'target' meant?"),
        ("models: plain.onnx\nmatrix:\n  target:\n  - macs=0.5\n  - macs=5\n", "jobs.yaml:5: matrix.target.1: target 'macs=5'"),
        ("models: plain.onnx\nmatrix:\n  target: []\n", "jobs.yaml:3: matrix.target: List should have at least 1 item"),
        ("models: plain.onnx\nmatrix:\n  target: macs=0.5\n", "jobs.yaml:3: matrix.target: Input should be a valid list"),
        ("models: plain.onnx\noptions:\n  output: x.onnx\n", "jobs.yaml:3: options.output: unknown key here"),
        ("models: plain.onnx\noptions:\n  model: x.onnx\n", "jobs.yaml:3: options.model: unknown key here"),
        ("models: plain.onnx\nlimits:\n  time: 0\n", "jobs.yaml:3: limits.time: Input should be greater than 0"),
        ("models: plain.onnx\nlimits:\n  memory: 4 apples\n", "limits.memory: '4 apples' is no amount of memory"),
        (
            "models: plain.onnx\nlimits:\n  retries: -1\n",
            "jobs.yaml:3: limits.retries: Input should be greater than or equal to 0",
        ),
        ("matrix:\n  include:\n  - target: macs=0.5\n", "jobs.yaml:2: a job of `include` has no `model`"),
        ("models: plain.onnx\noptions:\n  require: accuracy>=1\n", "jobs.yaml:2: --require: accuracy needs --eval"),
        ("models: plain.onnx\nmodels: x\n", "jobs.yaml:2: the key 'models' is there twice"),
    ],
)
def test_errors_name_file_line_and_key(place: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_jobs(jobs(place, text))


def test_a_matrix_that_is_far_too_large(place: Path) -> None:
    seeds = list(range(101))
    text = f"models: plain.onnx\nmatrix:\n  seed: {seeds}\n  min-channels: {seeds[1:]}\n"
    with pytest.raises(UsageError, match=rf"jobs.yaml:2: 1 model x 101 seed x 100 min-channels are more than {MOST_JOBS} jobs"):
        read_jobs(jobs(place, text))


@pytest.mark.parametrize(("text", "value"), [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mb", 512 * 10**6)])
def test_amounts_of_memory(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "4", "GB", "4G", "-4GB", "infGB", "nanGB", "1KB", "4 GB x"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="is no amount of memory"):
        parse_bytes(text)


KEYS = st.sampled_from(
    ["models", "options", "matrix", "limits", "target", "include", "exclude", "time", "memory", "seed", "keep", "x", "<<", "on"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["macs=0.5", "4GB", "*.onnx", "a:b"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=150)
@given(value=VALUES)
def test_any_structure_is_jobs_or_an_error(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(json.dumps(value))
    with suppress(UsageError):
        read_jobs(path)


# ---- running ------------------------------------------------------------------------------------


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


# ---- killing ------------------------------------------------------------------------------------


def start(*arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "graphprune.cli", "batch", *map(str, arguments)]
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
    process.communicate(timeout=20)
    assert process.returncode != 0
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
