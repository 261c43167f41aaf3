"""Concatenation for TVM: each part is copied to its place, row by row.

TVM's own loop asks for each element which part it comes from, which takes longer than many a convolution.  Start reading at
`concatenation`.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from .tvm_tiles import COPIES, Machine

Loops = list[tuple[Any, int]]
"""Variables and how far they run, from the outside."""


def concatenation(parts: list[Any], axis: int, machine: Machine) -> Any:
    """The parts, of static sizes, side by side along an axis; threads share the rows in front of it."""
    shape = [int(size) for size in parts[0].shape]
    shape[axis] = sum(int(part.shape[axis]) for part in parts)
    kind = tirx.ForKind.PARALLEL if machine.shares(math.prod(shape), COPIES) else tirx.ForKind.SERIAL

    def body(sources: list[Any], targets: list[Any]) -> Any:
        rows = _loops(shape[:axis])
        copies, start = [], 0
        for source in sources:
            copies.append(_copy(source, targets[0], [variable for variable, _ in rows], axis, start))
            start += int(source.shape[axis])
        longest = max(range(axis), key=lambda k: shape[k], default=None)
        return _nest(rows, tirx.SeqStmt(copies), {longest: kind})

    return te.extern([shape], parts, body, name="concatenation", dtype=str(parts[0].dtype))


def _copy(source: Any, target: Any, row: list[Any], axis: int, start: int) -> Any:
    """One part of one row; `start` is where it goes along the axis."""
    loops = _loops([int(size) for size in source.shape[axis:]])
    index = [variable for variable, _ in loops]
    place = [index[0] + start, *index[1:]]
    return _nest(loops, tirx.BufferStore(target, tirx.BufferLoad(source, [*row, *index]), [*row, *place]), {})


def _loops(extents: list[int]) -> Loops:
    return [(tirx.Var(f"i{k}", "int64"), extent) for k, extent in enumerate(extents)]


def _nest(loops: Loops, body: Any, kinds: dict[int | None, Any]) -> Any:
    for k, (variable, extent) in reversed(list(enumerate(loops))):
        zero, end = tirx.IntImm("int64", 0), tirx.IntImm("int64", extent)
        body = tirx.For(variable, zero, end, kinds.get(k, tirx.ForKind.SERIAL), body)
    return body
