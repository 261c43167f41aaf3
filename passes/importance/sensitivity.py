"""Error curves that are measured, group by group.  Start reading at `Sensitivity.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from graphprune import registry
from graphprune.convex import TIE, hull_slopes
from graphprune.evidence import Evidence
from graphprune.groups import Group, Indices
from graphprune.weights import Vector

from .base import Importance, Sight


@dataclass(frozen=True)
class Sensitivity(Importance):
    """How far the network's outputs move when the group alone gets narrower (sensitivity analysis, Li et al. 2017).

    Units leave in the order of the criterion `rank`; the network runs with `points` widths of each group, on up to 256 samples,
    and the curve is convex in between.  Scores add up to the error, so `distortion` and `knapsack` can budget them.
    """

    name: ClassVar[str] = "sensitivity"
    sees: ClassVar[Sight] = "outputs"
    rank: str = "path"
    points: Annotated[int, Ge(1)] = 4

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """The rise of the error with each unit: mean squared change of the outputs over their variance."""
        ranking = registry.make("importance", self.rank).score(group, evidence)
        if ranking is None or evidence.calibration is None:
            return None
        worst_first = np.argsort(ranking, kind="stable")
        steps, errors = evidence.error_curve(group, worst_first, self.points)
        known = np.isfinite(errors)
        if known.sum() < 2:
            return None
        return self._spread(worst_first, steps[known], errors[known])

    @staticmethod
    def _spread(worst_first: Indices, steps: Indices, errors: Vector) -> Vector:
        """Scores that rise in this order and add up to the errors after so many steps; beyond the last, in proportion."""
        size = len(worst_first)
        if steps[-1] < size:
            steps, errors = np.append(steps, size), np.append(errors, errors[-1] * size / steps[-1])
        curve = np.interp(np.arange(size + 1), steps, np.maximum.accumulate(errors))
        scores = np.empty(size)
        scores[worst_first] = hull_slopes(curve) + TIE * max(float(curve[-1]), TIE) * np.arange(size)
        return scores
