"""Files of jobs: expansion, paths, and errors that name file, line and key."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from batches import jobs, models_and_scores
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import UsageError
from graphprune.jobs import MOST_JOBS, parse_bytes, read_jobs

Cli = Callable[..., Result]


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


@pytest.mark.parametrize("name", ["runs[1]", "a*b", "what?", "plain"])
def test_the_folder_is_no_pattern(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / name
    folder.mkdir()
    models_and_scores(folder)
    monkeypatch.chdir("/")
    for pattern in ("res*.onnx", "./residual.onnx", f"../{glob.escape(name)}/resid???.onnx", str(folder / "residual.onnx")):
        text = f"models: ['*.onnx']\nmatrix: {{seed: [0, 1], exclude: [{{model: '{pattern}', seed: 1}}]}}\n"
        found = [(Path(each.job.model).name, each.job.options.seed) for each in read_jobs(jobs(folder, text)).jobs]
        assert found == [("plain.onnx", 0), ("plain.onnx", 1), ("residual.onnx", 0)]


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
        (
            "models: plain.onnx\nmatrix:\n  seed: [1]\n  exclude:\n  - seed: 1\n    align: 2\n",
            r"jobs.yaml:6: 'align' is no key of the matrix \(model, seed\)",
        ),
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
