"""Time of `graphprune prune` as a whole process against Torch-Pruning's build and step, in one run.

    python benchmarks/speed.py [NAME...]          (default: resnet50 densenet121)

Torch-Pruning's time leaves out Python's start, imports and the construction of the model; graphprune's is the whole process,
reading and writing files included, without the proof.  Needs torch, torchvision and torch-pruning.  Start reading at `main`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import classifiers
import torch
import torch_pruning

ROUNDS = 5


def torch_pruning_seconds(name: str) -> float:
    """Build the dependency graph and prune every layer to half of its channels by L1."""
    model, image = classifiers.build(name)
    kept = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1000]
    start = time.perf_counter()
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    pruner = torch_pruning.pruner.MagnitudePruner(model, image, importance=importance, pruning_ratio=0.5, ignored_layers=kept)
    pruner.step()
    return time.perf_counter() - start


def graphprune_seconds(path: Path, output: Path) -> float:
    """The whole process, from the shell's point of view."""
    command = [sys.executable, "-m", "graphprune.cli", "prune", str(path), "-o", str(output)]
    options = ["--target", "channels=0.5", "--selection", "uniform", "--no-verify"]
    start = time.perf_counter()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Alternate the two and print the minima."""
    for name in sys.argv[1:] or ["resnet50", "densenet121"]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.onnx"
            classifiers.export(name, path, dynamo=True)
            peer, own = [], []
            for _ in range(ROUNDS):
                peer.append(torch_pruning_seconds(name))
                own.append(graphprune_seconds(path, Path(folder) / "pruned.onnx"))
        print(f"{name}: Torch-Pruning {min(peer):.2f} s, graphprune {min(own):.2f} s, ratio {min(peer) / min(own):.2f}")


if __name__ == "__main__":
    main()
