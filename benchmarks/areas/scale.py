"""Scale: time and memory of the analysis when networks grow.  Start reading at `measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from children import GRAPHPRUNE, Command, in_turns
from page_tables import table
from results import Row, Spread, error, unique, values
from settings import Settings, Size
from trained import EXAMPLE

TITLE = "Scale"

LAYERS: dict[Size, list[int]] = {"quick": [12, 24, 48], "default": [12, 50, 200], "full": [12, 50, 200, 600, 1190]}
ROUNDS: dict[Size, int] = {"quick": 2, "default": 3, "full": 3}
LIMIT = 1800
TOOL = "graphprune analyze"

HOW = """A Llama-shaped network of hidden size 8192 (`benchmarks/llama.py`) whose weights are an empty file that nothing reads:
`graphprune analyze` as a whole process. None of the peers reads a file of that size. The exponent is the slope of the
line through the logarithms of nodes and seconds; 1 is linear. The start of Python and imports are left out: what
`analyze` takes for the small network in examples/ is taken off."""


def measure(settings: Settings) -> list[Row]:
    """A row for each size and round, sizes in turns; `layers` 0 is the small network in examples/: the start and little else."""
    layers = settings.pick(LAYERS)
    with settings.scratch() as scratch:
        nodes = {str(count): _write(count, Path(scratch) / f"llama{count}.onnx") for count in layers}
        commands = {count: Command([GRAPHPRUNE, "analyze", str(Path(scratch) / f"llama{count}.onnx")]) for count in nodes}
        rows = in_turns(
            {"0": Command([GRAPHPRUNE, "analyze", str(EXAMPLE / "model.onnx")]), **commands}, settings.pick(ROUNDS), LIMIT
        )
    return [{**row, "tool": TOOL, "layers": int(row["tool"]), "nodes": nodes.get(row["tool"], 0)} for row in rows]


def _write(layers: int, path: Path) -> int:
    from llama import llama

    return len(llama(layers, path).graph.node)


def exponent(rows: list[Row]) -> float:
    """Of time against nodes."""
    start = Spread.of(values(rows, "seconds", layers=0)).median
    points = [
        (n, Spread.of(values(rows, "seconds", nodes=n)).median - start)
        for n in unique(rows, "nodes")
        if n and values(rows, "seconds", nodes=n)
    ]
    if len(points) < 2:
        return float("nan")
    nodes, seconds = np.log(np.array(points)).T
    return float(np.polyfit(nodes, seconds, 1)[0])


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: the growth of time, each size relative to the smallest."""
    nodes = [each for each in unique(rows, "nodes") if each]
    series = {each: values(rows, "seconds", nodes=each) for each in nodes}
    first = series[nodes[0]]
    return {f"{n:,} nodes / {nodes[0]:,}": Spread.of_ratio(series[n], first) for n in nodes[1:] if series[n] and first}


def section(rows: list[Row]) -> list[str]:
    """The table, and the exponent."""
    body = []
    for layers in (each for each in unique(rows, "layers") if each):
        nodes = next(row["nodes"] for row in rows if row["layers"] == layers)
        seconds, peaks = (values(rows, key, layers=layers) for key in ("seconds", "peak_mib"))
        failed = f"failed: {error(rows, layers=layers)}"
        body.append(
            [
                str(layers),
                f"{nodes:,}",
                *((Spread.of(seconds).text(2, " s"), Spread.of(peaks).text(0, " MiB")) if seconds else (failed, "-")),
            ]
        )
    return [HOW, "", *table(["layers", "nodes", "time", "peak of memory"], body), "", f"Exponent: {exponent(rows):.2f}.", ""]


def plot(rows: list[Row], axes: Any) -> None:
    """Seconds against nodes."""
    nodes = [each for each in unique(rows, "nodes") if each and values(rows, "seconds", nodes=each)]
    spread = [Spread.of(values(rows, "seconds", nodes=each)) for each in nodes]
    axes.errorbar(
        nodes, [s.median for s in spread], [[s.median - s.low for s in spread], [s.high - s.median for s in spread]], marker="o"
    )
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="seconds")
