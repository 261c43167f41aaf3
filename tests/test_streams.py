"""Standard output that is closed, full or read by nobody: files and exit codes are those of the run, gates included."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from nets import plain, write

COMMAND = shlex.join([sys.executable, "-m", "graphprune"])
LOST = "graphprune: error: standard output takes no more (No space left on device), and part of what was to be shown is lost\n"


def shell(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a shell says of a command line of graphprune's, with redirections."""
    text = f"set -o pipefail; {COMMAND} {arguments}"
    return subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(plain(), tmp_path / "m.onnx")
    return tmp_path


PRUNE = "prune m.onnx -o out.onnx --target channels=0.5 --align 1 --report r.html --events e.jsonl"


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("| head -c 1", 0, ""),
        ("> /dev/full", 2, LOST),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> /dev/full 2> /dev/full", 2, ""),
    ],
)
def test_a_run_that_cannot_say_what_it_did(folder: Path, redirected: str, code: int, said: str) -> None:
    done = shell(f"{PRUNE} {redirected}", folder)
    assert (done.returncode, done.stderr) == (code, said)
    assert {each.name for each in folder.iterdir()} == {"m.onnx", "out.onnx", "r.html", "e.jsonl"}
    assert json.loads((folder / "e.jsonl").read_text().splitlines()[-1])["event"] == "run_finished"


@pytest.mark.parametrize("redirected", ["| head -c 1", "> /dev/full", ">&-"])
def test_gates_count_whoever_reads(folder: Path, redirected: str) -> None:
    done = shell(f"{PRUNE} --require 'macs<=1%' {redirected}", folder)
    assert done.returncode == 8
    assert "requirements not met: macs<=1%" in done.stderr
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize("arguments", ["list", "--help", "analyze m.onnx --json -", "init m.onnx", "inspect m.onnx"])
def test_what_only_shows(folder: Path, arguments: str) -> None:
    assert shell(f"{arguments} | head -c 1", folder).returncode == 0
    done = shell(f"{arguments} > /dev/full", folder)
    assert (done.returncode, done.stderr) == (2, LOST)


def test_a_batch_that_nobody_watches(folder: Path) -> None:
    (folder / "jobs.yaml").write_text("models: [m.onnx]\noptions: {target: [channels=0.5], align: 1}\n")
    done = shell("batch jobs.yaml 2>&- | head -c 1", folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "jobs.results" / "summary.json").read_text())["failed"] == 0
