"""Slices, concatenations and transposes for TVM that say together what one movement of data says.

    Concat of slices that take turns (the Focus of YOLOX and YOLOv5, patch merging)  ->  Reshape, Transpose, Reshape
    Transpose of a Concat of parts that were transposed the other way                ->  Concat of the parts as they were

Start reading at `moved_once`.
"""

from __future__ import annotations

import math
from itertools import permutations, product
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from .tvm_folding import FOLDED, mutated
from .tvm_loops import Expr

Steps = dict[int, tuple[int, int]]
"""For each axis that a slice shortens, where it begins and its step."""

MOST_ELEMENTS = 2**24
"""Elements of tensors whose order is looked at, one by one."""


@tvm.transform.module_pass(opt_level=0, name="MovedOnce")  # type: ignore[untyped-decorator]
def moved_once(module: Any, context: Any) -> Any:
    """Write movements of data that undo or complete each other as one."""
    return relax.transform.DeadCodeElimination()(mutated(module, _Mover))


@relax.expr_functor.mutator
class _Mover(relax.PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        rules = {"relax.concat": self._interleaved, "relax.permute_dims": self._concatenated}
        rule = rules.get(getattr(call.op, "name", ""))
        found = None if rule is None else rule(call)
        return call if found is None else found

    def _interleaved(self, concat: Any) -> Expr | None:
        """A concatenation of slices of one tensor that take each index of some axes once, in order; None for another."""
        parts = [self._slices(part) for part in _parts(concat)]
        if len(parts) < 2 or not all(source.same_as(parts[0][0]) for source, _ in parts):
            return None
        source, first = parts[0]
        steps = {axis: step for axis, (_, step) in first.items()}
        sizes, into = _sizes(source), int(concat.attrs.axis) % len(source.ty.shape)
        if sizes is None or into in steps or any(sizes[axis] % step for axis, step in steps.items()):
            return None
        for axes in permutations(steps):
            if [taken for _, taken in parts] == _in_turn(steps, axes):
                return self._split(source, sizes, steps, axes, into)
        return None

    def _slices(self, part: Expr) -> tuple[Expr, Steps]:
        """What a part is sliced from, and how."""
        taken: Steps = {}
        while (call := self._made_by(part, "relax.strided_slice")) is not None:
            here = _steps(call)
            if here is None or taken.keys() & here.keys():
                break
            taken |= here
            part = call.args[0]
        return part, taken

    def _split(self, source: Expr, sizes: list[int], steps: dict[int, int], axes: tuple[int, ...], into: int) -> Expr:
        """Every step of the axes in a turn of its own; the turns go in front of the axis that they are merged into."""
        view, outer, turn = list[int](), dict[int, int](), dict[int, int]()
        for axis, size in enumerate(sizes):
            outer[axis] = len(view)
            view.append(size // steps.get(axis, 1))
            if axis in steps:
                turn[axis] = len(view)
                view.append(steps[axis])
        order = [outer[axis] for axis in range(len(sizes))]
        order[into:into] = [turn[axis] for axis in axes]
        result = [size // steps.get(axis, 1) for axis, size in enumerate(sizes)]
        result[into] *= math.prod(steps.values())
        apart = self.builder_.emit(relax.op.reshape(source, view))
        return relax.op.reshape(self.builder_.emit(relax.op.permute_dims(apart, order)), result)

    def _concatenated(self, transpose: Any) -> Expr | None:
        """A transpose of a concatenation whose parts it brings back into the order that they had; None for another."""
        concat = self._made_by(transpose.args[0], "relax.concat")
        if concat is None or transpose.attrs.axes is None:
            return None
        axes, parts = [int(axis) for axis in transpose.attrs.axes], _parts(concat)
        found = [self._in_order(part, axes) for part in parts]
        if not parts or any(source is None for source in found):
            return None
        shapes = [[_sizes(part)[axis] for axis in axes] for part in parts]  # type: ignore[index]
        back = [self.builder_.emit(relax.op.reshape(source, shape)) for source, shape in zip(found, shapes, strict=True)]
        return relax.op.concat(back, axis=axes.index(int(concat.attrs.axis) % len(axes)))

    def _in_order(self, part: Expr, axes: list[int]) -> Expr | None:
        """What a part was made of by transposes and reshapes, if its elements have that order once it is transposed."""
        moves = []
        while (call := self._made_by(part, "relax.permute_dims", "relax.reshape")) is not None:
            sizes, source = _sizes(part), _sizes(call.args[0])
            if sizes is None or source is None or math.prod(sizes) > MOST_ELEMENTS:
                return None
            moves.append((call, sizes))
            part = call.args[0]
            numbers = np.arange(math.prod(source), dtype=np.int32).reshape(source)
            for move, shape in reversed(moves):
                numbers = FOLDED[move.op.name](move, shape, numbers)
            if (np.diff(numbers.transpose(axes).ravel()) == 1).all():
                return part
        return None

    def _made_by(self, expression: Expr, *names: str) -> Any | None:
        """The call of one of these operators that gives a value; None where it comes from elsewhere."""
        found = self.lookup_binding(expression) if isinstance(expression, relax.Var) else None
        return found if isinstance(found, relax.Call) and getattr(found.op, "name", "") in names else None


def _steps(call: Any) -> Steps | None:
    """How a slice of static sizes takes every so many indices of some axes, beginning within the first step; None for another."""
    sizes, numbers = _sizes(call.args[0]), [_numbers(each) for each in call.args[1:]]
    if sizes is None or len(numbers) != 4 or not all(numbers):
        return None
    found = {}
    for axis, begin, end, step in zip(*(each or [] for each in numbers), strict=True):
        if not 0 <= begin < step or end < sizes[axis]:
            return None
        found[axis % len(sizes)] = begin, step
    return found


def _in_turn(steps: dict[int, int], axes: tuple[int, ...]) -> list[Steps]:
    """Where slices begin, and their steps, that take turns along these axes, the last one fastest."""
    turns = product(*(range(steps[axis]) for axis in axes))
    return [{axis: (begin, steps[axis]) for axis, begin in zip(axes, turn, strict=True)} for turn in turns]


def _parts(concat: Any) -> list[Expr]:
    """What is concatenated, where it is given one by one along a given axis."""
    listed = isinstance(concat.args[0], relax.Tuple) and concat.attrs.axis is not None
    return list(concat.args[0]) if listed else []


def _sizes(expression: Expr) -> list[int] | None:
    """The shape of a value; None where it is dynamic."""
    shape = expression.ty.shape
    static = isinstance(shape, relax.ShapeExpr) and all(isinstance(size, tirx.IntImm) for size in shape)
    return [int(size) for size in shape] if static else None


def _numbers(values: Expr) -> list[int] | None:
    """Numbers that are given as a tuple; None where one is computed."""
    found = [getattr(value, "value", value) for value in values]
    return [int(value) for value in found] if all(isinstance(value, int | tirx.IntImm) for value in found) else None
