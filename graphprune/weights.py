"""Weights as criteria see them: for a group, matrices of (units x everything else).

No criterion asks what operator it is looking at, nor along which axis.  Start reading at `Weights.rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cutting import in_threads, sideways
from .external import Reader, is_external, row_reader
from .graph import Graph, item_bits
from .groups import Group, Member
from .real_values import Numbers

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]

STATISTICS = ("bias", "mean", "variance")
"""Parameters that shift or describe activations; criteria on weights leave them out."""


class Weights:
    """The weights of a graph, read once per tensor and summed once per axis."""

    def __init__(self, graph: Graph, numbers: Mapping[str, Numbers]) -> None:
        """`numbers` says how those of quantised weights are read."""
        self._graph = graph
        self._numbers = numbers
        self._sums: dict[tuple[str, int, float], Vector] = {}

    def rows(self, group: Group, member: Member) -> Matrix:
        """The weights of one member as a matrix with a row for each unit of the group.

        Where a unit occurs several times its occurrences stand side by side; where it does not occur the row is zero.
        """
        array = np.moveaxis(np.asarray(self._array(member.tensor), np.float32), member.axis, 0)
        flat = array.reshape(len(array), -1)
        order = np.argsort(member.units, kind="stable")
        units, positions = member.units[order], member.positions[order]
        occurrence = np.arange(len(units)) - np.searchsorted(units, units)
        matrix = np.zeros((group.size, int(occurrence.max()) + 1, flat.shape[1]), np.float32)
        matrix[units, occurrence] = flat[positions]
        return matrix.reshape(group.size, -1)

    def power_sums(self, group: Group, member: Member, power: float) -> Vector:
        """For each unit the sum of |w| ** power over the member's weights."""
        key = member.tensor, member.axis, power
        if key not in self._sums:
            self._sums[key] = self._axis_sums(*key)
        weights = self._sums[key][member.positions]
        return np.asarray(np.bincount(member.units, weights, minlength=group.size), np.float64)

    def unit_sums(self, group: Group, member: Member, values: NDArray[Any]) -> Vector:
        """For each unit the sum of `values`, an array of the weight's shape, over the member's places."""
        others = tuple(k for k in range(values.ndim) if k != member.axis)
        sums = values.sum(axis=others, dtype=np.float64)[member.positions]
        return np.asarray(np.bincount(member.units, sums, minlength=group.size), np.float64)

    def _axis_sums(self, tensor: str, axis: int, power: float) -> Vector:
        """The sum of |w| ** power over all axes but one; those of the first two axes come from one reading."""
        array = self._array(tensor)
        if axis > 1 or array.ndim == 1:
            others = tuple(k for k in range(array.ndim) if k != axis)
            return np.asarray((np.abs(np.asarray(array, np.float32)) ** power).sum(axis=others, dtype=np.float64))
        turned = array.ndim == 2 and sideways(array)
        array = array.T if turned else array
        sums = _sums_of_both(array.shape, self._reader(tensor) or _slices(array), power)
        self._sums |= {(tensor, k, power): each for k, each in enumerate(reversed(sums) if turned else sums)}
        return self._sums[tensor, axis, power]

    def _array(self, tensor: str) -> NDArray[Any]:
        """The real values of a weight, in the type that it has unless it is quantised."""
        array = self._graph.constant(tensor)
        assert array is not None
        numbers = self._numbers.get(tensor)
        return array if numbers is None else numbers.real(array, self._graph.constant)

    def _reader(self, tensor: str) -> Reader | None:
        """Reads rows of a weight that is in a file, a byte or more for each of its numbers, which are what they stand for."""
        stored = self._graph.initializers[tensor]
        plain = is_external(stored) and item_bits(stored.data_type) >= 8 and tensor not in self._numbers
        return row_reader(stored) if plain else None


def _slices(array: NDArray[Any]) -> Reader:
    return lambda start, stop: array[start:stop]


def _sums_of_both(shape: Sequence[int], read: Reader, power: float) -> tuple[Vector, Vector]:
    """[a, b, ...] -> [a], [b]: the sums of |w| ** power, read once."""
    count, columns, inner = shape[0], shape[1], prod(shape[2:])
    by_row = np.zeros(count)

    def sums(starts: range) -> Vector:
        total, sizes = np.zeros(columns * inner), np.empty((min(starts.step, count), columns * inner), np.float32)
        for start in starts:
            piece = slice(start, min(start + starts.step, starts.stop))
            rows = read(start, piece.stop).reshape(piece.stop - start, columns * inner)
            size = _powers(np.asarray(rows, np.float32), power, sizes[: len(rows)])
            by_row[piece] = size.sum(axis=1)
            total += size.sum(axis=0)
        return total

    total = np.sum(in_threads(sums, count, columns * inner), axis=0)
    return by_row, total.reshape(columns, inner).sum(axis=1)


def _powers(values: Matrix, power: float, out: Matrix) -> Matrix:
    """|values| ** power."""
    size: Matrix = np.abs(values, out=out)
    if power == 2:
        return np.square(size, out=out)
    return size if power == 1 else np.power(size, power, out=out)


def scored_members(group: Group) -> list[Member]:
    """The members whose weights say how much a unit matters: not biases, statistics and constants."""
    weighty = [m for m in group.members if m.role != "carrier" or m.parameter in ("weight", "scale")]
    return weighty or [m for m in group.members if m.parameter not in STATISTICS]
