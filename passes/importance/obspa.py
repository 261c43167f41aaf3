"""Second-order scores: what leaving a channel out costs when its readers make up for it.  Start reading at `Obspa.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from graphprune import ranges
from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.second_order import eliminate
from graphprune.weights import Vector, scored_members

from .base import Importance, Sight, normalized, reduced


@dataclass(frozen=True)
class Obspa(Importance):
    """Error that leaving a unit out adds to all that reads it, by block optimal brain surgeon (OBSPA, Wang et al. 2024).

    H is the covariance of what is read, damped; units leave greedily with exact downdates of its inverse.  Errors are relative to
    the variance of the sum that a reader's result goes into, so that groups compare and scores add up to the error of a cut.
    """

    name: ClassVar[str] = "obspa"
    sees: ClassVar[Sight] = "activations"
    damping: Annotated[float, ranges.Ge(0)] = 1e-3

    def score(self, group: Group, evidence: Evidence) -> Vector:
        """Each unit's added error in the order of leaving; its share of the squared weights where nothing linear reads it."""
        reads = evidence.reads(group)
        if reads:
            return eliminate(reads, group.size, self.damping)
        squares = [evidence.weights.power_sums(group, member, 2) for member in scored_members(group)]
        return normalized(reduced(squares, "mean"), "sum")
