"""How strong is the way through a channel?  Start reading at `Path.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from graphprune import ranges
from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector, scored_members

from .base import Importance, Normalizer, normalized


@dataclass(frozen=True)
class Path(Importance):
    """Weights that write a channel times weights that read it (path norm; Neyshabur et al. 2015).

    Does not change where a channel is scaled in front and scaled back behind, as folding a normalisation does, so it serves
    networks with and without folded normalisations alike.
    """

    name: ClassVar[str] = "path"
    p: Annotated[float, ranges.Gt(0)] = 1
    normalizer: Normalizer = "max"

    def score(self, group: Group, evidence: Evidence) -> Vector:
        """I(c) = (sum over the producers of |w| ** p) * (the same over the consumers); carriers where there are neither."""
        members = scored_members(group)
        sums = {}
        for role in ("producer", "consumer", "carrier"):
            parts = [evidence.weights.power_sums(group, member, self.p) for member in members if member.role == role]
            if parts:
                sums[role] = np.sum(parts, axis=0)
        factors = [sums[role] for role in ("producer", "consumer") if role in sums] or list(sums.values())
        return normalized(np.prod(factors, axis=0), self.normalizer)
