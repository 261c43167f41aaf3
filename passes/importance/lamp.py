"""Layer-adaptive magnitude.  Start reading at `Lamp.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector, scored_members

from .base import Importance, reduced


@dataclass(frozen=True)
class Lamp(Importance):
    """Squared magnitude relative to all that is at least as large in the group (Lee et al. 2021, LAMP)."""

    name: ClassVar[str] = "lamp"

    def score(self, group: Group, evidence: Evidence) -> Vector:
        """I(c) = m_c / sum of m_k over the channels k with m_k >= m_c."""
        squares = reduced([evidence.weights.power_sums(group, member, 2) for member in scored_members(group)], "sum")
        order = np.argsort(squares, kind="stable")
        at_least = np.cumsum(squares[order][::-1])[::-1]
        scores = np.zeros_like(squares)
        scores[order] = np.divide(squares[order], at_least, out=np.zeros_like(squares), where=at_least > 0)
        return scores
