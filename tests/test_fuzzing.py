"""Hostile files through every verb that reads them: no traceback, no hang, no crash, bounded memory, no file touched outside.

The default tests take a few mutants of every kind; `pytest -m nightly` takes hundreds.  Start reading at `attack_model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import hostile_files
import pytest
from hostile_models import mutant, populate
from hostile_traps import BOMBS, big_named
from nets import plain, write
from sandbox import CANARY, Outcome, Sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(tmp_path_factory.mktemp("box")) as box:
        populate(box.folder / "in", box.folder / "secret")
        write(plain(), box.folder / "in" / "plain.onnx")
        jobs = "models: [model.onnx]\noptions: {target: channels=0.5, align: 1}\nlimits: {retries: 0}\n"
        (box.folder / "in" / "one.yaml").write_text(jobs)
        yield box


def attack_model(
    box: Sandbox, data: bytes, verbs: str = "prune apply verify import analyze inspect init diff view export batch bench compile"
) -> list[str]:
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
        "view": [model, "-o", box.folder / "out" / "view.html"],
        "export": [model, "-o", box.folder / "out" / "e.ort"],
        "batch": [box.folder / "in" / "one.yaml", "-o", box.folder / "out" / "results"],
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


# ---- tests --------------------------------------------------------------------------------------

QUICK_MODELS = range(0, 28)
QUICK_FILES = range(0, 3)
LONG = 600


@pytest.fixture(scope="module")
def valid_plan(sandbox: Sandbox) -> str:
    """A plan for `plain`, and its result beside it."""
    folder, out = sandbox.folder / "in", sandbox.folder / "out"
    command = [
        "prune",
        folder / "plain.onnx",
        "-o",
        out / "s.onnx",
        "--target",
        "channels=0.5",
        "--align",
        "1",
        "--plan",
        out / "p.json",
    ]
    outcome, wrong = sandbox.run(command)
    assert (outcome.code, wrong) == (0, []), outcome.output
    (out / "s.onnx").rename(folder / "smaller.onnx")
    text = (out / "p.json").read_text()
    sandbox.clear()
    return text


def attack(box: Sandbox, valid: str, family: str, seed: int) -> list[str]:
    rng = Random(f"{family}{seed}")
    if family == "plan":
        return attack_plan(box, hostile_files.plan(valid, rng))
    (box.folder / "in" / "plan.json").write_text(valid)
    return attack_file(box, family, hostile_files.FAMILIES[family](rng))


def test_some_mutants_of_models(sandbox: Sandbox) -> None:
    """One of each mutation, through the verb that does most; traps wait for the nightly tests."""
    wrong = {seed: attack_model(sandbox, mutant(seed)[1], "prune") for seed in QUICK_MODELS if seed % 4 != 3}
    assert not {seed: found for seed, found in wrong.items() if found}


@pytest.mark.parametrize("family", ["plan", "weights", "config.yaml", "config.toml", "jobs.yaml", "samples.npz", "model.pt2"])
def test_some_mutants_of_other_files(sandbox: Sandbox, valid_plan: str, family: str) -> None:
    wrong = {seed: attack(sandbox, valid_plan, family, seed) for seed in QUICK_FILES}
    assert not {seed: found for seed, found in wrong.items() if found}


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(20))
def test_many_mutants_of_models(sandbox: Sandbox, part: int) -> None:
    wrong = {seed: attack_model(sandbox, mutant(seed)[1]) for seed in range(part, LONG, 20)}
    assert not {seed: found for seed, found in wrong.items() if found}


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["plan", *hostile_files.FAMILIES])
def test_many_mutants_of_other_files(sandbox: Sandbox, valid_plan: str, family: str) -> None:
    wrong = {seed: attack(sandbox, valid_plan, family, seed) for seed in range(60)}
    assert not {seed: found for seed, found in wrong.items() if found}


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs(sandbox: Sandbox, name: str) -> None:
    assert not attack_model(sandbox, big_named(name).SerializeToString(), "prune analyze bench")


@pytest.mark.nightly
def test_the_shipped_example_with_bytes_changed(sandbox: Sandbox) -> None:
    data = (Path(__file__).parent.parent / "examples" / "fashion_mnist" / "model.onnx").read_bytes()
    wrong = {seed: attack_model(sandbox, hostile_files.flipped(data, Random(seed)), "prune analyze") for seed in range(40)}
    assert not {seed: found for seed, found in wrong.items() if found}


def test_the_sandbox_sees_what_it_is_for(sandbox: Sandbox) -> None:
    """A watch that sees nothing would pass everything."""
    assert Outcome(1, "", 1, 1).problems() == ["ended with 1"]
    assert Outcome(-11, "", 1, 1).problems() == ["ended with -11"]
    assert Outcome(3, "Traceback (most", 25, 3 * 2**30).problems() == ["took 25 s", "took 3072 MB", "traceback"]
    outcome, wrong = sandbox.run(["import", sandbox.folder / "in" / "plain.onnx", "-o", sandbox.folder / "work" / "x.onnx"])
    assert outcome.code == 0
    assert wrong == ["files changed: ['work/x.onnx']"]
    (sandbox.folder / "work" / "x.onnx").unlink()
    (sandbox.folder / "out" / "leak").write_bytes(b"..." + CANARY)
    assert "read a file outside its folder" in sandbox.run(["inspect", sandbox.folder / "in" / "plain.onnx"])[1]
    sandbox.clear()
