"""Statistics of every layer as they were.  Start reading at `Statistics.repair`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.calibration import rows_per_sample
from graphprune.repairing import Layer, Patient
from graphprune.samples import sample_count
from graphprune.walk import Walk

from .base import Repair


@dataclass(frozen=True)
class Statistics(Repair):
    """Gives each channel behind removed ones its original mean and variance (BatchNormalization re-estimation, Li et al. 2020).

    Works whether the BatchNormalization was folded or not: the layer in front of it is scaled and shifted.
    """

    name: ClassVar[str] = "statistics"

    def repair(self, patient: Patient) -> None:
        """One pass through both networks side by side."""
        runs = patient.calibration.runs
        layers = [layer for layer in patient.damaged if layer.tail.shift is not None]
        patient.restore(layers)
        with Walk(patient.original, runs) as original, Walk(patient.pruned, runs) as pruned:
            for number, layer in enumerate(layers):
                pruned.advance_to(layer.after.node)
                original.advance_past(layer.before.result, {later.before.result for later in layers[number:]})
                self._refit(patient, layer, original, pruned)
                patient.tick((number + 1) / len(layers))

    @staticmethod
    def _refit(patient: Patient, layer: Layer, original: Walk, pruned: Walk) -> None:
        node, shift = layer.after, layer.tail.shift
        assert shift is not None
        matrix = node.matrix(patient.weight(node.weight).astype(np.float64))
        own_bias = patient.weight(node.bias).astype(np.float64) if node.bias else np.zeros(1)
        fraction = rows_per_sample(node, sample_count(pruned.runs))
        rng = np.random.default_rng(patient.calibration.seed)
        given, wanted = [], []
        pairs = [
            (data, patient.taken(np.asarray(result), layer.before.result))
            for data, result in zip(pruned.values(node.data), original.values(layer.before.result), strict=True)
        ]
        if not node.may_compare(pairs):
            return
        for data, result in pairs:
            picks = node.picks(node.result_shape(data.shape), fraction, rng)
            given.append(np.matmul(node.rows(data, picks), matrix.astype(np.float32)))
            wanted.append(node.results(result, picks))
        old, new = np.concatenate(given, axis=1), np.concatenate(wanted, axis=1)
        scale = new.std(axis=1, dtype=np.float64) / np.maximum(old.std(axis=1, dtype=np.float64), 1e-12)
        scale = np.where(old.std(axis=1) > 0, scale, 1.0)
        patient.set_weight(node.weight, node.weight_of(matrix * scale[:, None, :]))
        moved = new.mean(axis=1, dtype=np.float64) - scale * old.mean(axis=1, dtype=np.float64)
        patient.move_intercept(shift, moved.reshape(-1) - own_bias)
