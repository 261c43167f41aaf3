"""How much a channel varies.  Start reading at `Variance.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Variance(Importance):
    """Variance of a channel: what is left once its mean went into the next bias (Berisha et al. 2025, VBP).

    Pair it with the repair `absorb`.
    """

    name: ClassVar[str] = "variance"
    sees: ClassVar[Sight] = "activations"
    normalizer: Normalizer = "none"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = sum over the columns of c of Var[x]."""
        sums = evidence.summed_reads(group, lambda read: read.variance)
        return None if sums is None else normalized(sums, self.normalizer)
