"""apple-upscale: zero input channels by L1, export without them, count the copies.  Start reading at `work`.

Options: `keep` (the share of input channels of every convolution), `reorder`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Mask, prune, compare with the masked network.

    The masks are ours, because upscale's MaskingManager calls `.cuda()`: as there, every convolution but those that read the
    image or are depthwise loses the input channels of the smallest norm.
    """
    with tool.phase("import"):
        import classifiers
        import torch
        from upscale import PruningManager
        from upscale.pruning.pruner import Subselect

        classifiers.torchvision()
    with tool.phase("load"):
        model, inputs = torch.load(tool.model, weights_only=False)
    before = sum(each.numel() for each in model.parameters())
    mask(model, tool.options["keep"])
    masked = copy.deepcopy(model)
    reorder = tool.options.get("reorder", True)
    with tool.phase("prune"):
        manager = PruningManager(model).compute(list(inputs), reorder_producer=reorder, reorder_consumer=reorder)
        manager.prune()
    taken = [each.indices for each in model.modules() if isinstance(each, Subselect)]
    tool.facts |= {
        "params": sum(each.numel() for each in model.parameters()) / before,
        "gathers": sum(not isinstance(each, range) and list(each) != list(range(each[0], each[-1] + 1)) for each in taken),
    }
    tool.facts["slices"] = len(taken) - tool.facts["gathers"]
    with torch.inference_mode():
        wanted, found = masked(*inputs), model(*inputs)
    tool.facts["error_of_output"] = float((wanted - found).abs().max() / wanted.abs().max())
    if not tool.facts["error_of_output"] < 1e-3:
        raise ValueError(f"the output differs from the masked network's by {tool.facts['error_of_output']:.1e} of its scale")


def mask(model: Any, keep: float) -> None:
    """Zero the input channels with the smallest L1 norm."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, torch.nn.Conv2d) or module.in_channels in (3, module.groups):
                continue
            width = module.weight.shape[1]
            norms = module.weight.abs().sum(dim=(0, 2, 3))
            module.weight[:, norms.argsort()[: width - math.floor(keep * width)]] = 0


if __name__ == "__main__":
    main(work)
