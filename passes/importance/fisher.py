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
        sums = evidence.summed_weights(group, evidence.gradient_squares, lambda weight, square: 0.5 * weight**2 * square)
        return None if sums is None else normalized(sums, self.normalizer)
