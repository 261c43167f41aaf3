"""Repairs with a closed form in the moments of the original network: one run, no sequence.  Start reading at `ClosedForm`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.labels import Ids
from graphprune.repairing import Layer, Patient

from .base import Repair

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class ClosedForm(Repair):
    """Lets what is kept stand in for what is gone: removed columns are predicted as transfer @ kept ones, around their means."""

    @abstractmethod
    def transfer(self, covariance: Wide, kept: NDArray[np.bool_], channel: Ids) -> Wide:
        """[kept columns, removed columns]; `channel` is the channel of each column."""

    def repair(self, patient: Patient) -> None:
        """Every layer that reads removed channels."""
        layers = [layer for layer in patient.layers if patient.may_change(layer) and self._is_cut(patient, layer)]
        patient.restore(layers)
        patient.calibration.gather(layer.before for layer in layers)
        for number, layer in enumerate(layers):
            self._refit(patient, layer)
            patient.tick((number + 1) / len(layers))

    @staticmethod
    def _is_cut(patient: Patient, layer: Layer) -> bool:
        return any(len(cut.columns) < layer.before.columns for cut in patient.cuts(layer))

    def _refit(self, patient: Patient, layer: Layer) -> None:
        before, after = layer.before, layer.after
        moments = patient.calibration.moments(before)
        original = patient.graph.constant(before.weight)
        assert original is not None
        old = before.matrix(np.asarray(original, np.float64))
        new = np.array(after.matrix(patient.weight(after.weight).astype(np.float64)))
        moved = np.zeros((new.shape[0], new.shape[2]))
        for cut in patient.cuts(layer):
            kept = np.isin(np.arange(before.columns), cut.columns)
            block = old[cut.block][:, cut.results]
            mean = moments.mean[cut.block]
            spread = moments.covariance(cut.block)
            if layer.tail.shift is None:
                spread = spread + np.outer(mean, mean)
            more = self.transfer(spread, kept, before.channels()[cut.block]) @ block[~kept]
            order = np.argsort(np.argsort(cut.columns))
            new[cut.after] = (block[kept] + more)[order]
            moved[cut.after] = mean[~kept] @ block[~kept] - mean[kept] @ more
        patient.set_weight(after.weight, after.weight_of(new))
        if layer.tail.shift is not None:
            patient.move_intercept(layer.tail.shift, moved.reshape(-1))
