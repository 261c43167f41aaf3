"""The notation of typing rules: `[b,(g i),_...] [(g o),i,_...] [(g o)]? -> [b,(g o),_...]`.

A rule lists the axes of each operand and, after the arrow, of each result.  An axis is

    c        a dimension; equal names are unified wherever they stand
    C        a dimension that is needed whole (an upper-case name is pinned)
    (h d)    a product of dimensions in memory order
    _        an axis that the operator needs whole: pinned
    ...      any number of axes, carried from operands to results
    _...     any number of axes, all pinned

`[...]?` is an operand that may be absent.  Start reading at `parse`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

Axis = tuple[str, ...]
"""The factor names of one axis; a plain dimension has one."""

PINNED = "_"
REST = "..."
PINNED_REST = "_..."

_OPERAND = re.compile(r"\[([^\]]*)\](\??)")
_AXIS = re.compile(r"\(([a-zA-Z0-9 ]+)\)|(_\.\.\.|\.\.\.|_|[a-zA-Z][a-zA-Z0-9]*)")


@dataclass(frozen=True)
class Operand:
    """The axes of one operand or result."""

    axes: tuple[Axis, ...]
    optional: bool = False

    @property
    def rest(self) -> int | None:
        """Where `...` or `_...` stands, or None."""
        return next((k for k, axis in enumerate(self.axes) if axis[0] in (REST, PINNED_REST)), None)

    def spread(self, rank: int) -> list[Axis] | None:
        """One axis pattern for each of `rank` axes, or None if the rank does not fit."""
        at = self.rest
        if at is None:
            return list(self.axes) if rank == len(self.axes) else None
        extra = rank - len(self.axes) + 1
        if extra < 0:
            return None
        token = self.axes[at][0]
        middle = [(PINNED,) if token == PINNED_REST else (f"...{k}",) for k in range(extra)]
        return [*self.axes[:at], *middle, *self.axes[at + 1 :]]

    @property
    def names(self) -> set[str]:
        """The dimension names that this operand mentions."""
        return {name for axis in self.axes for name in axis if name not in (PINNED, REST, PINNED_REST)}


@dataclass(frozen=True)
class Rule:
    """A parsed rule."""

    text: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]


@cache
def parse(text: str) -> Rule:
    """Parse a rule.  Raises ValueError where the text is not in the notation."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"rule {text!r} has no '->'")
    return Rule(text, _operands(left, text), _operands(right, text))


def _operands(text: str, rule: str) -> tuple[Operand, ...]:
    if _OPERAND.sub("", text).strip():
        raise ValueError(f"rule {rule!r}: cannot read {_OPERAND.sub('', text).strip()!r}")
    return tuple(Operand(_axes(body, rule), mark == "?") for body, mark in _OPERAND.findall(text))


def _axes(body: str, rule: str) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    for part in filter(None, (part.strip() for part in body.split(","))):
        match = _AXIS.fullmatch(part)
        if not match:
            raise ValueError(f"rule {rule!r}: cannot read the axis {part!r}")
        axes.append(tuple(match[1].split()) if match[1] else (match[2],))
    return tuple(axes)
