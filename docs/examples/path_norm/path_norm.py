"""How strong is the path through a channel?  Start reading at `PathNorm.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.passes.importance.base import Importance, Normalizer, normalized
from graphprune.weights import Vector


@dataclass(frozen=True)
class PathNorm(Importance):
    """Weights that write a channel times weights that read it: a channel that nobody reads loudly does not matter."""

    name: ClassVar[str] = "path_norm"
    p: float = 1
    normalizer: Normalizer = "mean"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = (sum over the producers of |w| ** p) * (sum over the consumers of |w| ** p)."""
        sums = {"producer": np.zeros(group.size), "consumer": np.zeros(group.size)}
        for member in group.members:
            if member.role in sums:
                sums[member.role] += evidence.weights.power_sums(group, member, self.p)
        if not all(total.any() for total in sums.values()):
            return None
        return normalized(sums["producer"] * sums["consumer"], self.normalizer)
