"""Results of an area as JSON, and the statistics that the page states.  Start reading at `Spread`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.atomic import atomic_file

FOLDER = Path(__file__).resolve().parent / "results"
SCHEMA = "graphprune.benchmark/1"

Row = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """The median of several measurements, the smallest and the largest."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError where there is none."""
        values = list(values)
        if not values:
            raise ValueError("nothing was measured")
        return cls(float(np.median(values)), min(values), max(values), len(values))

    @classmethod
    def of_ratio(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """The ratio of two series that were measured in turns, round by round."""
        rounds = min(len(over), len(under))
        return cls.of(a / b for a, b in zip(over[:rounds], under[:rounds], strict=True))

    def text(self, digits: int = 2, unit: str = "") -> str:
        """`1.20 s (1.10 to 1.40)`; without the range where there was one measurement."""
        middle = f"{self.median:.{digits}f}{unit}"
        return middle if self.count == 1 else f"{middle} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def overlaps(self, other: Spread, margin: float = 0.0) -> bool:
        """Whether the two ranges, of positive figures and each wider by a margin at both ends, have a value in common."""
        wider = (1 + margin) / (1 - margin)
        return self.low <= other.high * wider and other.low <= self.high * wider


def values(rows: Iterable[Row], key: str, **wanted: Any) -> list[float]:
    """The figures of the rows that match, in order; `key` may be a path: `phases.prune`.  Failed rows have none."""
    found = []
    for row in rows:
        if "error" in row or any(row.get(name) != value for name, value in wanted.items()):
            continue
        value: Any = row
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found.append(float(value))
    return found


def error(rows: Iterable[Row], **wanted: Any) -> str | None:
    """The first failure among the rows that match."""
    return next((row["error"] for row in rows if "error" in row and all(row.get(k) == v for k, v in wanted.items())), None)


def unique(rows: Iterable[Row], key: str) -> list[Any]:
    """The different values, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows if key in row))


def write(area: str, document: dict[str, Any], folder: Path = FOLDER) -> None:
    """Write the results of an area; the file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, "area": area, **document}, indent=1, sort_keys=True)
    with atomic_file(folder / f"{area}.json") as path:
        path.write_text(text + "\n", encoding="utf-8")


def read(area: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The results of an area; None where it was not measured.  Raises ValueError for a file of another format."""
    path = folder / f"{area}.json"
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {document.get('schema')!r}, not {SCHEMA!r}")
    return document
