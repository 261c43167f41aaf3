"""MLflow: what is made of a result, what happens without a server, and (marked mlflow) a real server that is read back.

The marked tests need the extra and a server: `pip install mlflow`, then `pytest -m mlflow`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from marks import with_mlflow
from nets import plain, residual, write

from graphprune import tracking
from graphprune.errors import ExitCode, LoggingError, UsageError
from graphprune.log_command import _free, log_run
from graphprune.options import Options
from graphprune.result_folder import result_folders
from graphprune.run import Job
from graphprune.run import run as run_job
from graphprune.runtime import run

Cli = Callable[..., Result]
HALF = ["--target", "channels=0.5", "--align", "1"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(plain(), tmp_path / "model.onnx")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


# ---- without MLflow -------------------------------------------------------------------------------


def test_a_missing_extra_is_told_before_the_work(
    graphprune_cli: Cli, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--mlflow", "http://localhost:5000")
    assert result.exit_code == 6
    assert "pip install 'graphprune[mlflow]'" in result.stderr
    assert list(model.parent.iterdir()) == [model]


def test_a_server_that_fails_before_the_work_is_a_usage_error(
    graphprune_cli: Cli, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "need", lambda extra: Broken())
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--mlflow", "http://me:secret@server/")
    assert result.exit_code == 2
    assert "--mlflow: MLflow at http://server/ failed: no answer from http://server/" in result.stderr
    assert "secret" not in result.stderr
    assert list(model.parent.iterdir()) == [model]


class Broken:
    """What is left of MLflow where its server is away."""

    def get_tracking_uri(self) -> str:
        return ""

    def set_tracking_uri(self, uri: str) -> None:
        self.uri = uri

    def set_experiment(self, name: str) -> None:
        raise ConnectionError(f"no answer from {self.uri}\nand much more")


def unreachable_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers at first, and not when there is something to log."""
    monkeypatch.setattr(tracking, "check_server", lambda server: None)
    monkeypatch.setattr(tracking, "need", lambda extra: Broken())


def test_a_run_is_kept_where_logging_fails(
    graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, plan and table are there, and so is what was to be logged, as a result that can be logged later."""
    unreachable_later(monkeypatch)
    arguments = ["prune", model, "-o", out, *HALF, "--mlflow", "http://server/", "--plan", tmp_path / "plan.json"]
    for kept in (tmp_path / "out.onnx.unlogged", tmp_path / "out.onnx.unlogged-2"):
        result = graphprune_cli(*arguments)
        assert result.exit_code == ExitCode.NOT_LOGGED == 10
        assert f"later: graphprune log {kept} --mlflow http://server/. The model is written" in result.stderr
        assert "proof: equal to the masked original" in result.stdout
        assert {path.name for path in kept.iterdir()} == {"model.onnx", "plan.json", "result.json", "config.yaml"}
        assert (kept / "model.onnx").read_bytes() == out.read_bytes()
        assert (kept / "plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
        assert result_folders(kept) == [kept]
    assert graphprune_cli("prune", "--config", kept / "config.yaml", "-o", tmp_path / "again.onnx").exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    assert not list(tmp_path.glob(".out*"))


def test_a_gate_counts_more_than_logging(
    graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable_later(monkeypatch)
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--mlflow", "http://server/", "--require", "params<=1%")
    assert result.exit_code == 8
    assert "warning: MLflow at http://server/ failed: no answer from http://server/" in result.stderr
    assert {path.name for path in (tmp_path / "out.onnx.unlogged").iterdir()} == {"result.json", "config.yaml"}
    assert not out.exists()


def test_a_report_is_logged_with_the_rest(model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def look(folder: Path, server: tracking.Server) -> str:
        seen.update({path.name: path.read_text(errors="replace") for path in folder.iterdir()})
        return "id"

    monkeypatch.setattr(tracking, "log_result", look)
    (tmp_path / "mine.html").write_text("<p>a report</p>")
    job = Job(str(model), Options(targets=("channels=0.5",), align=1))
    log_run(run_job(job), job, tracking.Server("http://server/"), out, 1.5, tmp_path / "mine.html")
    assert seen["report.html"] == "<p>a report</p>"
    assert json.loads(seen["result.json"])["seconds"] == 1.5
    assert sorted(tmp_path.iterdir()) == [tmp_path / "mine.html", model]


def test_a_batch_is_kept_where_logging_fails(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable_later(monkeypatch)
    (tmp_path / "jobs.yaml").write_text("models: model.onnx\noptions: {target: channels=0.5, align: 1}\n")
    result = graphprune_cli("batch", tmp_path / "jobs.yaml", "--mlflow", "http://server/")
    assert result.exit_code == 10
    assert f"or graphprune log {tmp_path / 'jobs.results'}, logs what is left" in result.stderr
    assert len(result_folders(tmp_path / "jobs.results")) == 1
    (tmp_path / "jobs.yaml").write_text(
        "models: model.onnx\nmatrix: {align: [1, 2]}\noptions: {target: channels=0.5, keep: nothing}\n"
    )
    result = graphprune_cli("batch", tmp_path / "jobs.yaml", "--mlflow", "http://server/", "--resume")
    assert result.exit_code == 9


def test_a_folder_without_results_is_named(graphprune_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    for path in (tmp_path, tmp_path / "nowhere"):
        result = graphprune_cli("log", path, "--mlflow", "http://server/")
        assert result.exit_code == 2
        assert f"{path}: no result of graphprune is there" in result.stderr
    with pytest.raises(UsageError, match=r"result.json is missing or broken"):
        tracking.log_result(tmp_path, tracking.Server("http://server/"))


def test_the_server_of_log_comes_from_the_environment(
    graphprune_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "Missing option '--mlflow'" in graphprune_cli("log", tmp_path).stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server/")
    assert "no result of graphprune" in graphprune_cli("log", tmp_path).stderr


def test_reports_have_no_password(
    graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report has the command in it, and is logged as well."""
    unreachable_later(monkeypatch)
    page = tmp_path / "report.html"
    arguments = ["prune", str(model), "-o", str(out), *HALF, "--report", str(page), "--mlflow", "http://me:secret@server/"]
    monkeypatch.setattr(sys, "argv", ["graphprune", *arguments])
    assert graphprune_cli(*arguments).exit_code == 10
    assert "--mlflow http://server/" in page.read_text()
    assert (tmp_path / "out.onnx.unlogged" / "report.html").read_bytes() == page.read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_free_names(tmp_path: Path) -> None:
    assert _free(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").touch()
    (tmp_path / "a-2").touch()
    assert _free(tmp_path / "a") == tmp_path / "a-3"


def test_figures_by_their_names() -> None:
    result = {
        "before": {"macs": 200, "channels": 0},
        "after": {"macs": 50, "channels": 0},
        "latency": {"before": {"median_ms": 4.0, "threads": 1}, "after": {"median_ms": 3.0, "threads": 1}},
        "accuracy": {"before": 0.5, "after": 0.25},
        "targets": [{"target": "macs=0.3", "realised": 0.25}],
        "proof": {"max_error": 1e-7},
        "seconds": 3,
    }
    assert tracking.metrics(result) == {
        "before/macs": 200,
        "after/macs": 50,
        "share/macs": 0.25,
        "before/channels": 0,
        "after/channels": 0,
        "before/latency_median_ms": 4,
        "after/latency_median_ms": 3,
        "share/latency_median_ms": 0.75,
        "before/accuracy": 0.5,
        "after/accuracy": 0.25,
        "realised/macs": 0.25,
        "proof/max_error": 1e-7,
        "seconds": 3,
    }


# ---- a real server --------------------------------------------------------------------------------


class LocalServer:
    """An MLflow server in a process of its own, on a free port, with a database in a folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        stores = [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination",
            f"{self.folder}/artifacts",
        ]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *stores, *place]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        end = time.monotonic() + 180
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.5)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(self.uri)

    def runs(self, experiment: str) -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        return list(self.client.search_runs([found.experiment_id])) if found else []

    def files(self, run: Any, folder: Path) -> Path:
        import mlflow

        return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(folder), tracking_uri=self.uri))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    pytest.importorskip("flask", reason="the server needs all of mlflow: pip install mlflow")
    started = LocalServer(tmp_path_factory.mktemp("mlflow"))
    yield started
    started.stop()


@with_mlflow
def test_weights_of_large_models_are_logged(tmp_path: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in its file while graphprune works goes to the server."""
    import mlflow

    monkeypatch.setattr("graphprune.model_file.MAPPED", 0)
    monkeypatch.setattr("graphprune.model_file.LARGE", 64)
    path = write(residual(), tmp_path / "model.onnx")
    mlflow.set_tracking_uri(server.uri)
    with mlflow.start_run():
        tracking._log_model(mlflow, path)
        logged = mlflow.onnx.load_model(mlflow.last_logged_model().model_uri)
    assert logged.graph.initializer == onnx.load(path).graph.initializer


@with_mlflow
def test_everything_is_read_back(graphprune_cli: Cli, tmp_path: Path, server: LocalServer) -> None:
    """Parameters, metrics, tags, files, and a model that computes what the written one does."""
    import mlflow

    source = write(residual(), tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    files = ["--plan", tmp_path / "plan.json", "--json", tmp_path / "result.json"]
    repaired = ["--calibration", "random", "--measure", "--require", "params<=90%"]
    arguments = ["prune", source, "-o", out, *HALF, *files, *repaired]
    result = graphprune_cli(*arguments, "--mlflow", server.uri, "--mlflow-experiment", "read back")
    assert result.exit_code == 0, result.stderr
    assert "View run" not in result.stdout
    (run,) = server.runs("read back")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "model channels=0.5 balanced")
    parameters = run.data.params
    assert parameters["target"] == "channels=0.5"
    assert parameters["recipe"] == "balanced"
    assert parameters["importance"]
    assert parameters["model"] == str(source)
    assert parameters["align"] == "1"
    found = json.loads((tmp_path / "result.json").read_text())
    metrics = run.data.metrics
    for kind in ("macs", "params", "bytes", "channels", "file_bytes"):
        assert metrics[f"before/{kind}"] == found["before"][kind]
        assert metrics[f"after/{kind}"] == found["after"][kind]
    assert metrics["after/latency_median_ms"] == found["latency"]["after"]["median_ms"]
    assert metrics["realised/channels"] == found["targets"][0]["realised"]
    assert metrics["proof/max_error"] == found["proof"]["max_error"]
    tags = run.data.tags
    assert tags["graphprune.source_sha256"] == found["model_sha256"]
    assert tags["graphprune.plan_sha256"] == hashlib.sha256((tmp_path / "plan.json").read_bytes()).hexdigest()
    assert tags["graphprune.version"]
    assert tags["graphprune.requirements"] == "met"
    logged = server.files(run, tmp_path / "logged")
    weights = "plan.weights.safetensors"
    assert {path.name for path in logged.iterdir()} >= {"plan.json", "result.json", "config.yaml", weights}
    assert (logged / "plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert (logged / weights).read_bytes() == (tmp_path / weights).read_bytes()
    read = json.loads((logged / "result.json").read_text())
    assert read["seconds"] > 0
    assert {key: read[key] for key in found} == found
    mlflow.set_tracking_uri(server.uri)
    place = f"runs:/{run.info.run_id}/model"
    model = mlflow.onnx.load_model(place)
    assert model.SerializeToString(deterministic=True) == onnx.load(out).SerializeToString(deterministic=True)
    (image,) = model.graph.input
    feeds = {image.name: np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    served = mlflow.pyfunc.load_model(place)
    expected = run_model(out, feeds)
    for name, value in served.predict(feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    signature = served.metadata.signature
    assert [(spec.name, spec.type, spec.shape[1:]) for spec in signature.inputs] == [(image.name, np.dtype("float32"), (3, 8, 8))]
    assert [spec.name for spec in signature.outputs] == [value.name for value in model.graph.output]


def run_model(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    return run(onnx.load(path), feeds, optimize=True)


@with_mlflow
def test_a_run_whose_gate_fails_is_logged_as_failed(
    graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, server: LocalServer
) -> None:
    gate = ["--require", "params<=1%", "--mlflow", server.uri, "--mlflow-experiment", "gate"]
    assert graphprune_cli("prune", model, "-o", out, *HALF, *gate).exit_code == 8
    (run,) = server.runs("gate")
    assert run.info.status == "FAILED"
    assert run.data.tags["graphprune.requirements"] == "not met"
    assert "graphprune.plan_sha256" not in run.data.tags
    assert {path.name for path in server.files(run, tmp_path / "logged").iterdir()} == {"result.json", "config.yaml"}
    assert list(tmp_path.glob("out*")) == []


@with_mlflow
def test_batches_are_logged_once(graphprune_cli: Cli, model: Path, tmp_path: Path, server: LocalServer) -> None:
    """Whatever is repeated: `batch --resume` and `log` add only what is not there yet, also after a half-logged run."""
    (tmp_path / "jobs.yaml").write_text(
        "models: model.onnx\nmatrix: {target: [channels=0.5, channels=0.7]}\noptions: {align: 1}\n"
    )
    to = ["--mlflow", server.uri, "--mlflow-experiment", "batch"]
    assert graphprune_cli("batch", tmp_path / "jobs.yaml", *to).exit_code == 0
    assert {run.data.params["target"] for run in server.runs("batch")} == {"channels=0.5", "channels=0.7"}
    assert graphprune_cli("batch", tmp_path / "jobs.yaml", "--resume", *to).exit_code == 0
    result = graphprune_cli("log", tmp_path / "jobs.results", *to)
    assert result.exit_code == 0
    runs = server.runs("batch")
    assert len(runs) == 2
    assert {line.split("run ")[1] for line in result.stdout.splitlines()} == {run.info.run_id for run in runs}
    server.client.delete_tag(runs[0].info.run_id, tracking.RESULT_TAG)
    (tmp_path / "secret").write_text("of somebody else")
    for folder in result_folders(tmp_path / "jobs.results"):
        (folder / "other.txt").write_text("no part of a result")
        (folder / "report.html").symlink_to(tmp_path / "secret")
    assert graphprune_cli("log", tmp_path / "jobs.results", *to).exit_code == 0
    (again,) = (run for run in server.runs("batch") if run.info.run_id not in {each.info.run_id for each in runs})
    assert {path.name for path in server.files(again, tmp_path / "logged").iterdir()} == {
        "plan.json",
        "result.json",
        "config.yaml",
    }


@with_mlflow
def test_a_server_that_goes_away_and_comes_back(
    graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers when the run begins and is killed before its end: exit code 10; later the result is logged."""
    from graphprune import log_command

    to = ["--mlflow", server.uri, "--mlflow-experiment", "away"]
    logging = log_command.log_run
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr("graphprune.cli.log_run", lambda *arguments: (server.stop(), logging(*arguments)))
    result = graphprune_cli("prune", model, "-o", out, *HALF, *to)
    assert result.exit_code == 10, result.stderr
    assert f"MLflow at {server.uri} failed" in result.stderr
    kept = tmp_path / "out.onnx.unlogged"
    assert (kept / "model.onnx").read_bytes() == out.read_bytes()
    assert graphprune_cli("log", kept, *to).exit_code == 10
    with pytest.raises(UsageError, match="--mlflow: MLflow at"):
        tracking.check_server(tracking.Server(server.uri))
    server.start()
    assert graphprune_cli("log", kept, *to).exit_code == 0
    (run,) = server.runs("away")
    assert run.data.params["model"] == str(model)
    assert (server.files(run, tmp_path / "logged") / "plan.json").read_bytes() == (kept / "plan.json").read_bytes()


@with_mlflow
def test_the_rest_of_the_program_keeps_its_server(model: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    mlflow.set_tracking_uri("http://elsewhere")
    tracking.check_server(tracking.Server(server.uri, "keeps"))
    with pytest.raises(LoggingError, match="Supported URI schemes"), tracking._connected(tracking.Server("nonsense://x")):
        pass
    assert mlflow.get_tracking_uri() == "http://elsewhere"
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
