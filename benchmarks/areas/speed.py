"""Whether a result is ever slower than its original, over many networks, targets and batches.  Start reading at `measure`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from children import run, tool
from page_tables import table
from results import Row, Spread, unique
from settings import Settings, Size, announce

from areas.latency import LIMIT, SLOWER, timed

TITLE = "Never slower"

NETWORKS: dict[Size, list[str]] = {
    "quick": ["mobilenet_v2"],
    "default": ["resnet18", "mobilenet_v2", "densenet121"],
    "full": [
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "densenet121",
        "squeezenet1_1",
        "googlenet",
        "inception_v3",
        "shufflenet_v2_x1_0",
        "mnasnet1_0",
        "regnet_x_400mf",
        "regnet_y_400mf",
        "resnext50_32x4d",
        "convnext_tiny",
        "vgg11_bn",
    ],
}
TARGETS: dict[Size, list[str]] = {"quick": ["channels=0.75"], "default": ["channels=0.9", "macs=0.5"]}
TARGETS["full"] = ["channels=0.95", "channels=0.9", "channels=0.75", "channels=0.5", "macs=0.5"]
BATCHES: dict[Size, list[int]] = {"quick": [1], "default": [1, 8], "full": [1, 8]}
REPEATS = 3

OWN, PEER = "graphprune", "Torch-Pruning"

HOW = """Default options but for the target: every layer keeps the stated share of its channels by the L1 norm (`channels`), or
as much as leaves the stated share of the multiply-accumulates (`macs`). A cell has the time of graphprune's result
over the original's, then that of Torch-Pruning with at most the same multiply-accumulates (the widest share of
channels that has no more of them, found by bisection). ONNX Runtime, one thread, exported by torch's old exporter,
which leaves the batch open; the three networks take turns within one process, and each core has such a process; 10th
percentiles of 15 samples, the median of three repeats with new sessions. **Bold** is slower than 1.02 times the
original, in a second process, too: what a process is unlucky with lasts as long as it does. Files of `--data` are what
their authors exported: there is no torch module of them to prune."""


def measure(settings: Settings) -> list[Row]:
    """A row for each network, target, batch and tool: `ratios`, one a repeat, `original_ms` likewise, and `macs`."""
    rows: list[Row] = []
    networks = list(_networks(settings, rows))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for found in pool.map(lambda each: _of_network(settings, *each), networks):
            rows += found
    return rows


def _of_network(settings: Settings, name: str, original: Path, module: Path | None) -> list[Row]:
    batches = [batch for batch in settings.pick(BATCHES) if batch == 1 or _takes_batches(original)]
    found: list[Row] = []
    for target in settings.pick(TARGETS):
        print(f"    {name} {target}", file=sys.stderr, flush=True)
        found += [{"network": name, "target": target, **row} for row in measured(settings, target, original, module, batches)]
    return found


def _networks(settings: Settings, rows: list[Row]) -> Iterator[tuple[str, Path, Path | None]]:
    """Names, ONNX files and torch modules: torchvision's, and with --full those of `--data`, which have no module."""
    for name, files in settings.exported(NETWORKS, rows, "legacy"):
        yield name, files.onnx, files.module
    paths = sorted((settings.data / "onnx").glob("*.onnx")) if settings.data and settings.size == "full" else []
    for path in paths:
        announce([each.stem for each in paths], path.stem)
        yield path.stem, path, None


def measured(settings: Settings, target: str, original: Path, module: Path | None, batches: list[int]) -> list[Row]:
    """The rows of one network and target."""
    with settings.scratch() as scratch:
        made, rows = pruned(original, module, Path(scratch), target)
        for batch in batches if made else ():
            rows += [{"batch": batch, **row} for row in _confirmed(partial(timed, original, made, 1, REPEATS, batch))]
    return rows


def _confirmed(measured: Callable[[], list[Row]]) -> list[Row]:
    """The rows of one measurement; where any is slower than its original, each tool's better one of two."""
    rows = measured()
    if all(_median(row) <= SLOWER for row in rows):
        return rows
    again = measured()
    return [min(pair, key=_median) for pair in zip(rows, again, strict=True)] if len(again) == len(rows) else rows


def _median(row: Row) -> float:
    return Spread.of(row["ratios"]).median if "ratios" in row else 0.0


def pruned(original: Path, module: Path | None, folder: Path, target: str) -> tuple[dict[str, Path], list[Row]]:
    """The results that there are, and a row for each failure; without graphprune's there is nothing to compare with."""
    own = run(
        tool(
            "prune_with_graphprune", original, folder / "own.onnx", targets=[target], selection="uniform", importance="magnitude"
        ),
        LIMIT,
    )
    if "error" in own:
        return {}, [_failure(OWN, own["error"])]
    made = {OWN: folder / "own.onnx"}
    if module is None:
        return made, []
    peer = run(
        tool("prune_with_torch_pruning", module, folder / "peer.onnx", openmp=1, macs=own["macs"], export="legacy"),
        LIMIT,
    )
    if "error" in peer:
        return made, [_failure(PEER, peer["error"])]
    return {**made, PEER: folder / "peer.onnx"}, []


def _failure(name: str, text: str) -> Row:
    print(f"    {name}: {text}", file=sys.stderr)
    return {"tool": name, "error": text}


def _takes_batches(path: Path) -> bool:
    model = onnx.load(path, load_external_data=False)
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    return all(each.type.tensor_type.shape.dim and not each.type.tensor_type.shape.dim[0].dim_value for each in inputs)


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: the ratios."""
    return {
        f"{row['network']}, {row['target']}, batch {row['batch']}, {row['tool']}": Spread.of(row["ratios"])
        for row in rows
        if "ratios" in row
    }


def section(rows: list[Row]) -> list[str]:
    """A table for each batch; then what is worst, and what failed."""
    lines = [HOW, ""]
    targets = unique(rows, "target")
    for batch in unique(rows, "batch"):
        of = {(row["network"], row["target"], row["tool"]): row for row in rows if row.get("batch") == batch and "ratios" in row}
        networks = list(dict.fromkeys(network for network, _, _ in of))
        body = [[network, *(_cell(of, network, target) for target in targets)] for network in networks]
        for name, figure in (("**median**", np.median), ("**largest**", max)):
            body.append([name, *(_all(figure, of, target) for target in targets)])
        lines += [f"Batch {batch}:", "", *table(["network", *(f"`{target}`" for target in targets)], body), ""]
    spreads = [Spread.of(row["ratios"]) for row in rows if "ratios" in row]
    if spreads:
        widest = np.median([(each.high - each.low) / each.median for each in spreads])
        lines += [f"Between the repeats of a ratio lie {widest:.1%} in the median.", ""]
    failed = dict.fromkeys((row["network"], row["tool"], row["error"]) for row in rows if "error" in row)
    if failed:
        lines += [*table(["network", "tool", "failed"], [[a, b, f"`{c}`"] for a, b, c in failed]), ""]
    return lines


def _cell(of: dict[tuple[str, str, str], Row], network: str, target: str) -> str:
    found = [of.get((network, target, name)) for name in (OWN, PEER)]
    return ", ".join(_text(Spread.of(row["ratios"]).median) if row else "-" for row in found)


def _text(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio > SLOWER else f"{ratio:.2f}"


def _all(figure: Any, of: dict[tuple[str, str, str], Row], target: str) -> str:
    cells = []
    for name in (OWN, PEER):
        ratios = [
            Spread.of(row["ratios"]).median for (_, mine, tool_name), row in of.items() if (mine, tool_name) == (target, name)
        ]
        cells.append(f"{_text(figure(ratios))} of {len(ratios)}" if ratios else "-")
    return ", ".join(cells)


def plot(rows: list[Row], axes: Any) -> None:
    """Ratio of time against the share of MACs."""
    for name, marker in ((OWN, "o"), (PEER, "s")):
        mine = [row for row in rows if row.get("tool") == name and "ratios" in row]
        axes.scatter(
            [row["macs"] for row in mine], [Spread.of(row["ratios"]).median for row in mine], marker=marker, label=name, s=12
        )
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set(xlabel="share of multiply-accumulates", ylabel="time relative to the original")
    axes.legend()
