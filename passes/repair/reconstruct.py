"""Least squares, layer by layer through the network.  Start reading at `Reconstruct.repair`."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune import ranges
from graphprune.calibration import Block, rows_per_sample
from graphprune.linear import Rows
from graphprune.repairing import Gone, Layer, Patient
from graphprune.samples import sample_count
from graphprune.tails import Tail
from graphprune.walk import Walk

from .base import Repair

Wide = NDArray[np.float64]

HELD_BYTES = 2**29
"""Rows of one layer that are held for further rounds; a layer with more gets one round."""


@dataclass(frozen=True)
class Reconstruct(Repair):
    """Refits every layer behind pruned channels to the original network, given what reaches it now (He et al. 2017).

    The last layer of a residual branch is fitted to the sum, so that it also makes up for the error of the other branch.  In
    front of a ReLU only what passes it is fitted, in `rounds` rounds (Zhang et al. 2015).  `ridge` pulls towards the old weights,
    relative to the mean square of the layer's input.
    """

    name: ClassVar[str] = "reconstruct"
    ridge: Annotated[float, ranges.Ge(0)] = 1e-4
    rounds: Annotated[int, ranges.Ge(0)] = 8

    def repair(self, patient: Patient) -> None:
        """One pass through both networks side by side."""
        runs = patient.calibration.runs
        patient.restore(patient.damaged)
        fitted: list[Layer | Gone] = sorted([*patient.damaged, *patient.constants], key=_position)
        with Walk(patient.original, runs) as original, Walk(patient.pruned, runs) as pruned:
            for number, layer in enumerate(fitted):
                wanted = {name for later in fitted[number:] for name in (later.tail.total, later.tail.straight)}
                if isinstance(layer, Gone):
                    self._visit_constant(patient, layer, original, pruned, wanted)
                else:
                    self._visit(patient, layer, original, pruned, wanted)
                patient.tick((number + 1) / len(fitted))

    def _visit_constant(self, patient: Patient, gone: Gone, original: Walk, pruned: Walk, wanted: set[str]) -> None:
        """What a branch that left adds to its sum: the mean of what is missing there."""
        pruned.advance_to(gone.node)
        original.advance_past(gone.tail.total, wanted)
        axis, name = gone.tail.axis, gone.tail.total
        totals = [_by_channel(patient.taken(np.asarray(total), name), axis) for total in original.values(name)]
        others = [_by_channel(np.asarray(other), axis) for other in pruned.values(gone.other)]
        count = sum(len(other) for other in others)
        constant, aims = np.zeros(others[0].shape[1]), totals
        for _ in range(1 + (self.rounds if gone.tail.range != (-inf, inf) else 0)):
            missing = [(aim - other).sum(axis=0, dtype=np.float64) for aim, other in zip(aims, others, strict=True)]
            constant = np.sum(missing, axis=0) / count
            given = [other + constant.astype(np.float32) for other in others]
            aims = [seen(total, each, gone.tail.range) for total, each in zip(totals, given, strict=True)]
        patient.set_constant(gone, constant)

    def _visit(self, patient: Patient, layer: Layer, original: Walk, pruned: Walk, wanted: set[str]) -> None:
        pruned.advance_to(layer.after.node)
        tail = layer.tail if layer.tail.other and pruned.knows(layer.tail.other) else layer.tail.alone
        original.advance_past(tail.total, wanted)
        totals = [patient.taken(np.asarray(total), tail.total) for total in original.values(tail.total)]
        if not layer.after.may_compare(zip(pruned.values(layer.after.data), totals, strict=True)):
            return
        fit, block = _Fit(patient, layer, tail, self.ridge), Block()
        fraction = rows_per_sample(layer.after, sample_count(pruned.runs))
        rng = np.random.default_rng(patient.calibration.seed)
        others = pruned.values(tail.other) if tail.other else [None] * len(pruned.runs)
        for data, total, other in zip(pruned.values(layer.after.data), totals, others, strict=True):
            picks = layer.after.picks(layer.after.result_shape(data.shape), fraction, rng)
            rest = () if other is None else (layer.after.results(other, picks),)
            block.add(layer.after.rows(data, picks), layer.after.results(total, picks), *rest)
            if block.is_full:
                fit.add(*block.taken())
        if not block.is_empty:
            fit.add(*block.taken())
        fit.solve(self.rounds)


def _position(layer: Layer | Gone) -> int:
    return layer.end.sum if isinstance(layer, Gone) else layer.before.node


def _by_channel(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """[everything else, channels]."""
    return np.asarray(np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]), np.float32)


def seen(total: Rows, given: Rows, bounds: tuple[float, float]) -> Rows:
    """What to aim at: the original total, but where that is clipped away, whatever is given beyond the bound is as good."""
    low, high = bounds
    aim = total if low == -inf else np.where(total <= low, np.minimum(given, low), total)
    return aim if high == inf else np.where(total >= high, np.maximum(given, high), aim)


def _outer(one: Wide, other: Wide) -> Wide:
    """Block by block."""
    return one[:, :, None] * other[:, None, :]


class _Fit:
    """Ridge regression of one layer, block by block, to what is seen of the total that its results go into."""

    def __init__(self, patient: Patient, layer: Layer, tail: Tail, ridge: float) -> None:
        self.patient = patient
        self.layer = layer
        self.tail = tail
        self.ridge = ridge
        self.old = layer.after.matrix(patient.weight(layer.after.weight).astype(np.float64))
        blocks, columns, results = self.old.shape
        channels = patient.kept_results(layer)
        gain = tail.gain[channels].reshape(blocks, 1, results)
        self.gain = np.where(gain == 0, 1, gain).astype(np.float32)
        self.offset = tail.offset[channels].reshape(blocks, 1, results).astype(np.float32)
        self.count = 0
        self.pivot_x, self.pivot_y = np.zeros((blocks, columns), np.float32), np.zeros((blocks, results), np.float32)
        self.sum_x, self.xx = np.zeros((blocks, columns)), np.zeros((blocks, columns, columns))
        self.sum_y, self.xy = np.zeros((blocks, results)), np.zeros((blocks, columns, results))
        self.parts: list[tuple[Rows, Rows, Rows | float]] = []
        self.held = 0

    def add(self, rows: Rows, total: Rows, rest: Rows | float = 0.0) -> None:
        """Take in rows, the total that they should lead to, and what is added on the way to it.

        Sums are of what is left beside the first rows' means: products of large numbers would hide a small spread.
        """
        if not self.count and rows.shape[1]:
            self.pivot_x = rows.mean(axis=1)
            self.pivot_y = self._wanted(total, rest).mean(axis=1)
        self.count += rows.shape[1]
        beside = rows - self.pivot_x[:, None, :]
        self.sum_x += beside.sum(axis=1, dtype=np.float64)
        self.xx += np.matmul(beside.transpose(0, 2, 1), beside)
        self._aim(beside, total, rest)
        self.held += beside.nbytes + 2 * total.nbytes
        if self.tail.range != (-inf, inf) and self.held <= HELD_BYTES:
            self.parts.append((beside, total, rest))

    def _aim(self, beside: Rows, total: Rows, rest: Rows | float) -> None:
        wanted = self._wanted(total, rest) - self.pivot_y[:, None, :]
        self.sum_y += wanted.sum(axis=1, dtype=np.float64)
        self.xy += np.matmul(beside.transpose(0, 2, 1), wanted)

    def _wanted(self, total: Rows, rest: Rows | float) -> Rows:
        """What the layer itself should give."""
        return (total - rest - self.offset) / self.gain

    def solve(self, rounds: int) -> None:
        """Write the new weight, and the new intercept where there is a place for one."""
        shift, layer = self.tail.shift, self.layer.after
        mean = self.sum_x / self.count
        xx = self.xx / self.count - _outer(mean, mean)
        if shift is None:
            xx = xx + _outer(mean + self.pivot_x, mean + self.pivot_x)
        inverse = np.asarray(np.linalg.inv(xx + self._pull(xx)), dtype=np.float64)
        new, intercept = self._fitted(inverse, xx)
        if self.held <= HELD_BYTES:
            for _ in range(rounds if self.parts else 0):
                self._aim_at_seen(new, intercept)
                new, intercept = self._fitted(inverse, xx)
        self.patient.set_weight(layer.weight, layer.weight_of(new))
        if shift is not None:
            self.patient.set_intercept(shift, intercept.reshape(-1), self.layer)

    def _pull(self, xx: Wide) -> Wide:
        """What pulls towards the old weights: the ridge, and more where there are few rows for each column."""
        spread = np.diagonal(xx, axis1=1, axis2=2)
        level = np.maximum(self.ridge * spread.mean(axis=1, keepdims=True), 1e-10)
        return np.asarray((level + spread * xx.shape[1] / self.count)[:, :, None] * np.eye(xx.shape[1]))

    def _fitted(self, inverse: Wide, xx: Wide) -> tuple[Wide, Wide]:
        """The matrix and the intercept for the present aims."""
        x, y = self.sum_x / self.count, self.sum_y / self.count
        xy = self.xy / self.count - _outer(x, y)
        x, y = x + self.pivot_x, y + self.pivot_y
        if self.tail.shift is None:
            xy = xy + _outer(x, y)
        new = self.old + np.matmul(inverse, xy - np.matmul(xx, self.old))
        return new, np.zeros_like(y) if self.tail.shift is None else y - np.einsum("bc,bcr->br", x, new)

    def _aim_at_seen(self, matrix: Wide, intercept: Wide) -> None:
        """Where the original total is clipped away, whatever the layer gives beyond the bound is as good."""
        self.sum_y[:], self.xy[:] = 0, 0
        thin, base = matrix.astype(np.float32), intercept + np.einsum("bc,bcr->br", self.pivot_x, matrix)
        level = base.astype(np.float32)[:, None, :] * self.gain + self.offset
        for beside, total, rest in self.parts:
            given = np.matmul(beside, thin) * self.gain + level + rest
            self._aim(beside, seen(total, given, self.tail.range), rest)
