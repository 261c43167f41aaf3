"""Accuracy against budget, without fine-tuning.  Start reading at `measure`."""

from __future__ import annotations

import sys
from math import sqrt
from pathlib import Path
from typing import Any

import trained
from children import Command, run, tool
from page_tables import table
from results import Row, Spread, error, unique, values
from settings import Settings, Size, announce

TITLE = "Accuracy against budget"

LEVELS: dict[Size, list[float]] = {"quick": [0.5], "default": [0.7, 0.5, 0.3], "full": [0.9, 0.7, 0.5, 0.35, 0.2]}
RECIPES: dict[Size, list[str]] = {
    "quick": ["fast", "balanced"],
    "default": ["fast", "balanced"],
    "full": ["fast", "balanced", "best"],
}
SEEDS: dict[Size, int] = {"quick": 1, "default": 3, "full": 5}
CRITERIA = ("L1", "L2", "Taylor", "LAMP", "BN")
LIMIT = 1800

ORIGINAL, RANDOM, PEER, ONNXSIM = "original", "graphprune random, uniform", "Torch-Pruning", "onnxsim"

HOW = """The budget is a share of the multiply-accumulates, an upper limit for every tool; nothing is trained after pruning.
graphprune's `fast` sees weights alone; `balanced` (and `best`) see calibration images without labels. Torch-Pruning
ranks channels globally, by five criteria; the smallest ratio that meets the budget is found by bisection (where it
crashes, ratios up to 0.03 larger are tried, too). *+ BN* has its BatchNormalization statistics estimated anew on the
same calibration images. Taylor sees labels where the calibration file has them, else the network's own answers.
Random scores are repeated with several seeds: median, smallest and largest. The standard error is that of the number
of test images. apple-upscale has no budgets and is left out. `fashion_example` is the network in examples/: it was
trained with a group lasso so that half of its channels can go, which helps every tool; `resnet56_cifar10` and the
networks trained by `benchmarks/train_classifiers.py` were not, and need `--data`."""


def measure(settings: Settings) -> list[Row]:
    """A row for each network, level and way of pruning: `macs`, `accuracy`, `images`."""
    rows: list[Row] = []
    names = trained.names(settings.data, settings.size == "full")
    for name in names:
        announce(names, name)
        files = trained.Trained.of(name, settings.cache, settings.data)
        if files.error:
            print(f"    {files.error}", file=sys.stderr)
            rows.append({"network": name, "tool": ORIGINAL, "error": files.error})
            continue
        with settings.scratch() as scratch:
            for label, level, command in commands(files, Path(scratch) / "unused", settings):
                row = {"network": name, "tool": label, "level": level, "images": _count(files.test), **run(command, LIMIT)}
                if "error" in row:
                    print(f"    {label}: {row['error']}", file=sys.stderr)
                again = row.pop("accuracy_reestimated", None)
                rows.append(row)
                if again is not None:
                    rows.append({**row, "tool": f"{label} + BN", "accuracy": again})
    return rows


def _count(path: Path) -> int:
    import numpy as np

    with np.load(path) as arrays:
        return len(arrays["labels"])


def commands(files: trained.Trained, out: Path, settings: Settings) -> list[tuple[str, float, Command]]:
    """Name, level and command of everything that is measured on a network."""
    samples: dict[str, Any] = {"calibration": str(files.calibration), "test": str(files.test)}
    module: dict[str, Any] = {**samples, "code": trained.code(settings.data)}
    own, peer = "accuracy_with_graphprune", "accuracy_with_torch_pruning"
    found = [(ORIGINAL, 1.0, tool(own, files.onnx, out, **samples))]
    for level in settings.pick(LEVELS):
        options: dict[str, Any] = {**samples, "targets": [f"macs={level}"], "verify": False}
        for recipe in settings.pick(RECIPES):
            command = tool(own, files.onnx, out, recipe=recipe, with_calibration=recipe != "fast", **options)
            found.append((f"graphprune {recipe}", level, command))
        for seed in range(settings.pick(SEEDS)):
            command = tool(own, files.onnx, out, importance=f"random{{seed={seed}}}", selection="uniform", **options)
            found.append((RANDOM, level, command))
        for criterion in CRITERIA:
            found.append(
                (
                    f"{PEER} {criterion}",
                    level,
                    tool(peer, files.module, out, openmp=1, criterion=criterion, level=level, **module),
                )
            )
        for seed in range(settings.pick(SEEDS)):
            command = tool(peer, files.module, out, openmp=1, criterion="random", seed=seed, level=level, **module)
            found.append((f"{PEER} random", level, command))
        found.append((ONNXSIM, level, tool("accuracy_with_onnxsim", files.onnx, out, level=level, test=samples["test"])))
    return found


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: accuracies, within two standard errors."""
    found: dict[str, Spread | str] = {}
    for row in rows:
        if "accuracy" in row:
            width = 2 * sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["images"])
            spread = Spread(row["accuracy"], row["accuracy"] - width, row["accuracy"] + width, 1)
            found.setdefault(f"{row['network']}, {row['level']}, {row['tool']}", spread)
    return found


def section(rows: list[Row]) -> list[str]:
    """A table for each network: a line for each way of pruning, a column for each level."""
    lines = [HOW, ""]
    for network in unique(rows, "network"):
        mine = [row for row in rows if row["network"] == network]
        whole = values(mine, "accuracy", tool=ORIGINAL)
        if not whole:
            lines += [f"### {network}", "", f"failed: `{error(mine, tool=ORIGINAL)}`", ""]
            continue
        images = mine[0]["images"]
        deviation = sqrt(whole[0] * (1 - whole[0]) / images)
        share = f"{whole[0]:.2%} on {images} test images, standard error {100 * deviation:.1f} points"
        levels = [level for level in unique(mine, "level") if level < 1]
        names = [name for name in unique(mine, "tool") if name != ORIGINAL]
        best = {level: max(values(mine, "accuracy", level=level), default=0.0) for level in levels}
        body = [[name, *(_cell(mine, name, level, best[level]) for level in levels)] for name in names]
        lines += [f"### {network}", "", f"The original: {share}. In brackets the share of MACs that was reached.", ""]
        lines += [*table(["", *(f"MACs {level}" for level in levels)], body), ""]
    return lines


def _cell(rows: list[Row], name: str, level: float, best: float) -> str:
    found = values(rows, "accuracy", tool=name, level=level)
    if not found:
        return f"failed: `{error(rows, tool=name, level=level)}`" if error(rows, tool=name, level=level) else "-"
    spread, macs = Spread.of(100 * each for each in found), values(rows, "macs", tool=name, level=level)
    text = f"{spread.text(2)} % [{macs[0]:.3f}]"
    return f"**{text}**" if max(found) == best else text


def plot(rows: list[Row], axes: Any) -> None:
    """Accuracy against level on the first network, the best of the peers' criteria among them."""
    network = unique(rows, "network")[0]
    mine = [row for row in rows if row["network"] == network and "accuracy" in row]
    for name in (each for each in unique(mine, "tool") if each != ORIGINAL):
        points = [
            (level, Spread.of(values(mine, "accuracy", tool=name, level=level)).median)
            for level in unique(mine, "level")
            if values(mine, "accuracy", tool=name, level=level)
        ]
        axes.plot(
            *zip(*points, strict=True),
            marker="o" if name.startswith("graphprune") else ".",
            linewidth=2 if name.startswith("graphprune") else 0.8,
            label=name,
        )
    axes.axhline(values(mine, "accuracy", tool=ORIGINAL)[0], color="gray", linewidth=0.8)
    axes.set(xlabel="share of multiply-accumulates", ylabel=f"accuracy, {network}")
    axes.legend(fontsize=7)
