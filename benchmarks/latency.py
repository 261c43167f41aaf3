"""Is the result faster: ONNX Runtime's time of pruned networks relative to the originals, measured in turns.

    python benchmarks/latency.py [--targets channels=0.95 macs=0.5 ...] [--batch 1 8] [--json FILE] MODEL.onnx ...

One line for each network, target and batch; SLOWER marks a result above 1.02 times the original.  Start reading at `main`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import graphprune
from graphprune import bench
from graphprune.branches import with_branches
from graphprune.errors import GraphpruneError
from graphprune.graph import Graph

SLOWER = 1.02


@dataclass(frozen=True)
class Row:
    """One comparison: the 10th percentiles of both, and the spread of the ratio between their 10th and 90th."""

    model: str
    target: str
    batch: int
    original_ms: float
    ratio: float
    median_ratio: float
    macs: float
    """Kept share of the MACs."""


def rows(path: Path, targets: list[str], batches: list[int], options: dict[str, str]) -> list[Row]:
    """The comparisons of one network."""
    graph = graphprune.load(path)
    found = []
    for target in targets:
        try:
            result = graphprune.prune(graph, targets=[target], verify=False, **options)
        except GraphpruneError as error:
            print(f"{path.stem:32} {target:16} {error}")
            continue
        for batch in batches if _is_dynamic(graph) else batches[:1]:
            before, after = bench.measure([with_branches(graph.model), result.model], 1, batch, rounds=15)
            share = result.after.macs / max(1, result.before.macs)
            ratio = after.p10_ms / before.p10_ms
            found.append(Row(path.stem, target, batch, before.p10_ms, ratio, after.median_ms / before.median_ms, share))
            mark = "SLOWER" if ratio > SLOWER else ""
            print(
                f"{path.stem:32} {target:16} batch {batch} {ratio:.3f} of {before.p10_ms:.2f} ms, {share:.3f} MACs {mark}",
                flush=True,
            )
    return found


def _is_dynamic(graph: Graph) -> bool:
    return any(not isinstance(dim, int) for value in graph.inputs for dim in graph.shape(value.name) or ())


def main() -> None:
    """Measure, print, summarise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument(
        "--targets", nargs="+", default=["channels=0.95", "channels=0.9", "channels=0.75", "channels=0.5", "macs=0.5"]
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--mode", default="coupled")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[Row] = []
    for path in arguments.models:
        try:
            found += rows(path, arguments.targets, arguments.batch, {"mode": arguments.mode})
        except GraphpruneError as error:
            print(f"{path.stem:32} {error}")
    for target in arguments.targets:
        ratios = [row.ratio for row in found if row.target == target]
        if ratios:
            slower = sum(ratio > SLOWER for ratio in ratios)
            print(f"{target:16} median {median(ratios):.3f}, largest {max(ratios):.3f}, {slower} of {len(ratios)} slower")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
