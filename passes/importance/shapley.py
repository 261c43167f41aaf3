"""What units are worth beside any others, measured.  Start reading at `Shapley.score`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Sight, generator


@dataclass(frozen=True)
class Shapley(Importance):
    """How far the network's outputs move when a unit leaves after a random set of others (Shapley value; Ancona et al. 2020).

    The units of a group leave in `orders` random orders and in their reverses, in `points` steps; those that leave in one step
    share the rise of the error.  With a step for each unit that is exact where the error is quadratic in what leaves.
    """

    name: ClassVar[str] = "shapley"
    sees: ClassVar[Sight] = "outputs"
    orders: Annotated[int, Ge(1)] = 4
    points: Annotated[int, Ge(1)] = 8
    seed: Annotated[int, Ge(0)] = 0

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """The mean rise of the error: mean squared change of the outputs over their variance."""
        if evidence.calibration is None or group.size == 1:
            return None
        rng = generator(self.seed, group)
        total, count = np.zeros(group.size), np.zeros(group.size)
        for forward in (rng.permutation(group.size) for _ in range(self.orders)):
            for order in (forward, forward[::-1]):
                steps, errors = evidence.error_curve(group, order, self.points)
                for (first, last), (before, after) in zip(pairwise(steps), pairwise(errors), strict=True):
                    if np.isfinite(after):
                        total[order[first:last]] += (after - before) / (last - first)
                        count[order[first:last]] += 1
        return np.asarray(np.maximum(total / np.maximum(count, 1), 0))
