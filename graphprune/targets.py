"""Budgets as the user writes them: `macs=0.5`, `params=300K`, `bytes=2MB`, `latency=8ms`.  Start reading at `parse_target`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .cost import KINDS, Cost
from .errors import UsageError

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
"""What a number may be followed by, in capitals."""

TIMES = {"": 1.0, "NS": 1.0, "US": 1e3, "MS": 1e6, "S": 1e9}
"""The same for latencies, in nanoseconds."""

_VALUE = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)")


@dataclass(frozen=True)
class Target:
    """At most `value` of `kind`: a fraction of the original's, or an absolute number."""

    kind: str
    value: float
    absolute: bool = False

    def limit(self, original: Cost) -> float:
        """The largest cost that meets the target."""
        return self.value if self.absolute else self.value * original.of(self.kind)

    def __str__(self) -> str:
        if not self.absolute:
            return f"{self.kind}={self.value:g}"
        if self.kind == "latency":
            return f"{self.kind}={self.value / 1e6:g}ms"
        size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "K")) if self.value >= s), (1.0, ""))
        return f"{self.kind}={self.value / size:g}{unit}"


def parse_target(text: str) -> Target:
    """The target that `KIND=VALUE` describes.  Raises UsageError where it is malformed or of an unknown kind."""
    kind, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(f"target {text!r} is not of the form KIND=VALUE, such as macs=0.5 or params=300K")
    if kind not in KINDS:
        raise UsageError(f"target {text!r}: unknown kind {kind!r}; there are: {', '.join(KINDS)}")
    match = _VALUE.fullmatch(value)
    units = TIMES if kind == "latency" else UNITS
    if not match or match[2].upper() not in units:
        known = "ms, us, s" if kind == "latency" else "K, M, G, KB, MB, ..."
        raise UsageError(f"target {text!r}: {value!r} is neither a fraction nor a number with a unit ({known})")
    number, unit = float(match[1]), match[2].upper()
    if not math.isfinite(number * units[unit]):
        raise UsageError(f"target {text!r}: the number is too large")
    if unit:
        return Target(kind, number * units[unit], absolute=True)
    if kind == "channels" and number > 1:
        return Target(kind, number, absolute=True)
    if not 0 < number <= 1:
        example = "8ms" if kind == "latency" else "300M"
        raise UsageError(
            f"target {text!r}: a fraction lies above 0 and is at most 1; write a unit for absolute numbers ({example})"
        )
    return Target(kind, number)
