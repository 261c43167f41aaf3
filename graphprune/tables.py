"""What people and scripts read: tables for the terminal, dictionaries for JSON.

Start reading at `prune_table`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from .bench import Latency
    from .comparison import Comparison
    from .cost import Cost
    from .difference import Difference
    from .inference import Analysis
    from .pipeline import Result
    from .requirements import Checked

MOST_ROWS = 300
"""Groups that a table lists; JSON has all."""


def amount(value: float) -> str:
    """A number with three significant digits and a unit: 12.3M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}" if value / limit < 1000 else f"{value / limit:.0f}{unit}"
    return f"{value:.0f}"


@dataclass(frozen=True)
class Figure:
    """One thing before and after; `share` is after over before, `limit` the share that was asked for."""

    title: str
    before: str
    after: str
    share: float | None
    limit: float | None = None
    change: str = "-"
    """Stands for the share where there is none."""


def headline(
    result: Result, sizes: tuple[int, int], latency: Sequence[Latency] = (), accuracies: Sequence[float] = ()
) -> list[Figure]:
    """What a run comes down to."""
    limits: dict[str, float] = {}
    for item in (each for each in result.realised if each.original):
        kind = item.target.partition("=")[0]
        limits[kind] = min(item.limit / item.original, limits.get(kind, inf))
    figures = []
    for title, kind in (("MACs", "macs"), ("params", "params"), ("weight bytes", "bytes"), ("channels", "channels")):
        before, after = result.before.of(kind), result.after.of(kind)
        figures.append(Figure(title, amount(before), amount(after), after / before if before else None, limits.get(kind)))
    figures.append(Figure("file size", f"{amount(sizes[0])}B", f"{amount(sizes[1])}B", sizes[1] / max(1, sizes[0])))
    old, new = (item.median_ms for item in latency) if latency else (result.before.latency / 1e6, result.after.latency / 1e6)
    if old:
        figures.append(Figure("latency", f"{old:.3g} ms", f"{new:.3g} ms", new / old, limits.get("latency")))
    if accuracies:
        change = f"{accuracies[1] - accuracies[0]:+.2%}"
        figures.append(Figure("accuracy", f"{accuracies[0]:.2%}", f"{accuracies[1]:.2%}", None, None, change))
    return figures


def prune_table(
    result: Result, sizes: tuple[int, int], latency: Sequence[Latency] = (), accuracies: Sequence[float] = ()
) -> Table:
    """Before and after, with the requested targets."""
    table = Table(title="graphprune", title_justify="left")
    for name, justify in (("", "left"), ("before", "right"), ("after", "right"), ("kept", "right"), ("target", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for figure in headline(result, sizes, latency, accuracies):
        kept = figure.change if figure.share is None else f"{figure.share:.1%}"
        asked = "" if figure.limit is None else f"<= {figure.limit:.1%}"
        table.add_row(figure.title, figure.before, figure.after, kept, asked)
    return table


def recipe_line(result: Result) -> str:
    """Which passes ran, and what became of the weights."""
    options = result.options
    passes = [options["importance"], options["selection"], *options["repair"]]
    repaired = f"{len(result.weights)} weights repaired" if result.weights else "kept weights unchanged"
    hint = "; --calibration FILE.npz, or random, repairs them" if not result.weights and not options["repair"] else ""
    return f"recipe {options['recipe']}: {', '.join(passes)} ({repaired}{hint})"


def requirements_table(requirements: Sequence[Checked]) -> Table:
    """What was required, what was measured, and whether that will do."""
    table = Table(title="requirements", title_justify="left")
    for name in ("required", "measured", ""):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for item in requirements:
        measured = f"{item.measured:.4g}{'x' if item.unit == 'share' else ''}"
        table.add_row(item.requirement, measured, "met" if item.passed else "not met")
    return table


def prune_json(
    result: Result,
    sizes: tuple[int, int],
    latency: Sequence[Latency] = (),
    accuracies: Sequence[float] = (),
    requirements: Sequence[Checked] = (),
) -> dict[str, Any]:
    """The same for scripts."""
    report: dict[str, Any] = {
        "before": result.before.as_dict() | {"file_bytes": sizes[0]},
        "after": result.after.as_dict() | {"file_bytes": sizes[1]},
        "targets": [asdict(item) | {"realised": item.fraction} for item in result.realised],
        "groups": [{"id": group.id, "size": group.size, "kept": len(group.keep)} for group in result.plan.groups],
        "pinned": len(result.plan.pinned),
        "repaired": sorted(result.weights),
        "model_sha256": result.plan.model_sha256,
        "options": result.plan.options,
        "proof": None if result.proof is None else asdict(result.proof),
    }
    if latency:
        report["latency"] = {"before": latency[0].as_dict(), "after": latency[1].as_dict()}
    if accuracies:
        report["accuracy"] = {"before": accuracies[0], "after": accuracies[1]}
    if requirements:
        report["requirements"] = [asdict(item) for item in requirements]
    return report


def analysis_table(analysis: Analysis) -> Table:
    """Groups in the order of the network, as many as somebody would read."""
    more = len(analysis.groups) - MOST_ROWS
    caption = f"and {more:,} more groups: --json - lists them all" if more > 0 else None
    table = Table(title="groups", title_justify="left", caption=caption, caption_justify="left")
    for name in ("group", "size", "written by", "read by", "carried by"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for group in analysis.groups[:MOST_ROWS]:
        roles = Counter(member.role for member in group.members)
        table.add_row(group.id, str(group.size), *(str(roles[role]) for role in ("producer", "consumer", "carrier")))
    return table


def pinned_table(analysis: Analysis) -> Table:
    """The reasons for pinned axes, with how many axes each pins."""
    table = Table(title="pinned axes", title_justify="left")
    for name in ("axes", "reason", "first node"):
        table.add_column(name, justify="right" if name == "axes" else "left", overflow="fold")
    counts = Counter(item.reason.text for item in analysis.pinned)
    first = {item.reason.text: item.reason.node for item in reversed(analysis.pinned)}
    for text, count in counts.most_common():
        table.add_row(str(count), text, first[text])
    return table


def cost_table(cost: Cost) -> Table:
    """One model's costs."""
    table = Table(title="cost", title_justify="left")
    for kind in ("MACs", "params", "weight bytes", "prunable channels"):
        table.add_column(kind, justify="right")
    table.add_row(*(amount(value) for value in (cost.macs, cost.params, cost.bytes, cost.channels)))
    return table


def analysis_json(analysis: Analysis, cost: Cost) -> dict[str, Any]:
    """Everything `analyze` knows."""
    members = [
        {
            "id": group.id,
            "size": group.size,
            "members": [{"tensor": m.tensor, "axis": m.axis, "role": m.role} for m in group.members],
        }
        for group in analysis.groups
    ]
    pinned = [
        {"tensor": p.tensor, "axis": p.axis, "indices": p.indices, "reason": p.reason.text, "node": p.reason.node}
        for p in analysis.pinned
    ]
    return {"groups": members, "pinned": pinned, "cost": cost.as_dict()}


def difference_table(difference: Difference) -> Table:
    """Layer by layer."""
    table = Table(title="layers", title_justify="left")
    for name in ("node", "operator", "weight before", "weight after", "MACs before", "MACs after", "kept"):
        table.add_column(name, justify="left" if name in ("node", "operator") else "right", overflow="fold")
    for layer in difference.layers:
        after = "gone" if layer.weight_after is None else "x".join(map(str, layer.weight_after))
        share = f"{layer.macs_after / layer.macs_before:.1%}" if layer.macs_before else "-"
        weights = "x".join(map(str, layer.weight_before)), after
        table.add_row(layer.node, layer.operator, *weights, amount(layer.macs_before), amount(layer.macs_after), share)
    for title, kind in (("MACs", "macs"), ("params", "params"), ("weight bytes", "bytes")):
        old, new = difference.before.of(kind), difference.after.of(kind)
        table.add_row(f"total {title}", "", "", "", amount(old), amount(new), f"{new / max(1, old):.1%}")
    return table


def target_in_words(target: Mapping[str, Any]) -> str:
    """What a library was compiled for."""
    return " ".join(str(target[key]) for key in ("kind", "mtriple", "mcpu", "arch") if key in target)


def compiled_table(facts: Mapping[str, Any]) -> Table:
    """What `compile` wrote: the entries that an exporter's record gives."""
    table = Table(title="compiled", title_justify="left", show_header=False)
    slow = f", {len(facts['unscheduled'])} without a schedule" if facts["unscheduled"] else ""
    tuned = f", {facts['tuned']} tuned" if facts["tuned"] else ""
    compared = "not run: another processor" if facts["difference"] is None else f"{facts['difference']:.1e} of scale"
    table.add_row("library", f"{facts['library']} ({amount(facts['bytes'])}B)")
    table.add_row("target", target_in_words(facts["target"]))
    table.add_row("kernels", f"{facts['kernels']}{tuned}{slow}")
    table.add_row("compiled in", f"{facts['seconds']:.1f} s")
    table.add_row("difference to ONNX Runtime", compared)
    return table


def exported_table(facts: Mapping[str, Any]) -> Table:
    """What `export` wrote."""
    table = Table(title="exported", title_justify="left", show_header=False)
    table.add_row("format", facts["format"])
    for name, size in facts["files"].items():
        table.add_row("file", f"{name} ({amount(size)}B)")
    compared = "the model itself, or another processor" if facts["difference"] is None else f"{facts['difference']:.1e} of scale"
    table.add_row("difference to ONNX Runtime", compared)
    return table


def bench_table(names: Sequence[str], latencies: Sequence[Latency], backend: str = "onnxruntime") -> Table:
    """Latency of each model, and its ratio to the first."""
    batches = list(dict.fromkeys(item.batch for item in latencies))
    title = f"{backend}, {latencies[0].threads} threads, batch {' and '.join(map(str, batches))}"
    table = Table(title=title, title_justify="left")
    for name in ("model", "median", "p10", "p90", "ratio"):
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for name, item in zip(names, latencies, strict=True):
        figures = (f"{value:.3g} ms" for value in (item.median_ms, item.p10_ms, item.p90_ms))
        table.add_row(name, *figures, f"{item.median_ms / latencies[0].median_ms:.3f}")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """One row for each recipe and target, the original first."""
    table = Table(title=f"accuracy on {comparison.samples} samples that nothing was chosen on", title_justify="left")
    for name in ("recipe", "target", "MACs", "params", "latency", "accuracy", "time", "proof"):
        table.add_column(name, justify="left" if name in ("recipe", "target") else "right", overflow="fold")
    base = comparison.latency.median_ms if comparison.latency else 1.0
    table.add_row("original", "", "100.0%", "100.0%", f"{base:.3g} ms", f"{comparison.accuracy:.2%}", "", "")
    for point in comparison.points:
        if point.problem or point.latency is None:
            table.add_row(point.recipe, point.target, *["-"] * 5, point.problem or "-")
            continue
        shares = f"{point.macs:.1%}", f"{point.params:.1%}", f"{point.latency.median_ms / base:.2f}x"
        proof = "equal" if point.proven else "not run"
        table.add_row(point.recipe, point.target, *shares, f"{point.accuracy:.2%}", f"{point.seconds:.0f} s", proof)
    return table
