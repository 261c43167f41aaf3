"""Accuracy of a network after Torch-Pruning, without fine-tuning.  Start reading at `work`.

Options: `level` (share of MACs), `criterion`, `calibration` and `test` (files), `code` (folders with the classes of the module),
`seed`.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from tools.protocol import Tool, main

NEARBY = 4

CRITERIA: dict[str, Any] = {
    "L1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "L2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "Taylor": torch_pruning.importance.GroupTaylorImportance,
    "LAMP": torch_pruning.importance.LAMPImportance,
    "BN": torch_pruning.importance.BNScaleImportance,
    "random": torch_pruning.importance.RandomImportance,
}


def work(tool: Tool) -> None:
    """Prune by a global ranking, classify; then again with BatchNormalization statistics of the calibration images."""
    import classifiers

    classifiers.torchvision()
    sys.path += tool.options["code"]
    from train_classifiers import accuracy, reestimated

    model, _ = torch.load(tool.model, weights_only=False)
    model.eval()
    x, y = samples(tool.options["calibration"])
    test, answers = samples(tool.options["test"])
    torch.manual_seed(tool.options.get("seed", 0))
    smaller, share = smallest(model, tool.options["criterion"], tool.options["level"], x, y)
    tool.facts |= {"macs": share, "accuracy": accuracy(smaller, test, answers)}
    tool.facts["accuracy_reestimated"] = accuracy(reestimated(smaller, x), test, answers)


def samples(path: str) -> tuple[Tensor, Tensor]:
    """Images and labels; labels are empty where there are none."""
    with np.load(path) as arrays:
        labels = torch.from_numpy(arrays["labels"].astype(np.int64)) if "labels" in arrays else torch.empty(0)
        return torch.from_numpy(arrays["image"]).float(), labels


def smallest(model: nn.Module, criterion: str, level: float, x: Tensor, y: Tensor) -> tuple[nn.Module, float]:
    """The network at most at this share of the MACs: the smallest global pruning ratio that gets there, by bisection."""
    low, high, found = 0.0, 0.98, None
    for _ in range(9):
        ratio = (low + high) / 2
        candidate, share = nearby(model, criterion, ratio, x, y)
        if share <= level:
            found, high = (candidate, share), ratio
        else:
            low = ratio
    if found is None:
        raise ValueError(f"does not reach {level} of the MACs: {share:.3f} are left at a ratio of {high}")
    return found


def nearby(model: nn.Module, criterion: str, ratio: float, x: Tensor, y: Tensor) -> tuple[nn.Module, float]:
    """As `pruned`, at the first of four ratios, 0.01 apart, that does not crash; raises what the last one raised."""
    for step in range(NEARBY):
        try:
            return pruned(model, criterion, ratio + 0.01 * step, x, y)
        except Exception:
            if step == NEARBY - 1:
                raise
    raise AssertionError


def pruned(model: nn.Module, criterion: str, ratio: float, x: Tensor, y: Tensor) -> tuple[nn.Module, float]:
    """The network at this global pruning ratio, and its share of the MACs; raises whatever Torch-Pruning or the network raise."""
    candidate, example = copy.deepcopy(model), x[:1]
    whole, _ = torch_pruning.utils.count_ops_and_params(candidate, example)
    ignored = [module for module in candidate.modules() if isinstance(module, nn.Linear) and module.out_features == 10]
    pruner = torch_pruning.pruner.BasePruner(
        candidate, example, importance=CRITERIA[criterion](), global_pruning=True, pruning_ratio=ratio, ignored_layers=ignored
    )
    if criterion == "Taylor":
        outputs = candidate(x[:512])
        F.cross_entropy(outputs, y[:512] if len(y) else outputs.argmax(1)).backward()
    pruner.step()
    return candidate, torch_pruning.utils.count_ops_and_params(candidate, example)[0] / whole


if __name__ == "__main__":
    main(work)
