"""The command line: options, exit codes, what goes where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from nets import net, plain, residual, write

import graphprune
from graphprune import tables
from graphprune.cli import main

Cli = Callable[..., Result]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(plain(), tmp_path / "model.onnx")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


HALF = ["--target", "channels=0.5", "--align", "1"]


# ---- results ------------------------------------------------------------------------------------


def test_only_the_result_goes_to_standard_output(graphprune_cli: Cli, model: Path, out: Path) -> None:
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert not result.stderr
    assert set(report) == {
        *("before", "after", "targets", "groups", "pinned", "model_sha256", "options", "proof", "repaired"),
    }
    assert report["after"]["file_bytes"] == out.stat().st_size
    assert report["before"]["file_bytes"] == model.stat().st_size
    assert report["targets"][0]["realised"] <= 0.5
    assert report["proof"]["passed"] is True


def test_json_may_go_to_a_file_beside_the_table(graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path) -> None:
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--json", tmp_path / "report.json")
    assert "MACs" in result.stdout
    assert "proof: equal to the masked original (max error" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["after"]["channels"] == 10


@pytest.mark.parametrize("verb", ["analyze M", "diff M M", "verify M P O", "apply M P -o O"])
def test_every_verb_can_write_json(graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, verb: str) -> None:
    plan = tmp_path / "plan.json"
    assert graphprune_cli("prune", model, "-o", out, *HALF, "--plan", plan).exit_code == 0
    names = {"M": model, "P": plan, "O": out}
    result = graphprune_cli(*[names.get(word, word) for word in verb.split()], "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)


def test_import_writes_the_normal_form(graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path) -> None:
    result = graphprune_cli("import", model, "-o", out)
    assert result.exit_code == 0
    assert result.stdout.strip() == f"{out}: 7 nodes, 6 initializers"
    again = tmp_path / "again.onnx"
    graphprune_cli("import", out, "-o", again)
    assert again.read_bytes() == out.read_bytes()


def test_import_with_a_shape_makes_it_static(graphprune_cli: Cli, model: Path, out: Path) -> None:
    assert graphprune_cli("import", model, "-o", out, "--input-shape", "x=4,3,8,8").exit_code == 0
    imported = graphprune.load(out).model
    assert [dim.dim_value for dim in imported.graph.input[0].type.tensor_type.shape.dim] == [4, 3, 8, 8]
    assert [dim.dim_value for dim in imported.graph.output[0].type.tensor_type.shape.dim] == [4, 5]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("x", "is not of the form NAME=1,3,224,224"),
        ("x=1,3,8", "does not fit"),
        ("x=1,4,8,8", "does not fit"),
        ("x=0,3,8,8", "is not of the form"),
        ("x=a,3,8,8", "is not of the form"),
        ("z=1,3,8,8", "the model has no such input; it has: x"),
    ],
)
def test_a_shape_that_does_not_fit(graphprune_cli: Cli, model: Path, out: Path, shape: str, message: str) -> None:
    for verb in ("import", "prune"):
        result = graphprune_cli(verb, model, "-o", out, "--input-shape", shape, *(HALF if verb == "prune" else []))
        assert result.exit_code == 2
        assert message in result.stderr
        assert not out.exists()


def test_import_of_a_source_that_nobody_knows(graphprune_cli: Cli, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "model.xyz"
    source.write_bytes(b"")
    result = graphprune_cli("import", source, "-o", out)
    assert result.exit_code == 3
    result = graphprune_cli("import", tmp_path, "-o", out)
    assert result.exit_code == 2
    assert "name it with --format" in result.stderr
    result = graphprune_cli("import", source, "-o", out, "--format", "caffe")
    assert result.exit_code == 2
    assert "no importers is called 'caffe'; there are: huggingface, jax" in result.stderr


def test_diff_shows_layers_before_and_after(graphprune_cli: Cli, model: Path, out: Path) -> None:
    graphprune_cli("prune", model, "-o", out, *HALF, "--selection", "uniform")
    layers = json.loads(graphprune_cli("diff", model, out, "--json", "-").stdout)["layers"]
    assert [(layer["weight_before"], layer["weight_after"]) for layer in layers] == [
        ([8, 3, 3, 3], [4, 3, 3, 3]),
        ([12, 8, 3, 3], [6, 4, 3, 3]),
        ([5, 12], [5, 6]),
    ]
    assert all(layer["macs_after"] < layer["macs_before"] for layer in layers)


def test_bench_measures_and_compares(graphprune_cli: Cli, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune import bench

    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0005)
    graphprune_cli("prune", model, "-o", out, *HALF)
    result = graphprune_cli("bench", model, out, "--batch", "3", "--threads", "1", "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert [Path(entry["model"]).name for entry in report["models"]] == ["model.onnx", "out.onnx"]
    for entry in report["models"]:
        assert 0 < entry["p10_ms"] <= entry["median_ms"] <= entry["p90_ms"]
        assert (entry["batch"], entry["threads"]) == (3, 1)


def test_bench_of_models_with_batches_of_their_own(
    graphprune_cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphprune import bench

    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0005)
    fixed = tmp_path / "fixed.onnx"
    assert graphprune_cli("import", model, "-o", fixed, "--input-shape", "x=4,3,8,8").exit_code == 0
    assert "1 threads, batch 1 and 4" in graphprune_cli("bench", model, fixed).stdout
    assert "1 threads, batch 4" in graphprune_cli("bench", fixed, fixed).stdout


def test_measured_latency_and_accuracy_in_the_table(
    graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphprune import bench

    monkeypatch.setattr(bench, "SAMPLE_SECONDS", 0.0005)
    rng = np.random.default_rng(0)
    samples = tmp_path / "eval.npz"
    np.savez(samples, x=rng.standard_normal((70, 3, 8, 8)), labels=rng.integers(0, 5, 70))
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--measure", "--eval", samples, "--json", tmp_path / "r.json")
    assert result.exit_code == 0
    assert "latency" in result.stdout
    assert "accuracy" in result.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert {"before", "after"} == set(report["latency"]) == set(report["accuracy"])
    import oracle

    feeds = {"x": np.load(samples)["x"].astype(np.float32)}
    expected = (oracle.run(plain(), feeds)["y"].argmax(axis=1) == np.load(samples)["labels"]).mean()
    assert report["accuracy"]["before"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 3, 8, 8)), "labels": np.zeros(2)}, "no samples for input 'x'"),
        ({"x": np.zeros((2, 3, 8, 8))}, "needs a key 'labels'"),
        ({"x": np.zeros((2, 3, 8, 8)), "labels": np.zeros(3)}, "the same number of samples"),
        ({"x": np.zeros((0, 3, 8, 8)), "labels": np.zeros(0)}, "at least one"),
        (
            {"x": np.zeros((2, 3, 8, 8)), "labels": np.array([0, 5])},
            "label is 5, but the model has scores for 5 classes, 0 to 4",
        ),
        ({"x": np.zeros((2, 3, 8, 8)), "labels": np.array([-1, 0])}, "a label is -1, but"),
        ({"x": np.zeros((2, 3, 8, 8)), "labels": np.array([0, np.nan])}, "a label is nan, but"),
        ({"x": np.zeros((2, 3, 8, 8)), "labels": np.array([1.5, 0])}, "a label is 1.5, but"),
    ],
)
def test_samples_that_do_not_fit(
    graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    samples = tmp_path / "eval.npz"
    np.savez(samples, **arrays)
    result = graphprune_cli("prune", model, "-o", out, *HALF, "--eval", samples)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_samples_that_are_no_archive(graphprune_cli: Cli, model: Path, out: Path, tmp_path: Path) -> None:
    samples = tmp_path / "eval.npz"
    for content in (b"", b"no zip", b"PK\x03\x04"):
        samples.write_bytes(content)
        result = graphprune_cli("prune", model, "-o", out, *HALF, "--eval", samples)
        assert result.exit_code == 2, result.stderr
        assert "cannot read the samples" in result.stderr
        assert not out.exists()


# ---- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "flops=0.5"], 2, "unknown kind 'flops'"),
        (["--target", "macs=2"], 2, "a fraction lies above 0"),
        (["--target", "macs=0.0001"], 4, "the target cannot be reached"),
        (["--target", "channels=1"], 4, "nothing was pruned"),
        ([], 2, "nothing to do: give a target"),
        (["--target", "channels=0.5", "--keep", "nobody"], 2, "matches no group, tensor or node"),
        (["--target", "channels=0.5", "--keep", "("], 2, "is not a regular expression"),
        (["--target", "channels=0.5", "--keep", "."], 4, ""),
        (["--target", "channels=0.5", "--ratio", "w1=2"], 2, "is not of the form REGEX=VALUE"),
        (["--target", "channels=0.5", "--importance", "tailor"], 2, "no importance is called 'tailor'"),
        (["--target", "channels=0.5", "--importance", "magnitude{p=3}"], 2, "option p='3'"),
        (["--target", "channels=0.5", "--selection", "best"], 2, "no selection is called 'best'"),
        (["--target", "channels=0.5", "--align", "none"], 2, "--align 'none': give 'auto' or a number"),
        (["--target", "channels=0.5", "--align", "0"], 2, "must be at least 1"),
        (["--target", "channels=0.5", "--min-channels", "-1"], 2, "min-channels"),
        (["--target", "channels=0.5", "--seed", "-1"], 2, "seed"),
        (["--target", "channels=0.5", "--seed", f"{1 << 63}"], 2, "seed"),
        (["--target", "channels=0.5", "--min-channels", "99999999999999999999"], 2, "min-channels"),
        (["--target", "channels=0.5", "--eval", ""], 2, "Invalid value for '--eval': it is empty"),
        (["--target", "channels=0.5", "--calibration", " "], 2, "Invalid value for '--calibration': it is empty"),
        (["--target", "channels=0.5", "--mlflow", ""], 2, "Invalid value for '--mlflow': it is empty"),
        (["--target", "channels=0.5", "--selection", "global{floor=2}"], 2, "floor='2': Input should be less than or equal to 1"),
        (["--target", "channels=0.5", "--selection", "global{floor=NaN}"], 2, "floor='NaN': Input should be a finite number"),
        (["--target", "channels=0.5", "--selection", "evolution{seconds=1e999}"], 2, "Input should be a finite number"),
        (["--target", "channels=0.5", "--importance", "bn_scale"], 4, "has no say about any group"),
        (["--frobnicate"], 2, "No such option"),
    ],
)
def test_wrong_usage_and_what_cannot_be_done(
    graphprune_cli: Cli, model: Path, out: Path, arguments: list[str], code: int, message: str
) -> None:
    result = graphprune_cli("prune", model, "-o", out, *arguments)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout
    assert not out.exists()


def test_unknown_verbs_and_missing_arguments(graphprune_cli: Cli, model: Path) -> None:
    assert graphprune_cli("frobnicate").exit_code == 2
    assert graphprune_cli("prune", model).exit_code == 2
    assert graphprune_cli("prune").exit_code == 2
    assert graphprune_cli("list", "nothing").exit_code == 2
    assert graphprune_cli("bench").exit_code == 2


def test_operators_without_a_rule_as_an_error(graphprune_cli: Cli, tmp_path: Path, out: Path) -> None:
    path = write(
        net(
            """
            u (float[N,3,4,4] x) => (float[N,8,4,4] y) <float[6,3,1,1] w1, float[8,6,1,1] w2> {
                a = Conv(x, w1)
                b = Conv(a, w2)
                y = com.acme.Wobble(b)
            }""",
            domains=("com.acme",),
        ),
        tmp_path / "u.onnx",
    )
    result = graphprune_cli("prune", path, "-o", out, *HALF, "--no-verify", "--on-unsupported", "error")
    assert result.exit_code == 4
    assert "operators without a rule: com.acme::Wobble" in result.stderr
    assert graphprune_cli("prune", path, "-o", out, *HALF, "--no-verify").exit_code == 0


def test_a_model_that_onnx_runtime_cannot_run(graphprune_cli: Cli, tmp_path: Path, out: Path) -> None:
    """Custom operators: the proof cannot run, and says how to go on."""
    path = write(
        net(
            """
            u (float[N,3,4,4] x) => (float[N,8,4,4] y) <float[6,3,1,1] w1, float[8,6,1,1] w2> {
                a = Conv(x, w1)
                b = Conv(a, w2)
                y = com.acme.Wobble(b)
            }""",
            domains=("com.acme",),
        ),
        tmp_path / "u.onnx",
    )
    result = graphprune_cli("prune", path, "-o", out, *HALF)
    assert result.exit_code == 5
    assert "--no-verify" in result.stderr
    assert not out.exists()


def test_an_unexpected_error_is_one_line(graphprune_cli: Cli, model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphprune import pipeline

    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("the moon is full")

    monkeypatch.delenv("GRAPHPRUNE_DEBUG", raising=False)
    monkeypatch.setattr(pipeline, "prune", fail)
    result = graphprune_cli("prune", model, "-o", out, *HALF)
    assert result.exit_code == 1
    assert "internal error (ZeroDivisionError: the moon is full); set GRAPHPRUNE_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("GRAPHPRUNE_DEBUG", "1")
    assert "Traceback" in graphprune_cli("prune", model, "-o", out, *HALF).stderr


@pytest.mark.parametrize("sizes", ["99999999999999999999,3", "\u00b2,3", "0,3", "-1", ""])
def test_input_shapes_that_are_none(graphprune_cli: Cli, model: Path, out: Path, sizes: str) -> None:
    result = graphprune_cli("import", model, "-o", out, "--input-shape", f"x={sizes}")
    assert result.exit_code == 2
    assert "is not of the form NAME=1,3,224,224" in result.stderr


def test_help_and_version(graphprune_cli: Cli) -> None:
    assert graphprune_cli("--version").stdout.strip() == f"graphprune, version {graphprune.__version__}"
    for verb in main.commands:
        result = graphprune_cli(verb, "--help")
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: ")
    assert set(main.commands) >= {"import", "analyze", "prune", "apply", "verify", "bench", "diff", "list"}


# ---- as a process -------------------------------------------------------------------------------


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphprune.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_as_a_process(model: Path, out: Path) -> None:
    done = process("prune", model, "-o", out, *HALF)
    assert done.returncode == 0
    assert "equal to the masked original" in done.stdout
    assert not done.stderr
    assert out.exists()


def test_errors_as_a_process(model: Path, out: Path, tmp_path: Path) -> None:
    done = process("prune", tmp_path / "missing.onnx", "-o", out, *HALF)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    done = process("prune", model, "-o", out, "--target", "macs=0.00001")
    assert (done.returncode, done.stdout) == (4, "")
    assert not out.exists()


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    """In different processes, so with different hash seeds."""
    model = write(residual(), tmp_path / "m.onnx")
    files = []
    for number in range(2):
        out, plan = tmp_path / f"{number}.onnx", tmp_path / f"{number}.json"
        assert process("prune", model, "-o", out, *HALF, "--importance", "random", "--seed", "5", "--plan", plan).returncode == 0
        files.append((out.read_bytes(), plan.read_bytes()))
    assert files[0] == files[1]


# ---- the same from Python -----------------------------------------------------------------------


def test_the_python_interface(model: Path) -> None:
    result = graphprune.prune(model, targets="channels=0.5", align=1)
    assert result.after.channels == 10
    assert result.realised[0].fraction == 0.5
    assert result.proof is not None
    assert graphprune.verify(model, result.plan, result.model).passed
    assert graphprune.prune(str(model), graphprune.Options(targets=("channels=0.5",), align=1)).plan == result.plan
    assert graphprune.apply_plan(model, result.plan).model == result.model
    assert [group.id for group in graphprune.analyze(model).groups] == ["w1:0", "w2:0"]


def test_a_long_list_of_groups_is_cut_on_the_terminal_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_ROWS", 1)
    shown = CliRunner().invoke(main, ["analyze", str(model)]).output
    assert "w1:0" in shown
    assert "w2:0" not in shown
    assert "and 1 more groups: --json - lists them all" in shown
    assert len(json.loads(CliRunner().invoke(main, ["analyze", str(model), "--json", "-"]).stdout)["groups"]) == 2


def test_progress_is_told_step_by_step(model: Path) -> None:
    steps: list[str] = []
    graphprune.prune(model, targets=["channels=0.5"], align=1, step=steps.append)
    assert steps[-1] == "proving"
    assert len(steps) >= 2


def test_progress_is_shown_on_a_terminal_and_wiped_out(model: Path, out: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "graphprune", "prune", str(model), "-o", str(out), *HALF]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert b"proving" in shown
    assert shown.rstrip().endswith(b"\x1b[2K"), shown[-60:]


def test_what_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        graphprune.prnue  # noqa: B018
