"""Ordering: copies that are left where every reader drops channels of its own.  Start reading at `measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from children import Command, run, tool
from page_tables import table
from results import Row, Spread, unique
from settings import Settings, Size

TITLE = "Ordering"

NETWORKS: dict[Size, list[str]] = {
    "quick": ["resnet18", "mobilenet_v2", "squeezenet1_1"],
    "default": [
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "squeezenet1_1",
        "densenet121",
        "googlenet",
        "resnext50_32x4d",
        "shufflenet_v2_x1_0",
    ],
}
NETWORKS["full"] = [*NETWORKS["default"], "resnet101", "efficientnet_b0", "regnet_y_400mf", "mnasnet1_0"]
KEEP = 0.7
LIMIT = 600

OWN, NESTED = "graphprune", "graphprune, nested masks"
PEER, PLAIN = "apple-upscale", "apple-upscale, not reordered"

HOW = """Every convolution drops the 30 % of its input channels with the smallest L1 norm, whatever the other readers of the
same value do; the classifier keeps all. What a reader needs must then be taken out of what is there: for nothing but
a view where it is a range (*ranges*), by a copy where it is not (*gathers*). graphprune runs with `--mode
unconstrained --importance magnitude --selection uniform --align 1 --target channels=0.7`, with the proof; *nested* is
`--masks nested`, where all readers of a value share one ranking. apple-upscale's masks are made by the benchmark in
the same way, because its own masking needs CUDA; its result is compared with the masked network. Neither counts
Gather and Slice that the network had before. Nothing here is random: the counts are the same in every run."""


def measure(settings: Settings) -> list[Row]:
    """A row for each network and tool."""
    rows: list[Row] = []
    for name, files in settings.exported(NETWORKS, rows):
        with settings.scratch() as scratch:
            for label, command in commands(files.onnx, files.module, Path(scratch) / "pruned.onnx").items():
                row = {"network": name, "tool": label, **run(command, LIMIT)}
                rows.append(row)
                if "error" in row:
                    print(f"    {label}: {row['error']}", file=sys.stderr)
    return rows


def commands(onnx: Path, module: Path, out: Path) -> dict[str, Command]:
    """What is compared."""
    options: dict[str, Any] = {
        "mode": "unconstrained",
        "importance": "magnitude",
        "selection": "uniform",
        "align": 1,
        "keep_gemms": True,
    }
    options["targets"] = [f"channels={KEEP}"]
    return {
        OWN: tool("prune_with_graphprune", onnx, out, masks="independent", **options),
        NESTED: tool("prune_with_graphprune", onnx, out, masks="nested", **options),
        PEER: tool("prune_with_upscale", module, out, keep=KEEP),
        PLAIN: tool("prune_with_upscale", module, out, keep=KEEP, reorder=False),
    }


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: the gathers that are left."""
    return {f"{row['network']}, {row['tool']}": "failed" if "error" in row else f"{row['gathers']} gathers" for row in rows}


def section(rows: list[Row]) -> list[str]:
    """Gathers and ranges for each network and tool."""
    tools = [OWN, PEER, PLAIN, NESTED]
    found = {(row["network"], row["tool"]): row for row in rows}

    def cell(network: str, name: str) -> str:
        row = found.get((network, name), {"error": "not run"})
        return f"failed: `{row['error']}`" if "error" in row else f"**{row['gathers']}** gathers, {row['slices']} ranges"

    body = [[network, *(cell(network, name) for name in tools)] for network in unique(rows, "network")]
    return [HOW, "", *table(["network", *tools], body), ""]


def plot(rows: list[Row], axes: Any) -> None:
    """Gathers by network and tool; nothing where a tool failed."""
    networks, tools = unique(rows, "network"), [OWN, PEER, PLAIN, NESTED]
    for k, name in enumerate(tools):
        bars = [
            (networks.index(row["network"]) + (k - 1.5) * 0.2, row["gathers"])
            for row in rows
            if row["tool"] == name and "gathers" in row and "error" not in row
        ]
        if bars:
            axes.bar(*zip(*bars, strict=True), 0.18, label=name)
    axes.set_xticks(range(len(networks)), networks, rotation=20)
    axes.set_ylabel("gathers left")
    axes.legend()
