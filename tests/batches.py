"""Files of batches that several tests use: two models, functions that score them, jobs, events."""

from __future__ import annotations

import json
from pathlib import Path

from nets import plain, residual, write

from graphprune.jobs import read_jobs

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

HALF = "options: {target: channels=0.5, align: 1}\n"


def models_and_scores(folder: Path) -> None:
    """Two models, and functions that score them."""
    write(plain(), folder / "plain.onnx")
    write(residual(), folder / "residual.onnx")
    (folder / "scores_of_jobs.py").write_text(SCORES)


def jobs(folder: Path, text: str, name: str = "jobs.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def events(folder: Path, kind: str = "") -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if not kind or entry["event"] == kind]


def names(path: Path) -> list[str]:
    return [each.name for each in read_jobs(path).jobs]
