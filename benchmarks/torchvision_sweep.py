"""Prune every convolutional classifier of torchvision, from both exporters, at several ratios, and count what is proven.

    python benchmarks/torchvision_sweep.py [--ratios 0.9 0.7 0.5 0.3] [--folder DIR] [NAME...]

Exported files stay in the folder, so that a second run is quick.  Start reading at `main`.
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path

import graphprune
from graphprune.errors import GraphpruneError


def sweep(path: Path, ratios: list[float], normalization: str = "pin") -> list[str]:
    """One line a ratio: kept MACs and parameters, the proof; and the weights of Conv and Gemm without a free axis."""
    graph = graphprune.load(path)
    analysis = graphprune.analyze(graph, normalization=normalization)
    free = {member.tensor for group in analysis.groups for member in group.members}
    fixed = [
        f"{node.op_type} {name}"
        for node in graph.nodes
        for name in node.input[1:2]
        if node.op_type in ("Conv", "Gemm", "ConvTranspose") and name in graph.initializers and name not in free
    ]
    reached = sum(prod(graph.initializers[name].dims) for name in free)
    total = sum(prod(tensor.dims) for tensor in graph.initializers.values())
    lines = [f"{reached / total:.3f} of the parameters reached; Conv and Gemm weights out of reach: {fixed or 'none'}"]
    for ratio in ratios:
        try:
            result = graphprune.prune(graph, targets=[f"channels={ratio}"], normalization=normalization)
            before, after = result.before, result.after
            kept = f"channels {after.channels / before.channels:.4f} macs {after.macs / before.macs:.3f}"
            lines.append(f"{ratio}: {kept} params {after.params / before.params:.3f}; {result.proof}")
        except GraphpruneError as error:
            lines.append(f"{ratio}: FAILED {type(error).__name__}: {error}")
    return lines


def main() -> None:
    """Export what is missing, sweep, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.9, 0.7, 0.5, 0.3])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/graphprune-torchvision"))
    arguments = parser.parse_args()
    failed = proven = 0
    import classifiers

    for name in arguments.names or classifiers.names():
        for style in ("dynamo", "legacy"):
            path = arguments.folder / style / f"{name}.onnx"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                classifiers.export(name, path, dynamo=style == "dynamo")
            for line in sweep(path, arguments.ratios):
                print(f"{style} {name} {line}", flush=True)
                proven += "proof: equal" in line
                failed += "FAILED" in line
    print(f"{proven} proven, {failed} failed")


if __name__ == "__main__":
    main()
