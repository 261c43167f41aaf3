"""Least squares, layer by layer through the network.  Start reading at `Reconstruct.repair`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.calibration import RUN_BYTES, rows_per_sample
from graphprune.repairing import Layer, Patient
from graphprune.samples import batch_size, whole
from graphprune.walk import Walk

from .base import Repair

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Reconstruct(Repair):
    """Refits every layer behind pruned channels to the original network, given what reaches it in the pruned one (He et al. 2017).

    The last layer of a residual branch is fitted to the sum, so that it also makes up for the error of the other branch.  `ridge` pulls
    towards the old weights, relative to the mean square of the layer's input.
    """

    name: ClassVar[str] = "reconstruct"
    ridge: float = 1e-4

    def repair(self, patient: Patient) -> None:
        """One pass through both networks side by side."""
        samples = whole(patient.calibration.samples, patient.graph)
        size = batch_size(patient.graph, [layer.before.data for layer in patient.layers], RUN_BYTES)
        with Walk(patient.original, samples, size) as original, Walk(patient.pruned, samples, size) as pruned:
            fitted = [layer for layer in patient.layers if patient.may_change(layer) and patient.is_behind_pruned(layer)]
            for number, layer in enumerate(fitted):
                wanted = {name for later in fitted[number:] for name in (later.tail.total, later.tail.straight)}
                self._visit(patient, layer, original, pruned, wanted)
                patient.tick((number + 1) / len(fitted))

    def _visit(self, patient: Patient, layer: Layer, original: Walk, pruned: Walk, wanted: set[str]) -> None:
        pruned.advance_to(layer.after.node)
        tail = layer.tail if layer.tail.other and pruned.knows(layer.tail.other) else layer.tail.alone
        original.advance_past(tail.total, wanted)
        fit = _Fit(patient, layer, self.ridge)
        total = sum(pruned.sizes)
        rng = np.random.default_rng(patient.calibration.seed)
        others = pruned.values(tail.other) if tail.other else [None] * len(pruned.sizes)
        for data, whole_result, other in zip(pruned.values(layer.after.data), original.values(tail.total), others, strict=True):
            picks = layer.after.picks(layer.after.result_shape(data.shape), rows_per_sample(layer.after, total), rng)
            results = layer.after.results(patient.taken(np.asarray(whole_result), tail.total), picks)
            if other is not None:
                results = results - layer.after.results(other, picks)
            fit.add(layer.after.rows(data, picks), results)
        fit.solve()


class _Fit:
    """Ridge regression of one layer, block by block."""

    def __init__(self, patient: Patient, layer: Layer, ridge: float) -> None:
        self.patient = patient
        self.layer = layer
        self.ridge = ridge
        self.old = layer.after.matrix(patient.weight(layer.after.weight).astype(np.float64))
        blocks, columns, results = self.old.shape
        channels = patient.kept_results(layer)
        gain = layer.tail.gain[channels].reshape(blocks, 1, results)
        self.gain = np.where(gain == 0, 1, gain)
        self.offset = layer.tail.offset[channels].reshape(blocks, 1, results)
        self.rows = 0
        self.sum_x, self.sum_y = np.zeros((blocks, columns)), np.zeros((blocks, results))
        self.xx, self.xy = np.zeros((blocks, columns, columns)), np.zeros((blocks, columns, results))

    def add(self, rows: NDArray[np.float32], results: NDArray[np.float32]) -> None:
        """Take in rows and what they should lead to."""
        wanted = ((results - self.offset) / self.gain).astype(np.float32)
        across = rows.transpose(0, 2, 1)
        self.rows += rows.shape[1]
        self.sum_x += rows.sum(axis=1, dtype=np.float64)
        self.sum_y += wanted.sum(axis=1, dtype=np.float64)
        self.xx += np.matmul(across, rows)
        self.xy += np.matmul(across, wanted)

    def solve(self) -> None:
        """Write the new weight, and the new intercept where there is a place for one."""
        shift, layer = self.layer.tail.shift, self.layer.after
        x, y = self.sum_x / self.rows, self.sum_y / self.rows
        xx, xy = self.xx / self.rows, self.xy / self.rows
        if shift is not None:
            xx, xy = xx - x[:, :, None] * x[:, None, :], xy - x[:, :, None] * y[:, None, :]
        new = np.stack([self._ridge(*parts) for parts in zip(xx, xy, self.old, strict=True)])
        self.patient.set_weight(layer.weight, layer.weight_of(new))
        if shift is not None:
            intercept = (y - np.einsum("bc,bcr->br", x, new)).reshape(-1)
            self.patient.set_intercept(shift, intercept, self.layer)

    def _ridge(self, xx: Wide, xy: Wide, old: Wide) -> Wide:
        level = max(self.ridge * float(np.trace(xx)) / len(xx), 1e-10)
        return np.asarray(old + np.linalg.solve(xx + level * np.eye(len(xx)), xy - xx @ old))
