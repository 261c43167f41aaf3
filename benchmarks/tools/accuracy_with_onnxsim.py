"""Accuracy of a network after onnxsim.pruning, without fine-tuning.  Start reading at `work`.

Options: `level` (share of MACs) and `test` (file).
"""

from __future__ import annotations

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """The smallest sparsity that gets below the level, by bisection; then classify the test images."""
    import numpy as np
    import onnx
    from onnxsim.pruning import apply_structured_pruning

    from graphprune.cost import CostModel
    from graphprune.evaluation import accuracy
    from graphprune.pipeline import analyze

    def macs(model: onnx.ModelProto) -> int:
        return int(CostModel(analyze(model)).original.macs)

    original = onnx.load(tool.model)
    whole, found = macs(original), None
    low, high = 0.0, 0.98
    for _ in range(9):
        sparsity = (low + high) / 2
        pruned = apply_structured_pruning(original, sparsity=sparsity, importance_norm="l1")
        share = macs(pruned) / whole
        if share <= tool.options["level"]:
            found, high = (pruned, share), sparsity
        else:
            low = sparsity
    if found is None:
        raise ValueError(f"does not reach {tool.options['level']} of the MACs: {share:.3f} are left at a sparsity of {high}")
    test = dict(np.load(tool.options["test"]))
    test["image"] = test["image"].astype(np.float32)
    tool.facts |= {"macs": found[1], "accuracy": accuracy(found[0], test)}


if __name__ == "__main__":
    main(work)
