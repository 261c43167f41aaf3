"""Architectures: every network of torchvision, families of timm and transformers, and the tests of the onnx package.

Start reading at `measure`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from children import Command, run, tool
from page_tables import table
from results import Row, Spread
from settings import Settings, Size

TITLE = "Architectures"

NETWORKS: dict[Size, list[str]] = {
    "quick": ["torchvision/mobilenet_v3_small", "timm/lcnet_035", "transformers/bert"],
    "default": [
        "torchvision/resnet18", "torchvision/swin_t", "torchvision/lraspp_mobilenet_v3_large", "torchvision/r3d_18",
        "torchvision/ssdlite320_mobilenet_v3_large.backbone", "timm/coatnet_0_224", "timm/dla34", "timm/levit_128",
        "timm/xcit_nano_12_p8_224", "transformers/llama", "transformers/mixtral", "transformers/t5", "transformers/mamba",
    ],
}  # fmt: skip
KEEP = [0.7, 0.5]
EXPORT_LIMIT, LIMIT = 1500, 900

HOW = """Random weights, seeded; torch's new exporter. Each network is pruned to 0.7 and to 0.5 of its channels with default
options, in a process that sees nothing but the ONNX file. *proven*: the proof passed at both. *refused*: graphprune
says why it prunes nothing, or why the exported file is no valid model. *failed*: anything else. Networks that torch
does not export are counted apart. *free*: the share of the parameters in tensors with at least one axis that may be
pruned, by default and with `--normalization kept` (width behind normalisations). The node and model tests of the onnx
package are each pruned to half of their channels, twice (normalisations pinned and kept); single nodes seldom have
weights, so most are refused, with a reason. Networks run on all cores at once: seconds are upper bounds."""


def names(settings: Settings) -> list[str]:
    """A full run takes all of them."""
    if settings.size != "full":
        return NETWORKS[settings.size]
    import architectures

    return architectures.names()


def measure(settings: Settings) -> list[Row]:
    """A row for each network, and one for the tests of onnx."""
    wanted = names(settings)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(onnx_tests)] + [pool.submit(network, name, settings) for name in wanted]
        return [job.result() for job in jobs]


def network(name: str, settings: Settings) -> Row:
    """Export, then prune, in two processes; the file is not kept."""
    with settings.scratch() as scratch:
        path = Path(scratch) / "model.onnx"
        words = [sys.executable, "-m", "architectures", name, str(path)]
        exported = run(Command(words, {"OMP_NUM_THREADS": "1"}), EXPORT_LIMIT)
        if "error" in exported:
            row = {"network": name, "export": exported["error"]}
        else:
            row = {"network": name, **run(tool("prove_architecture", path, path, keep=KEEP), LIMIT)}
    print(f"    {name}: {verdict(row)}", file=sys.stderr, flush=True)
    return row


def onnx_tests() -> Row:
    """All models of the onnx package in one process."""
    return {"network": "onnx/backend tests", **run(tool("onnx_backend_tests", Path(), Path()), LIMIT)}


def verdict(row: Row) -> str:
    """One word, as HOW explains them."""
    if "export" in row:
        return "not exported"
    if "error" in row or "counts" in row:
        return "failed" if "error" in row or row["failures"] else "no failure"
    return "refused" if refusals(row) else "proven"


def refusals(row: Row) -> list[str]:
    """Why graphprune prunes nothing, or does not read the file."""
    return [each["refused"] for each in (row, *row.get("results", {}).values()) if "refused" in each]


def figures(rows: list[Row]) -> dict[str, Spread | str]:
    """What a second run should reproduce: the verdicts."""
    return {row["network"]: verdict(row) for row in rows}


def section(rows: list[Row]) -> list[str]:
    """Counts, the tests of onnx, each network, and what was not proven with its reason."""
    networks = [row for row in rows if "counts" not in row and not row["network"].startswith("onnx/")]
    tests = [row for row in rows if row not in networks]
    lines = [HOW, "", *counts(networks), "", *(_onnx(row) for row in tests), "", "### Each architecture", ""]
    lines += [*table(["network", "nodes", "free", "free, kept", *_heads(), "max error", "s", "MiB"], _body(networks)), ""]
    others = [[row["network"], verdict(row), f"`{_reason(row)}`"] for row in networks if verdict(row) != "proven"]
    if others:
        lines += ["### Not proven", "", *table(["network", "verdict", "reason"], others), ""]
    return lines


def counts(networks: list[Row]) -> list[str]:
    """A row for each source."""
    words = ("proven", "refused", "failed", "not exported")
    by_source: dict[str, Counter[str]] = {}
    for row in networks:
        by_source.setdefault(row["network"].partition("/")[0], Counter())[verdict(row)] += 1
    body = [[source, str(found.total()), *(str(found[word]) for word in words)] for source, found in by_source.items()]
    return table(["source", "tried", *words], body)


def _onnx(row: Row) -> str:
    if "error" in row:
        return f"Tests of the onnx package: failed, `{row['error']}`."
    found, failures = Counter(row["counts"]), "".join(f" `{each}`" for each in row["failures"])
    text = f"Tests of the onnx package: {found['models']} models, {found['proven']} runs proven, {found['refused']} refused, "
    return text + f"{found['failed']} failed, the slowest in {row['slowest']:.1f} s.{failures}"


def _heads() -> list[str]:
    return [f"params at {keep}" for keep in KEEP]


def _body(networks: list[Row]) -> list[list[str]]:
    body = []
    for row in networks:
        if verdict(row) != "proven":
            continue
        results = [row["results"][str(keep)] for keep in KEEP]
        shares = [f"{row['shares'][mode]:.3f}" for mode in ("pin", "kept")]
        params = [f"{result['params']:.3f}" for result in results]
        worst = f"{max(result['difference'] for result in results):.1e}"
        cost = [f"{row['seconds']:.0f}", f"{row['peak_mib']:.0f}"]
        body.append([row["network"], str(row["nodes"]), *shares, *params, worst, *cost])
    return body


def _reason(row: Row) -> str:
    return str(row.get("export") or row.get("error") or refusals(row)[0])


def plot(rows: list[Row], axes: Any) -> None:
    """How the shares of parameters with a free axis are spread."""
    for source in dict.fromkeys(row["network"].partition("/")[0] for row in rows if "shares" in row):
        shares = sorted(row["shares"]["pin"] for row in rows if "shares" in row and row["network"].startswith(f"{source}/"))
        axes.plot([100 * (k + 1) / len(shares) for k in range(len(shares))], shares, label=f"{source} ({len(shares)} networks)")
    axes.set_xlabel("percentile of the networks")
    axes.set_ylabel("share of parameters with a free axis")
    axes.legend()
