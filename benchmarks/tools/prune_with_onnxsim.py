"""onnxsim.pruning: read, prune, write, and run the result.  Options: `keep`, the share of channels.  Start reading at `work`."""

from __future__ import annotations

from math import prod
from pathlib import Path

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Prune an ONNX file by the L1 norm; the result must be valid, run, and give an output of the same shape."""
    with tool.phase("import"):
        import onnx
        from onnxsim.pruning import apply_structured_pruning
    with tool.phase("load"):
        model = onnx.load(tool.model)
    with tool.phase("prune"):
        pruned = apply_structured_pruning(model, sparsity=1 - tool.options["keep"], importance_norm="l1")
    with tool.phase("save"):
        onnx.save(pruned, tool.output)
    tool.facts["params"] = _params(pruned) / max(1, _params(model))
    if tool.options.get("check", True):
        before, after = _shapes(tool.model), _shapes(tool.output)
        if before != after:
            raise ValueError(f"the outputs had the shapes {before}, and have {after}")


def _params(model: object) -> int:
    return sum(prod(each.dims) for each in model.graph.initializer if each.data_type != 7)  # type: ignore[attr-defined]


def _shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of the outputs on random inputs."""
    import onnx

    from graphprune.graph import Graph
    from graphprune.runtime import random_inputs, run

    model = onnx.load(path)
    return [tuple(value.shape) for value in run(model, random_inputs(Graph(model))).values()]


if __name__ == "__main__":
    main(work)
