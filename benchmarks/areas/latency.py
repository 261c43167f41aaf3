"""Latency of the results in ONNX Runtime.  Start reading at `measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from children import Command, run, tool
from page_tables import table
from results import Row, Spread, unique
from settings import Settings, Size

TITLE = "Latency of the result"

NETWORKS: dict[Size, list[str]] = {
    "quick": ["mobilenet_v2"],
    "default": ["resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121"],
}
NETWORKS["full"] = [
    *NETWORKS["default"],
    "resnet18",
    "vit_b_16",
    "googlenet",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "efficientnet_v2_s",
]
REPEATS: dict[Size, int] = {"quick": 3, "default": 5, "full": 9}
THREADS: dict[Size, list[int]] = {"quick": [1], "default": [1], "full": [1, 2]}
KEEP: dict[Size, list[float]] = {"quick": [0.7], "default": [0.7], "full": [0.95, 0.9, 0.75, 0.5]}
SLOWER = 1.02
LIMIT = 600
TIMING = 900

TOOLS = (
    "graphprune",
    "graphprune, `--align 1`",
    "Torch-Pruning",
    "Torch-Pruning, `round_to=16`",
    "Torch-Pruning, MACs as graphprune",
    "onnxsim",
)
OWN, UNALIGNED, PEER, ROUNDED, SAME_MACS, ONNXSIM = TOOLS

HOW = """Every layer keeps the stated share of its channels by the L1 norm; the results run in ONNX Runtime with batch 1, all
of one network in turns within one process. Torch-Pruning's result is exported by torch.onnx (dynamo), as the original
was. The ratio is the time of the result to the time of the original, both as 10th percentiles of 15 samples of at
least 20 ms; figures are the median over repeats, each with new sessions, with the smallest and the largest. The
second figure is the share of multiply-accumulates that is left, which differs with what a tool reaches and how it
rounds; *MACs as graphprune* asks Torch-Pruning for the largest share of channels that has no more of them. **slower**
marks a median above 1.02. apple-upscale writes torch modules with a copy in front of each layer and is compared in
[ordering](#ordering)."""


def measure(settings: Settings) -> list[Row]:
    """A row for each network, share, number of threads and tool: `ratios`, one a repeat, `original_ms` likewise, and `macs`."""
    rows: list[Row] = []
    for name, files in settings.exported(NETWORKS, rows):
        for keep in settings.pick(KEEP):
            with settings.scratch() as scratch:
                made, failed = pruned(files.onnx, files.module, Path(scratch), keep)
                for threads in settings.pick(THREADS):
                    found = [*timed(files.onnx, made, threads, settings.pick(REPEATS)), *failed]
                    rows += [{"network": name, "keep": keep, "threads": threads, **row} for row in found]
    return rows


def command(name: str, onnx: Path, module: Path, path: Path, keep: float, macs: float | None) -> Command:
    """How a tool writes its result; `macs` is the share that graphprune left."""
    own: dict[str, Any] = {"targets": [f"channels={keep}"], "selection": "uniform", "importance": "magnitude"}
    peer: dict[str, Any] = {"openmp": 1, "export": "dynamo"}
    peer |= {"macs": macs} if name == SAME_MACS and macs is not None else {"keep": keep}
    if name in (OWN, UNALIGNED):
        return tool("prune_with_graphprune", onnx, path, **own, **({"align": 1} if name == UNALIGNED else {}))
    if name == ONNXSIM:
        return tool("prune_with_onnxsim", onnx, path, keep=keep)
    return tool("prune_with_torch_pruning", module, path, **peer, **({"round_to": 16} if name == ROUNDED else {}))


def pruned(onnx: Path, module: Path, folder: Path, keep: float) -> tuple[dict[str, Path], list[Row]]:
    """The results that there are, and a row for each failure."""
    made: dict[str, Path] = {}
    failed: list[Row] = []
    macs: float | None = None
    for number, name in enumerate(TOOLS):
        path = folder / f"{number}.onnx"
        row = run(command(name, onnx, module, path, keep, macs), LIMIT)
        macs = row.get("macs") if name == OWN else macs
        if "error" in row:
            failed.append({"tool": name, "error": row["error"]})
            print(f"    {name}: {row['error']}", file=sys.stderr)
        else:
            made[name] = path
    return made, failed


def timed(onnx: Path, made: dict[str, Path], threads: int, repeats: int, batch: int = 1) -> list[Row]:
    """A row for each result."""
    options: dict[str, Any] = {
        "models": [str(path) for path in made.values()],
        "repeats": repeats,
        "rounds": 15,
        "threads": threads,
        "batch": batch,
    }
    found = run(tool("time_models", onnx, onnx, **options), TIMING)
    if "error" in found:
        return [{"tool": "ONNX Runtime", "error": found["error"]}]
    rows = []
    for k, name in enumerate(made, start=1):
        originals = [repeat[0]["p10_ms"] for repeat in found["repeats"]]
        ratios = [repeat[k]["p10_ms"] / repeat[0]["p10_ms"] for repeat in found["repeats"]]
        rows.append({"tool": name, "original_ms": originals, "ratios": ratios, "macs": found["macs"][k]})
    return rows


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: the ratios."""
    timed_rows = [row for row in rows if "ratios" in row]
    return {f"{row['network']}, {row['keep']}, {row['threads']}, {row['tool']}": Spread.of(row["ratios"]) for row in timed_rows}


def section(rows: list[Row]) -> list[str]:
    """A table for each share of channels and number of threads."""
    tools, lines = list(TOOLS), [HOW, ""]
    for keep, threads in dict.fromkeys((row["keep"], row["threads"]) for row in rows if "keep" in row):
        mine = [row for row in rows if (row.get("keep"), row.get("threads")) == (keep, threads)]
        body = []
        for network in unique(mine, "network"):
            of = {row["tool"]: row for row in mine if row["network"] == network}
            original = next((Spread.of(row["original_ms"]).text(2, " ms") for row in of.values() if "original_ms" in row), "-")
            body.append([network, original, *(_cell(of.get(name)) for name in tools)])
        middle = [_middle([row for row in mine if row["tool"] == name and "ratios" in row]) for name in tools]
        lines += [f"{keep:.0%} of the channels, {threads} thread{'s' if threads > 1 else ''}:", ""]
        lines += [*table(["network", "original", *tools], [*body, ["**median**", "", *middle]]), ""]
    return lines


def _cell(row: Row | None) -> str:
    if row is None or "error" in row:
        return f"failed: `{row['error']}`" if row else "-"
    spread = Spread.of(row["ratios"])
    return f"{spread.text(2)}{' **slower**' if spread.median > SLOWER else ''}, {row['macs']:.2f} MACs"


def _middle(rows: list[Row]) -> str:
    if not rows:
        return "-"
    return f"**{Spread.of(Spread.of(row['ratios']).median for row in rows).median:.2f}** of {len(rows)}"


def plot(rows: list[Row], axes: Any) -> None:
    """Ratio of time against the share of MACs, one thread."""
    for name, marker in zip(TOOLS, "o.sD^x", strict=True):
        mine = [row for row in rows if row["tool"] == name and "ratios" in row and row["threads"] == 1]
        if mine:
            axes.scatter(
                [row["macs"] for row in mine],
                [Spread.of(row["ratios"]).median for row in mine],
                marker=marker,
                label=name.replace("`", ""),
            )
    axes.axline((0, 0), (1, 1), color="gray", linewidth=0.8)
    axes.set(xlabel="share of multiply-accumulates", ylabel="time relative to the original")
    axes.legend()
