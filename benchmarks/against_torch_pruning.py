"""Accuracy without training, side by side with Torch-Pruning, on the networks of `train_classifiers.py`.

    python benchmarks/against_torch_pruning.py DATA.npz FOLDER [--levels 0.9,0.7,0.5,0.3] [--samples 2000]
        [--recipe balanced] [--networks resnet18,mobilenet_v2]

For each level of MACs: Torch-Pruning's L1, L2, Taylor, LAMP and BN-scale criteria (global ranking), as they are and after
re-estimation of the BatchNormalization statistics on the calibration images; graphprune on the exported ONNX file with the same
calibration images.  Taylor gets their labels, nothing else does.  No fine-tuning.  Start reading at
`main`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F
from train_classifiers import NAMES, accuracy, build, images, reestimated

import graphprune
from graphprune.evaluation import accuracy as onnx_accuracy

CALIBRATION = 2048
PEERS: dict[str, Callable[[], Any]] = {
    "L1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "L2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "Taylor": torch_pruning.importance.GroupTaylorImportance,
    "LAMP": torch_pruning.importance.LAMPImportance,
    "BN": torch_pruning.importance.BNScaleImportance,
}


def peer_pruned(model: nn.Module, name: str, level: float, x: Tensor, y: Tensor) -> tuple[nn.Module, float]:
    """The network at most at this share of the MACs: the smallest global pruning ratio that gets there, by bisection."""
    example = x[:1]
    whole, _ = torch_pruning.utils.count_ops_and_params(model, example)
    low, high, found = 0.0, 0.98, None
    for _ in range(9):
        ratio = (low + high) / 2
        candidate = copy.deepcopy(model)
        ignored = [module for module in candidate.modules() if isinstance(module, nn.Linear) and module.out_features == 10]
        pruner = torch_pruning.pruner.BasePruner(
            candidate, example, importance=PEERS[name](), global_pruning=True, pruning_ratio=ratio, ignored_layers=ignored
        )
        if name == "Taylor":
            candidate.zero_grad()
            F.cross_entropy(candidate(x[:512]), y[:512]).backward()
        pruner.step()
        share = torch_pruning.utils.count_ops_and_params(candidate, example)[0] / whole
        if share <= level:
            found, high = (candidate, share), ratio
        else:
            low = ratio
    if found is None:
        raise RuntimeError(f"{name} does not reach {level}")
    return found


def ours(path: Path, level: float, calibration: np.ndarray, recipe: str) -> tuple[Any, float]:
    """The pruned ONNX model and its share of the MACs."""
    result = graphprune.prune(path, targets=f"macs={level}", calibration={"image": calibration}, recipe=recipe)
    return result.model, result.realised[0].fraction


def exported(model: nn.Module, path: Path) -> Path:
    """The network as ONNX, with a dynamic batch."""
    shapes = {"x": {0: torch.export.Dim("batch")}}
    example = (torch.zeros(2, 3, 28, 28),)
    torch.onnx.export(
        model,
        example,
        path,
        dynamo=True,
        input_names=["image"],
        dynamic_shapes=(shapes["x"],),
        verbose=False,
        external_data=False,
    )
    return path


def main() -> None:
    """Print a table for each network, and all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--levels", default="0.9,0.7,0.5,0.3")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--recipe", default="balanced")
    parser.add_argument("--networks", default=",".join(NAMES))
    arguments = parser.parse_args()
    data = np.load(arguments.data)
    labels = torch.from_numpy(data["y_train"].astype(np.int64))[:CALIBRATION]
    x = images(data["x_train"])[:CALIBRATION]
    test, answers = (
        images(data["x_test"])[: arguments.samples],
        torch.from_numpy(data["y_test"].astype(np.int64))[: arguments.samples],
    )
    samples = {"image": test.numpy(), "labels": answers.numpy()}
    figures: dict[str, Any] = {}
    for network in arguments.networks.split(","):
        model = build(network)
        model.load_state_dict(torch.load(arguments.folder / f"{network}.pt", weights_only=True))
        model.eval()
        path = exported(copy.deepcopy(model), arguments.folder / f"{network}.onnx")
        print(f"\n{network}: {accuracy(model, test, answers):.2%} on {arguments.samples} test images")
        for level in map(float, arguments.levels.split(",")):
            row: dict[str, tuple[float, float]] = {}
            pruned, share = ours(path, level, x.numpy(), arguments.recipe)
            row[f"graphprune {arguments.recipe}"] = share, onnx_accuracy(pruned, samples)
            for name in PEERS:
                try:
                    peer, share = peer_pruned(model, name, level, x, labels)
                except Exception as error:  # whatever the peer raises is a result, too
                    print(f"    {name} at {level}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
                    continue
                row[name] = share, accuracy(peer.eval(), test, answers)
                row[f"{name} + BN"] = share, accuracy(reestimated(peer, x), test, answers)
            figures[f"{network} {level}"] = row
            cells = ", ".join(f"{name} {value:.2%} ({share:.3f})" for name, (share, value) in row.items())
            print(f"  MACs {level}: {cells}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
