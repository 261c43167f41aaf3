"""Gates for continuous integration: `accuracy>=0.91,latency<=0.7x,params<=50%`.

Start reading at `parse_requirements`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .cost import KINDS
from .errors import UsageError
from .targets import UNITS

METRICS = ("accuracy", "accuracy_drop", "latency", *KINDS)
"""What can be required; the last are those of targets."""

_COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_CLAUSE = re.compile(r"([a-z_]+)\s*(<=|>=|<|>)\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z%]*)")
_MILLISECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}
_ROUNDING = 1e-9
"""Differences of measured shares are not exact in floating point."""


@dataclass(frozen=True)
class Requirement:
    """`metric` compared with `value`: a share of the original's (`relative`), or a number (ms, bytes, a score)."""

    text: str
    metric: str
    comparison: Literal["<=", ">=", "<", ">"]
    value: float
    relative: bool

    def check(self, before: float, after: float) -> Checked:
        """Whether the figures of the original and of the pruned model meet it."""
        measured = before - after if self.metric == "accuracy_drop" else after
        if self.relative:
            measured = after / before if before else 1.0
        slack = _ROUNDING * max(1.0, abs(self.value)) * {"<=": 1, ">=": -1}.get(self.comparison, 0)
        passed = bool(_COMPARISONS[self.comparison](measured, self.value + slack))
        return Checked(
            self.text, self.metric, self.comparison, self.value, "share" if self.relative else "value", measured, passed
        )


@dataclass(frozen=True)
class Checked:
    """A requirement with what was measured; for `result.json`."""

    requirement: str
    metric: str
    comparison: str
    wanted: float
    unit: Literal["share", "value"]
    """`share`: wanted and measured are shares of the original's; `value`: milliseconds, bytes, counts or a score."""
    measured: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.requirement} (measured {self.measured:.4g}{'x' if self.unit == 'share' else ''})"


def parse_requirements(text: str) -> tuple[Requirement, ...]:
    """The requirements that are joined by commas.  Raises UsageError that names the clause that is wrong."""
    clauses = [clause.strip() for clause in text.split(",")]
    return tuple(_parse(clause) for clause in clauses)


def _parse(clause: str) -> Requirement:
    where = f"--require: {clause!r}"
    match = _CLAUSE.fullmatch(clause)
    if not match:
        raise UsageError(f"{where} is not of the form METRIC<=VALUE or METRIC>=VALUE, such as latency<=0.7x")
    metric, comparison, number, unit = match.groups()
    if metric not in METRICS:
        raise UsageError(f"{where}: unknown metric {metric!r}; there are: {', '.join(METRICS)}")
    value, relative = _value(metric, float(number), unit, where)
    if not math.isfinite(value):
        raise UsageError(f"{where}: the number is too large")
    return Requirement(clause, metric, comparison, value, relative)  # type: ignore[arg-type]


def _value(metric: str, number: float, unit: str, where: str) -> tuple[float, bool]:
    """The number in the metric's unit, and whether it is a share of the original's."""
    if metric == "accuracy_drop":
        if unit not in ("", "%"):
            raise UsageError(f"{where}: a drop is a number or has the unit %, such as accuracy_drop<=1%")
        return (number / 100 if unit else number), False
    if unit == "x":
        return number, True
    if metric == "accuracy":
        if unit not in ("", "%"):
            raise UsageError(f"{where}: accuracy is a number or has the unit % or x (of the original's)")
        return (number / 100 if unit else number), False
    if unit == "%":
        return number / 100, True
    if metric == "latency":
        if unit.upper() not in _MILLISECONDS:
            raise UsageError(f"{where}: latency needs the unit ms, us or s, or % or x (of the original's)")
        return number * _MILLISECONDS[unit.upper()], False
    if unit.upper() not in UNITS:
        raise UsageError(f"{where}: unknown unit {unit!r}; there are %, x (of the original's), K, M, G, KB, MB, ...")
    if not unit and number > 1:
        raise UsageError(f"{where}: a share is at most 1; write a unit for absolute numbers (300K), or x for the original's")
    return number * UNITS[unit.upper()], not unit


def needs(requirements: Sequence[Requirement], metric: str) -> bool:
    """Whether some requirement is about `metric` (`accuracy` stands for its drop, too)."""
    return any(item.metric in (metric, f"{metric}_drop") for item in requirements)


def check(requirements: Sequence[Requirement], figures: Mapping[str, tuple[float, float]]) -> list[Checked]:
    """Every requirement with what was measured; `figures` are those of original and pruned model by metric."""
    return [item.check(*figures[item.metric.removesuffix("_drop")]) for item in requirements]
