"""What removing a channel costs to second order, by the diagonal.  Start reading at `Fisher.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Fisher(Importance):
    """Diagonal optimal brain damage with the empirical Fisher information (LeCun et al. 1990; Theis et al. 2018)."""

    name: ClassVar[str] = "fisher"
    sees: ClassVar[Sight] = "gradients"
    extra: ClassVar[str] = "torch"
    normalizer: Normalizer = "none"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = 1/2 * sum over the coupled weights of w ** 2 * E[g ** 2]."""
        found = evidence.gradients
        sums = evidence.summed(group, lambda name, weight: 0.5 * weight**2 * found.square[name]) if found else None
        return None if sums is None else normalized(sums, self.normalizer)
