"""Pictures of results, drawn by matplotlib (extra `plots`).  Start reading at `comparison_chart`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .atomic import atomic_file
from .comparison import Comparison, Point
from .errors import UsageError
from .extras import need

FORMATS = (".svg", ".png", ".pdf")


def check_chart(path: Path) -> None:
    """Raise UsageError for a file that is no picture, MissingExtraError without matplotlib: before the long work starts."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a chart is one of {', '.join(FORMATS)}")
    need("plots")


def comparison_chart(comparison: Comparison, path: Path) -> None:
    """Accuracy against MACs, params and measured latency, a line for each recipe; the original is a dotted line."""
    need("plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    base = comparison.latency.median_ms if comparison.latency else 1.0
    axes: dict[str, Any] = {
        "MACs": lambda point: point.macs,
        "params": lambda point: point.params,
        "latency": lambda point: point.latency.median_ms / base,
    }
    for place, (title, x) in zip(figure.subplots(1, 3, sharey=True), axes.items(), strict=True):
        for name in dict.fromkeys(point.recipe for point in comparison.points):
            line = sorted((x(point), point.accuracy) for point in _there(comparison, name))
            place.plot([a for a, _ in line], [100 * b for _, b in line], marker="o", markersize=4, label=name)
        place.axhline(100 * comparison.accuracy, color="grey", linestyle=":")
        place.set_xlabel(f"{title}, share of the original")
        place.grid(alpha=0.3)
        if title == "MACs":
            place.set_ylabel(f"accuracy in % ({comparison.samples} samples)")
            place.legend(fontsize="small")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:])


def _there(comparison: Comparison, name: str) -> list[Point]:
    return [point for point in comparison.points if point.recipe == name and not point.problem]
