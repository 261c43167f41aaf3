"""Scores of another criterion, group by group in the measure of the network's outputs.  Start reading at `Probed.score`."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, ClassVar

import numpy as np

from graphprune import ranges, registry
from graphprune.evidence import QUICK_REPAIR, Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Sight

LEAST = 1e-12
"""The error of groups that move nothing: they leave first, in the order of their scores."""

SAMPLES = 64
"""At most so many samples measure: one number for a group needs no more."""

TANGIBLE = 0.01
"""The units that leave have at least this share of the group's scores: what idle ones add up to is rounding."""


@dataclass(frozen=True)
class Probed(Importance):
    """Scores of `rank`, scaled so that the units that leave first add up to how far the network's outputs then move.

    The errors of layers that criteria such as `obspa` predict do not say what becomes of them behind the layer: much in a stem or
    a head, little in a branch beside others.  One measurement tells, for each group: without the first `share` of its units, the
    other groups whole, and the readers repaired.  Scores add up to errors, so `distortion` and `knapsack` can budget them.
    Where outputs cannot be compared, or the network is above 2 GB, scores are those of `rank`.
    """

    name: ClassVar[str] = "probed"
    sees: ClassVar[Sight] = "activations"
    rank: str = "obspa"
    share: Annotated[float, ranges.Gt(0), ranges.Lt(1)] = 0.25

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """The scores of `rank` times measured over predicted error; as they are where there is no error to compare."""
        scores: Vector | None = registry.make("importance", self.rank).score(group, evidence)
        if scores is None or not evidence.outputs_tell(SAMPLES):
            return scores
        scores = evidence.completed(group, scores)
        order = np.argsort(scores, kind="stable")
        sums = np.cumsum(scores[order])
        tangible = int(np.searchsorted(sums, TANGIBLE * sums[-1])) + 1
        gone = min(max(round(self.share * group.size), tangible), group.size - 1)
        predicted = float(sums[gone - 1])
        if predicted <= 0:
            return scores
        measured = evidence.error_keeping({group.id: sorted(order[gone:].tolist())}, QUICK_REPAIR, SAMPLES)
        return scores * (max(measured, LEAST) / predicted) if isfinite(measured) else scores
