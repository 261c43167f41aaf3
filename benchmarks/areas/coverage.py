"""Coverage: which networks each tool prunes, and whether the result holds.  Start reading at `measure`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from children import Command, run, tool
from networks import TRANSFORMERS, Files
from page_tables import table
from results import Row, Spread, unique
from settings import Settings, Size, announce

TITLE = "Coverage"

CONVOLUTIONAL = [
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "googlenet", "squeezenet1_1", "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "regnet_y_400mf", "resnext50_32x4d", "convnext_tiny", "vit_b_16", "swin_t",
]  # fmt: skip
NETWORKS: dict[Size, list[str]] = {
    "quick": ["resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "squeezenet1_1"],
    "default": [*CONVOLUTIONAL, *(TRANSFORMERS + name for name in ("bert", "gpt2", "llama", "t5"))],
}
KEEP: dict[Size, list[float]] = {"quick": [0.5], "default": [0.5], "full": [0.9, 0.7, 0.5, 0.3]}
STYLES: dict[Size, list[str]] = {"quick": ["dynamo"], "default": ["dynamo"], "full": ["dynamo", "legacy"]}
LIMIT = 300

OWN, PEERS = "graphprune", ("Torch-Pruning", "onnxsim", "apple-upscale")

HOW = """Random weights, seeded; every layer keeps the stated share of its channels by the L1 norm. What the words say:
*proven*: graphprune's proof passed, outputs and inner results equal those of the masked original. *equal*:
apple-upscale's result gives what the network with zeroed channels gives. *runs*: the result is valid, runs, and its
outputs have the shapes that they had; whether it computes what it should nobody checks. *unchanged*: the tool
returned a network with over 99.9 % of the parameters. *failed*: with the error. The number is the share of parameters
that is left: the same request reaches more or less of a network. apple-upscale drops input channels of convolutions
only, each layer its own. Torch-Pruning and apple-upscale take torch modules, so they are not asked twice for two
exporters; transformers are left out for them, because heads must be given to Torch-Pruning by hand, and apple-upscale
prunes convolutions. It asks for torch 2.0.1 and runs here with the torch of all others, which may be the reason of a
failure. Torch-Pruning leaves it to its users to set the width that vision transformers of torchvision reshape to; the
benchmark does."""


def networks(settings: Settings) -> list[str]:
    """The names; a full run takes all classifiers of torchvision and all small transformers."""
    if settings.size != "full":
        return NETWORKS[settings.size]
    import classifiers
    import transformers_networks

    vision = [*classifiers.names(), *(each for each in NETWORKS["default"] if each.startswith(("vit", "swin")))]
    return [*vision, *(TRANSFORMERS + name for name in transformers_networks.MODELS)]


def measure(settings: Settings) -> list[Row]:
    """A row for each network, exporter, share and tool."""
    rows: list[Row] = []
    names = networks(settings)
    for name in names:
        announce(names, name)
        for style in settings.pick(STYLES):
            if style == "legacy" and name.startswith(TRANSFORMERS):
                continue
            files = settings.files(name, style)
            for keep in settings.pick(KEEP):
                common = {"network": name, "exporter": style, "keep": keep}
                rows += [{**common, **row} for row in each_tool(name, files, keep, style, settings)]
    return rows


def each_tool(name: str, files: Files, keep: float, style: str, settings: Settings) -> list[Row]:
    """The rows of one network at one share."""
    if files.error:
        return [{"tool": "export", "error": files.error}]
    rows = []
    with settings.scratch() as scratch:
        for label, command in commands(name, files, keep, style, Path(scratch)).items():
            row = {"tool": label, **run(command, LIMIT)}
            if "error" in row:
                print(f"    {label}: {row['error']}", file=sys.stderr)
            rows.append(row)
    return rows


def commands(name: str, files: Files, keep: float, style: str, folder: Path) -> dict[str, Command]:
    """What applies to this network."""
    out = folder / "pruned.onnx"
    options: dict[str, Any] = {"targets": [f"channels={keep}"], "selection": "uniform", "importance": "magnitude", "align": 1}
    found = {
        OWN: tool("prune_with_graphprune", files.onnx, out, **options),
        "onnxsim": tool("prune_with_onnxsim", files.onnx, out, keep=keep),
    }
    if style == "dynamo" and not name.startswith(TRANSFORMERS):
        found["Torch-Pruning"] = tool("prune_with_torch_pruning", files.module, folder / "pruned.pt", openmp=1, keep=keep)
        found["apple-upscale"] = tool("prune_with_upscale", files.module, out, keep=keep)
    return found


def verdict(row: Row) -> str:
    """One word, as HOW explains them."""
    if "error" in row:
        return "failed"
    if row["params"] > 0.999:
        return "unchanged"
    if row["tool"] == OWN:
        return "proven" if row["proven"] else "failed"
    return "equal" if row["tool"] == "apple-upscale" else "runs"


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: the verdicts."""
    tried = [row for row in rows if row["tool"] != "export"]
    return {f"{row['network']}, {row['exporter']}, {row['keep']}, {row['tool']}": verdict(row) for row in tried}


def section(rows: list[Row]) -> list[str]:
    """Counts, then every network, then every failure with its error."""
    tried = [row for row in rows if row["tool"] != "export"]
    tools = [OWN, *PEERS]
    columns = (("proven", "equal"), ("runs",), ("unchanged",), ("failed",))
    counts = []
    for name in tools:
        words = [verdict(row) for row in tried if row["tool"] == name]
        counts.append([name, str(len(words)), *(str(sum(each in column for each in words)) for column in columns)])
    lines = [
        HOW,
        "",
        *table(["tool", "tried", "proven or equal", "runs", "unchanged", "failed"], counts),
        "",
        "### Each network",
        "",
    ]
    body = []
    for network in unique(tried, "network"):
        for style in unique([row for row in tried if row["network"] == network], "exporter"):
            mine = [row for row in tried if row["network"] == network and row["exporter"] == style]
            body.append([network, style, *(_cell([row for row in mine if row["tool"] == name]) for name in tools)])
    lines += [*table(["network", "exporter", *tools], body), ""]
    failures = [[row["network"], str(row["keep"]), row["tool"], f"`{row['error']}`"] for row in rows if "error" in row]
    if failures:
        lines += ["### Failures", "", *table(["network", "kept", "tool", "error"], failures), ""]
    return lines


def _cell(rows: list[Row]) -> str:
    if not rows:
        return "-"
    found = []
    for word in dict.fromkeys(verdict(row) for row in rows):
        shares = [f"{row['params']:.3f}" for row in rows if verdict(row) == word and "error" not in row]
        found.append(" ".join([word, *shares]))
    return "; ".join(found)


def plot(rows: list[Row], axes: Any) -> None:
    """How many networks come to which verdict."""
    tools, bottom = [OWN, *PEERS], [0] * 4
    for words in (("proven", "equal"), ("runs",), ("unchanged",), ("failed",)):
        counts = [sum(verdict(row) in words for row in rows if row["tool"] == name) for name in tools]
        axes.bar(tools, counts, bottom=bottom, label=" or ".join(words))
        bottom = [a + b for a, b in zip(bottom, counts, strict=True)]
    axes.set_ylabel("networks")
    axes.legend()
