"""Compile time and peak of memory, whole process and in process.  Start reading at `measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from children import GRAPHPRUNE, Command, busy_processors, in_turns, tool
from page_tables import table
from results import Row, Spread, error, unique, values
from settings import Settings, Size

TITLE = "Compile time and memory"

NETWORKS: dict[Size, list[str]] = {
    "quick": ["resnet50", "mobilenet_v2"],
    "default": ["resnet50", "mobilenet_v2", "densenet121", "vit_b_16", "convnext_large", "regnet_y_32gf", "efficientnet_v2_s"],
}
NETWORKS["full"] = [*NETWORKS["default"], "googlenet", "resnext50_32x4d", "efficientnet_b0", "vgg16"]
ROUNDS: dict[Size, int] = {"quick": 3, "default": 3, "full": 7}
BUSY_ROUNDS: dict[Size, int] = {"quick": 1, "default": 5, "full": 7}
LIMIT = 300

OWN, INSIDE, COPY, ONNXSIM = "graphprune", "graphprune, from Python", "copy of the file", "onnxsim"
PEER, PEER_THREADS = "Torch-Pruning, 1 thread", "Torch-Pruning, all threads"
PEERS = (PEER, PEER_THREADS, ONNXSIM)
BUSY = ", busy"

HOW = """Each tool prunes every layer to half of its channels by the L1 norm, without a proof, each run in a process of its own;
a round is all tools on all networks, so that ranges hold what a machine changes within minutes. A run begins when what
earlier ones wrote is on the disk. *Whole process* is from the start of Python to the end, reading and writing files
included: `graphprune prune` for ours; for Torch-Pruning a script that imports torch, loads the pickled module, builds
the dependency graph, prunes, and saves the module; for onnxsim one that loads, prunes and saves. *In process* is what
is left when Python's start, imports, loading and saving are left out: `graphprune.prune` on a loaded model,
Torch-Pruning's build and step, onnxsim's `apply_structured_pruning`. Figures are medians, with the smallest and the
largest of the rounds; ratios are taken round by round.

Torch-Pruning runs thousands of tiny tensor operations. With more than one thread each of them waits for a thread that
another program may have displaced. By hand on 2026-11-21, ResNet-50 on two cores: 0.6 s with two threads in the
quietest run; beside two busy loops and other work 3 to 13 s with two threads, 0.5 to 1.8 s with one. So it is
measured both ways, and ratios are to the quicker one. That is why seconds for it differ so much between machines and
days (5.8 s were noted here before). Criterion, global ranking and rounding do not explain it: 0.6 to 1.1 s each with
one thread, and 1.8 s for five iterative steps."""

HALVES = """Torch-Pruning without start, imports, loading and saving, against the whole process of graphprune. On a quiet machine
Torch-Pruning has the quicker number of threads. *Busy*: a loop that does nothing else runs on each processor, and every
tool runs as it comes, Torch-Pruning with all threads, as its users start it."""


def measure(settings: Settings) -> list[Row]:
    """A row for each network, tool and round; and one for the size of each file."""
    rows: list[Row] = []
    quiet: dict[str, Command] = {}
    busy: dict[str, Command] = {}
    labels: dict[str, Row] = {}
    with settings.scratch() as scratch:
        for network, files in settings.exported(NETWORKS, rows):
            rows.append({"network": network, "megabytes": files.onnx.stat().st_size / 1e6})
            for name, command in commands(files.onnx, files.module, Path(scratch)).items():
                label = f"{network}: {name}"
                quiet[label], labels[label] = command, {"network": network, "tool": name}
                if name in (OWN, PEER_THREADS):
                    busy[label + BUSY], labels[label + BUSY] = command, {"network": network, "tool": name + BUSY}
        measured = in_turns(quiet, settings.pick(ROUNDS), LIMIT)
        with busy_processors():
            measured += in_turns(busy, settings.pick(BUSY_ROUNDS), LIMIT)
    return [*rows, *({**row, **labels[row["tool"]]} for row in measured)]


def commands(onnx: Path, module: Path, folder: Path) -> dict[str, Command]:
    """What takes turns."""
    options: dict[str, Any] = {"targets": ["channels=0.5"], "selection": "uniform", "importance": "magnitude", "verify": False}
    shell = ["--target", "channels=0.5", "--selection", "uniform", "--importance", "magnitude", "--no-verify"]
    out = folder / "pruned.onnx"
    return {
        OWN: Command([GRAPHPRUNE, "prune", str(onnx), "-o", str(out), *shell]),
        PEER: tool("prune_with_torch_pruning", module, folder / "pruned.pt", openmp=1, keep=0.5),
        INSIDE: tool("prune_with_graphprune", onnx, out, **options),
        PEER_THREADS: tool("prune_with_torch_pruning", module, folder / "pruned.pt", keep=0.5),
        ONNXSIM: tool("prune_with_onnxsim", onnx, out, keep=0.5, check=False),
        COPY: tool("copy_file", onnx, folder / "copy.onnx"),
    }


def whole(rows: list[Row], network: str, name: str) -> list[float]:
    """Seconds of the whole process."""
    return values(rows, "seconds", network=network, tool=name)


def inside(rows: list[Row], network: str, name: str) -> list[float]:
    """Seconds without start, imports, loading and saving."""
    name = INSIDE if name == OWN else name
    if name.startswith("Torch-Pruning"):
        parts = [values(rows, f"phases.{part}", network=network, tool=name) for part in ("build", "step")]
        return [a + b for a, b in zip(*parts, strict=True)]
    return values(rows, "phases.prune", network=network, tool=name)


def quicker(rows: list[Row], network: str, of: Any) -> list[float]:
    """Torch-Pruning's series with one thread or with all, whichever has the smaller median."""
    series = [found for name in (PEER, PEER_THREADS) if (found := of(rows, network, name))]
    return min(series, key=lambda each: Spread.of(each).median, default=[])


def ratios(rows: list[Row]) -> dict[str, dict[str, Spread]]:
    """For each statement the ratio by network: how many times graphprune's time the other one takes."""
    found: dict[str, dict[str, Spread]] = {}
    for network in unique(rows, "network"):
        for text, of in (("whole process", whole), ("in process", inside)):
            own = of(rows, network, OWN)
            for name, other in (("Torch-Pruning", quicker(rows, network, of)), ("onnxsim", of(rows, network, ONNXSIM))):
                if own and other:
                    found.setdefault(f"{name} / graphprune, {text}", {})[network] = Spread.of_ratio(other, own)
        own, copied = whole(rows, network, OWN), values(rows, "phases.copy", network=network, tool=COPY)
        if own and copied:
            found.setdefault("graphprune, whole process / copy", {})[network] = Spread.of_ratio(own, copied)
    return found


def halves(rows: list[Row]) -> list[dict[str, tuple[list[float], list[float]]]]:
    """Torch-Pruning's build and step and our whole process, by network: on a quiet machine, on a busy one with all threads."""
    networks = unique(rows, "network")
    quiet = {name: (quicker(rows, name, inside), whole(rows, name, OWN)) for name in networks}
    busy = {name: (inside(rows, name, f"{PEER_THREADS}{BUSY}"), whole(rows, name, f"{OWN}{BUSY}")) for name in networks}
    return [{name: pair for name, pair in each.items() if all(pair)} for each in (quiet, busy)]


def beside_work(rows: list[Row]) -> list[str]:
    """The table that sets their half against our whole."""
    head = ["Torch-Pruning, build and step", "graphprune, whole process", "ratio"]
    known = halves(rows)
    found = [{name: Spread.of_ratio(*pair) for name, pair in each.items()} for each in known]
    body = [[name] for name in unique(rows, "network")]
    for line in body:
        for pairs, ratio in zip(known, found, strict=True):
            seconds = [Spread.of(each).text(2, " s") for each in pairs.get(line[0], ())]
            line += [*seconds, ratio[line[0]].text(1)] if seconds else ["-"] * 3
    middle = [cell for each in found for cell in ("", "", middle_of(each))]
    return table(["network", *head, *(f"{each}, busy" for each in head)], [*body, ["**median**", *middle]])


def middle_of(found: dict[str, Spread]) -> str:
    """The median over the networks."""
    return f"**{Spread.of(each.median for each in found.values()).median:.1f}**" if found else "-"


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: the ratios."""
    return {f"{network}: {text}": spread for text, each in ratios(rows).items() for network, spread in each.items()}


def section(rows: list[Row]) -> list[str]:
    """The tables: whole process, in process, memory, ratios."""
    networks = unique(rows, "network")
    tools = [OWN, *PEERS]

    def cell(of: Any, network: str, name: str, digits: int, unit: str) -> str:
        series = of(rows, network, name)
        return (
            Spread.of(series).text(digits, unit)
            if series
            else f"failed: `{error(rows, network=network, tool=name) or 'not run'}`"
        )

    def memory(rows: list[Row], network: str, name: str) -> list[float]:
        return values(rows, "peak_mib", network=network, tool=name)

    lines = [HOW, ""]
    for title, of, digits, unit in (
        ("Whole process", whole, 2, " s"),
        ("In process", inside, 2, " s"),
        ("Peak of memory, whole process", memory, 0, " MiB"),
    ):
        lines += [f"### {title}", ""]
        body = [[network, *(cell(of, network, name, digits, unit) for name in tools)] for network in networks]
        lines += [*table(["network", *tools], body), ""]
    lines += ["### Ratios", "", "Above 1: graphprune takes less (in the last column: graphprune takes more than the copy).", ""]
    found = ratios(rows)
    body = [[network, *(each[network].text(1) if network in each else "-" for each in found.values())] for network in networks]
    middle = ["**median**", *map(middle_of, found.values())]
    lines += [*table(["network", *found], [*body, middle]), ""]
    return [*lines, "### Half of theirs against all of ours", "", HALVES, "", *beside_work(rows), ""]


def plot(rows: list[Row], axes: Any) -> None:
    """Whole process by network and tool."""
    networks, tools = unique(rows, "network"), [OWN, *PEERS]
    for k, name in enumerate(tools):
        series = [whole(rows, network, name) for network in networks]
        at = [i + (k - 1.5) * 0.2 for i, each in enumerate(series) if each]
        spread = [Spread.of(each) for each in series if each]
        ends = [[s.median - s.low for s in spread], [s.high - s.median for s in spread]]
        axes.bar(at, [s.median for s in spread], 0.18, yerr=ends, label=name)
    axes.set_xticks(range(len(networks)), networks, rotation=20)
    axes.set_yscale("log")
    axes.set_ylabel("seconds, whole process")
    axes.legend()
