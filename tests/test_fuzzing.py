"""Hostile files through every verb that reads them: no traceback, no hang, no crash, bounded memory, no file touched outside.

The default tests take a few mutants of every kind; `pytest -m nightly` takes hundreds.  Start reading at `attack_model`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_models import mutant, populate
from nets import plain, write
from sandbox import Outcome, Sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(tmp_path_factory.mktemp("box")) as box:
        populate(box.folder / "in", box.folder / "secret")
        write(plain(), box.folder / "in" / "plain.onnx")
        yield box


def attack_model(box: Sandbox, data: bytes, verbs: str = "prune apply verify import analyze inspect init diff bench compile") -> list[str]:
    """What is wrong with how the verbs take a model."""
    model, other = box.folder / "in" / "model.onnx", box.folder / "in" / "plain.onnx"
    model.write_bytes(data)
    out, plan = box.folder / "out" / "out.onnx", box.folder / "out" / "plan.json"
    commands: dict[str, list[str | Path]] = {
        "prune": [model, "-o", out, "--target", "channels=0.5", "--align", "1", "--plan", plan],
        "apply": [model, plan, "-o", box.folder / "out" / "again.onnx"],
        "verify": [model, plan, out],
        "import": [model, "-o", out, "--format", "onnx"],
        "analyze": [model],
        "inspect": [model],
        "init": [model, "-o", box.folder / "out" / "c.yaml"],
        "diff": [other, model],
        "bench": [model],
        "compile": [model, "-o", out.with_suffix(".so")],
    }
    found = []
    for verb in verbs.split():
        if verb in ("apply", "verify") and not plan.exists():
            continue
        outcome, wrong = box.run([verb, *commands[verb]])
        if wrong and not (verb in ("apply", "verify") and wrong[0].startswith("left behind")):
            found.append(f"{verb}: {'; '.join(wrong)}: {outcome.output.strip()[-300:]}")
        if verb == "verify" or not plan.exists():
            box.clear()
    box.clear()
    return found


def attack_plan(box: Sandbox, data: bytes) -> list[str]:
    """What is wrong with how the verbs take a plan for `plain`."""
    model, plan = box.folder / "in" / "plain.onnx", box.folder / "in" / "plan.json"
    plan.write_bytes(data)
    found = _run(box, ["apply", model, plan, "-o", box.folder / "out" / "again.onnx"])
    return found + _run(box, ["verify", model, plan, box.folder / "in" / "smaller.onnx"])


def attack_file(box: Sandbox, name: str, data: bytes) -> list[str]:
    """What is wrong with how a configuration, batch, file of samples, companion of a plan or container is taken."""
    model, out = box.folder / "in" / "plain.onnx", box.folder / "out" / "out.onnx"
    place = box.folder / "in" / ("plan.weights.safetensors" if name == "weights" else name)
    place.write_bytes(data)
    pruned = ["prune", model, "-o", out, "--align", "1"]
    commands: dict[str, list[list[str | Path]]] = {
        "config.yaml": [[*pruned, "--config", place]],
        "config.toml": [[*pruned, "--config", place]],
        "jobs.yaml": [["batch", place, "-o", box.folder / "out" / "results", "--dry-run"]],
        "weights": [["apply", model, box.folder / "in" / "plan.json", "-o", out]],
        "samples.npz": [
            [*pruned, "--target", "channels=0.5", "--calibration", place, "--recipe", "fast", "--importance", "activation"],
            [*pruned, "--target", "channels=0.5", "--eval", place],
        ],
    }
    found = []
    for command in commands.get(name, [["import", place, "-o", out], ["analyze", place]]):
        found += _run(box, command)
    place.unlink()
    return found


def _run(box: Sandbox, command: list[str | Path]) -> list[str]:
    outcome, wrong = box.run(command)
    box.clear()
    return [f"{command[0]}: {'; '.join(wrong)}: {outcome.output.strip()[-300:]}"] if wrong else []
