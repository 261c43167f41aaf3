"""Torch-Pruning: read a torch module, prune it, write it.  Start reading at `work`.

Options: `keep` (the share of channels) or `macs` (the largest share of multiply-accumulates, reached by bisection), `export`
(write ONNX by this exporter of networks.py, rather than the module), and those of `BasePruner`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Prune every layer by L1 but the classifier, as the project's README does it; the result must run."""
    with tool.phase("import"):
        import classifiers
        import networks
        import torch
        import torch_pruning

        classifiers.torchvision()
    with tool.phase("load"):
        model, inputs = torch.load(tool.model, weights_only=False)
    options = dict(tool.options)
    keep, macs, export = options.pop("keep", None), options.pop("macs", None), options.pop("export", "")
    before = sum(each.numel() for each in model.parameters())

    def pruner_of(module: Any, share: float) -> Any:
        """Every layer but the classifier."""
        classes = [m for m in module.modules() if 1000 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
        return torch_pruning.pruner.BasePruner(
            module, inputs, importance=importance, pruning_ratio=1 - share, ignored_layers=classes, **options
        )

    def macs_at(share: float) -> float:
        module = copy.deepcopy(model)
        pruner_of(module, share).step()
        fit(module)
        return float(torch_pruning.utils.count_ops_and_params(module, inputs)[0])

    if keep is None:
        whole = float(torch_pruning.utils.count_ops_and_params(model, inputs)[0])
        keep = widest(lambda share: macs_at(share) / whole, macs)
    with tool.phase("build"):
        pruner = pruner_of(model, keep)
    with tool.phase("step"):
        pruner.step()
    fit(model)
    with tool.phase("save"):
        networks.export(model, inputs, tool.output, export) if export else torch.save(model, tool.output)
    tool.facts |= {"params": sum(each.numel() for each in model.parameters()) / before, "threads": torch.get_num_threads()}
    with torch.inference_mode():
        shape = tuple(model(*inputs).shape)
    if shape != (1, 1000):
        raise ValueError(f"the output had the shape (1, 1000), and has {shape}")


def fit(module: Any) -> None:
    """Set what Torch-Pruning leaves to its users, as its examples do: the width in the reshapes of vision transformers."""
    if hasattr(module, "hidden_dim"):
        module.hidden_dim = module.conv_proj.out_channels


def widest(macs_of: Callable[[float], float], limit: float) -> float:
    """The largest share of channels, by bisection, at which this share of the multiply-accumulates is not exceeded."""
    low, high = 0.02, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if macs_of(middle) <= limit else (low, middle)
    return low


if __name__ == "__main__":
    main(work)
