"""Magnitude of the coupled weights.  Start reading at `Magnitude.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector, scored_members

from .base import Importance, Normalizer, Reduction, normalized, reduced


@dataclass(frozen=True)
class Magnitude(Importance):
    """Norm of all weights that are coupled to a channel (Li et al. 2017; coupled sets: Fang et al. 2023, DepGraph).

    `p` is the norm (1 or 2), `reduce` joins the coupled tensors, `normalizer` makes groups comparable.
    """

    name: ClassVar[str] = "magnitude"
    p: Literal[1, 2] = 1
    reduce: Reduction = "sum"
    normalizer: Normalizer = "max"

    def score(self, group: Group, evidence: Evidence) -> Vector:
        """I(c) = reduce over the coupled tensors of sum |w| ** p."""
        parts = [evidence.weights.power_sums(group, member, self.p) for member in scored_members(group)]
        return normalized(reduced(parts, self.reduce), self.normalizer)
