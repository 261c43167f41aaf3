"""The drawing of a network: its layers side by side, with aligned rows of bars, and a rail for each group that several write.

Only the geometry is here; templates/strip.html draws it.  Start reading at `strip`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .groups import Group
from .layers import Layer
from .tables import amount

LEFT, RIGHT, TOP, GAP = 64, 12, 26, 30
WISHED = 1040
"""Width of a drawing in pixels, where the number of layers allows."""

PITCHES = 6, 44
"""Least and greatest distance of layers."""

SEGMENTS = 24
"""At most this many labels above the layers."""

MADE_UP = "onnx::"
"""How torch's exporter begins names of values that have none."""

LANES = 6
LANE = 15
CHARACTER = 6.3
"""Width of a letter in a label."""


class Box(NamedTuple):
    """A bar, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Measure:
    """A row of the drawing: a figure of each layer before and after."""

    title: str
    before: Callable[[Layer], float | None]
    after: Callable[[Layer], float | None]
    height: int
    power: float = 1.0
    """Bars are as high as this power of the figure."""
    top: float = 0.0
    """The figure of the highest bar; by default the largest."""
    label: Callable[[float], str] = amount


WIDTH = Measure("channels", lambda layer: layer.width, lambda layer: layer.width_after, 112, 0.5)
KEPT = Measure(
    "kept", lambda layer: float(layer.width > 0), lambda layer: layer.share, 40, 1.0, 1.0, lambda value: f"{value:.0%}"
)
MACS = Measure("MACs", lambda layer: layer.macs, lambda layer: layer.macs_after, 72)
TIME = Measure("ms", lambda layer: layer.ms, lambda layer: layer.ms_after, 72, label=lambda value: f"{value:.2g}")


@dataclass(frozen=True)
class Row:
    """A measure in its place, with the ticks of its axis."""

    title: str
    top: float
    bottom: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Mark:
    """One layer: an outline for before and a filled bar for after in each row."""

    layer: Layer
    number: int
    x: float
    before: tuple[Box, ...]
    after: tuple[Box, ...]


@dataclass(frozen=True)
class Rail:
    """A group that several layers write, so that they share their channels: a line with a dot at each."""

    group: int
    y: float
    dots: tuple[float, ...]


@dataclass(frozen=True)
class Segment:
    """Consecutive layers whose weights' names begin alike."""

    text: str
    left: float
    right: float


@dataclass(frozen=True)
class Strip:
    """Everything that is drawn."""

    width: float
    height: float
    pitch: float
    bottom: float
    """Where the rows end."""
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...]
    rails: tuple[Rail, ...]
    hidden: int
    """Rails for which there is no room."""
    segments: tuple[Segment, ...]
    numbers: tuple[tuple[float, int], ...]
    """Where numbers of layers stand below the rows."""
    left: float = LEFT
    right: float = RIGHT


def strip(layers: Sequence[Layer], groups: Sequence[Group], measures: Sequence[Measure]) -> Strip:
    """Lay out a network of any depth; deep ones get narrow layers and, from some depth on, a wide drawing."""
    pitch = round(min(max(WISHED / max(1, len(layers)), PITCHES[0]), PITCHES[1]), 1)
    tops = [TOP + sum(measure.height + GAP for measure in measures[:k]) for k in range(len(measures))]
    scales = [_scale(measure, layers) for measure in measures]
    marks = []
    for number, layer in enumerate(layers, 1):
        x = round(LEFT + (number - 1) * pitch, 1)
        places = list(zip(measures, tops, scales, strict=True))
        before = tuple(_box(measure, measure.before(layer), x, pitch, top, scale) for measure, top, scale in places)
        after = tuple(_box(measure, measure.after(layer), x, pitch, top, scale) for measure, top, scale in places)
        marks.append(Mark(layer, number, x, before, after))
    rows = tuple(
        Row(measure.title, top, top + measure.height, _ticks(measure, top, scale))
        for measure, top, scale in zip(measures, tops, scales, strict=True)
    )
    bottom = rows[-1].bottom + 16
    rails, hidden = _rails(marks, len(groups), pitch, bottom + 18)
    height = max((rail.y for rail in rails), default=bottom) + 12
    width = LEFT + len(layers) * pitch + RIGHT
    every = next(step for step in (1, 5, 10, 20, 50, 100, 10**9) if step * pitch >= 26)
    numbers = tuple((round(mark.x + pitch / 2, 1), mark.number) for mark in marks if mark.number % every == 0)
    return Strip(width, height, pitch, bottom, rows, tuple(marks), rails, hidden, _segments(marks, pitch), numbers)


def _scale(measure: Measure, layers: Sequence[Layer]) -> float:
    values = [value for layer in layers for value in (measure.before(layer), measure.after(layer)) if value]
    return measure.top or max(values, default=1.0)


def _box(measure: Measure, value: float | None, x: float, pitch: float, top: float, scale: float) -> Box:
    height = measure.height * ((value or 0.0) / scale) ** measure.power
    return Box(round(x + 0.12 * pitch, 1), round(top + measure.height - height, 1), round(0.76 * pitch, 1), round(height, 1))


def _ticks(measure: Measure, top: float, scale: float) -> tuple[tuple[float, str], ...]:
    shares = (0.25, 1.0) if measure.power < 1 else (0.5, 1.0)
    return tuple((round(top + measure.height * (1 - share**measure.power), 1), measure.label(share * scale)) for share in shares)


def _rails(marks: Sequence[Mark], count: int, pitch: float, top: float) -> tuple[tuple[Rail, ...], int]:
    """Rails in as few lanes as they need; those that reach furthest come first where lanes run out."""
    dots = [tuple(round(mark.x + pitch / 2, 1) for mark in marks if group in mark.layer.writes) for group in range(count)]
    shared = sorted((group for group in range(count) if len(dots[group]) > 1), key=lambda group: dots[group][0] - dots[group][-1])
    lanes: list[list[tuple[float, float]]] = []
    rails = []
    for group in shared:
        first, last = dots[group][0], dots[group][-1]
        lane = next((k for k, taken in enumerate(lanes) if all(last < a or b < first for a, b in taken)), len(lanes))
        if lane == LANES:
            continue
        lanes[lane:lane] = [] if lane < len(lanes) else [[]]
        lanes[lane].append((first, last))
        rails.append(Rail(group, top + lane * LANE, dots[group]))
    return tuple(rails), len(shared) - len(rails)


def _segments(marks: Sequence[Mark], pitch: float) -> tuple[Segment, ...]:
    """Labels from how the names of weights begin, or those of nodes: as few parts of them as divide the network in three."""
    best: list[tuple[str, float, float]] = []
    weights = ["" if mark.layer.weight.startswith(MADE_UP) else mark.layer.weight for mark in marks]
    for names in (weights, [mark.layer.node for mark in marks]):
        for parts in (1, 2, 3):
            heads = [re.split(r"[./]", name.strip("/"))[:parts] for name in names]
            cuts = [0, *(k for k in range(1, len(heads)) if heads[k] != heads[k - 1]), len(heads)]
            if len(best) < 3 and len(best) < len(cuts) - 1 <= SEGMENTS and len(cuts) < len(heads):
                best = [(heads[a][-1], marks[a].x, marks[b - 1].x + pitch) for a, b in pairwise(cuts)]
    return tuple(Segment(_fitting(text, right - left), left, right) for text, left, right in best)


def _fitting(text: str, room: float) -> str:
    """As much of a label as there is room for; nothing rather than less than three letters."""
    letters = int(room / CHARACTER)
    return text if len(text) <= letters else f"{text[: letters - 1]}…" if letters > 3 else ""
