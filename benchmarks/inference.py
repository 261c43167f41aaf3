"""Time of the dependency analysis alone (groups from a loaded, normalised graph).

    python benchmarks/inference.py MODEL.onnx...

Start reading at `main`.
"""

from __future__ import annotations

import sys
import time

import graphprune
from graphprune.inference import infer

ROUNDS = 7


def main() -> None:
    """Print the minimum and the median of several rounds for each model."""
    for path in sys.argv[1:]:
        graph = graphprune.load(path)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            analysis = infer(graph)
            seconds.append(time.perf_counter() - start)
        seconds.sort()
        sizes = f"{len(graph.nodes)} nodes, {len(analysis.groups)} groups"
        print(f"{path}: {sizes}, {seconds[0]:.3f} s ({seconds[ROUNDS // 2]:.3f} s)")


if __name__ == "__main__":
    main()
