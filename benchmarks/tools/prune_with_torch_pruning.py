"""Torch-Pruning: read a torch module, prune it, write it.  Start reading at `work`.

Options: `keep` (the share of channels), `export` (write ONNX rather than the module), and those of `BasePruner`.
"""

from __future__ import annotations

from typing import Any

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Prune every layer by L1 but the classifier, as the project's README does it; the result must run."""
    with tool.phase("import"):
        import classifiers
        import torch
        import torch_pruning

        classifiers.torchvision()
    with tool.phase("load"):
        model, inputs = torch.load(tool.model, weights_only=False)
    options = dict(tool.options)
    keep, export = options.pop("keep"), options.pop("export", False)
    before = sum(each.numel() for each in model.parameters())
    ignored = [each for each in model.modules() if 1000 in (getattr(each, "out_features", 0), getattr(each, "out_channels", 0))]
    with tool.phase("build"):
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
        pruner = torch_pruning.pruner.BasePruner(
            model, inputs, importance=importance, pruning_ratio=1 - keep, ignored_layers=ignored, **options
        )
    with tool.phase("step"):
        pruner.step()
    with tool.phase("save"):
        write(model, inputs, tool.output) if export else torch.save(model, tool.output)
    tool.facts |= {"params": sum(each.numel() for each in model.parameters()) / before, "threads": torch.get_num_threads()}
    with torch.inference_mode():
        shape = tuple(model(*inputs).shape)
    if shape != (1, 1000):
        raise ValueError(f"the output had the shape (1, 1000), and has {shape}")


def write(model: Any, inputs: tuple[Any, ...], path: Any) -> None:
    """Write ONNX by torch's exporter."""
    import torch

    torch.onnx.export(model, inputs, path, dynamo=True, verbose=False, external_data=False, input_names=["image"])


if __name__ == "__main__":
    main(work)
