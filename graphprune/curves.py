"""Accuracy against what it costs, a line for each recipe: the geometry of the plots in a report.  Start reading at `plots`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .comparison import BASELINES, Comparison, Point

WIDTH, HEIGHT = 520, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 46
NARROWEST = 4
"""At least so many points of accuracy are on the axis."""

SHAPES = ("circle", "square", "triangle", "diamond")
COLOURS = 6
"""Colours that can be told apart by everybody; further lines take them again, with another shape."""


@dataclass(frozen=True)
class Dot:
    """One result."""

    x: float
    y: float
    point: Point


@dataclass(frozen=True)
class Curve:
    """One recipe: `colour` counts from 0, -1 stands for a baseline."""

    name: str
    colour: int
    shape: str
    dots: tuple[Dot, ...]

    @property
    def path(self) -> str:
        """The line through its dots."""
        return "M" + "L".join(f"{dot.x} {dot.y}" for dot in self.dots) if self.dots else ""


@dataclass(frozen=True)
class Plot:
    """Accuracy against one kind of cost; ticks are places with labels."""

    title: str
    curves: tuple[Curve, ...]
    original: tuple[float, float]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    below: int
    """Results of baselines so far below all others that they are not on the plot."""


def plots(comparison: Comparison) -> list[Plot]:
    """Accuracy against latency, MACs and parameters, each as a share of the original's."""
    base = comparison.latency.median_ms if comparison.latency else 0.0
    kinds: list[tuple[str, Callable[[Point], float]]] = [("MACs", lambda p: p.macs), ("parameters", lambda p: p.params)]
    if base:
        kinds.insert(0, ("latency", lambda p: p.latency.median_ms / base if p.latency else 1.0))
    return [_plot(comparison, title, cost) for title, cost in kinds]


def _plot(comparison: Comparison, title: str, cost: Callable[[Point], float]) -> Plot:
    points = [point for point in comparison.points if not point.problem]
    x_ticks = ticks([*map(cost, points), 1.0])
    y_ticks = _accuracy_ticks(comparison)

    def across(value: float) -> float:
        return round(LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM), 1)

    curves, colour = [], 0
    for number, name in enumerate(dict.fromkeys(point.recipe for point in comparison.points)):
        own = sorted((point for point in points if point.recipe == name), key=cost)
        dots = tuple(Dot(across(cost(point)), up(100 * point.accuracy), point) for point in own)
        curves.append(Curve(name, -1 if name in BASELINES else colour % COLOURS, SHAPES[number % len(SHAPES)], dots))
        colour += name not in BASELINES
    original = across(1.0), up(100 * comparison.accuracy)
    places = tuple((across(x), f"{x:.2f}".rstrip("0").rstrip(".")) for x in x_ticks)
    below = sum(100 * point.accuracy < y_ticks[0] for point in points)
    return Plot(title, tuple(curves), original, places, tuple((up(y), f"{y:.6g}") for y in y_ticks), below)


def _accuracy_ticks(comparison: Comparison) -> list[float]:
    """In per cent; a baseline that falls far below everything else does not squeeze the rest into a line."""
    points = [(point.recipe in BASELINES, 100 * point.accuracy) for point in comparison.points if not point.problem]
    recipes = [100 * comparison.accuracy, *(accuracy for baseline, accuracy in points if not baseline)]
    span = max(max(recipes) - min(recipes), NARROWEST)
    near = min(recipes) - span
    return ticks(
        [max(recipes) - span, *recipes, *(accuracy for baseline, accuracy in points if not baseline or accuracy >= near)]
    )


def ticks(values: Sequence[float]) -> list[float]:
    """Four to nine round numbers that span the values."""
    low, high = min(values), max(values)
    span = max(high - low, 1e-3 * max(abs(high), 1.0))
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if span / (factor * magnitude) <= 7)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(k * step, 10) for k in range(first, last + 1)]
