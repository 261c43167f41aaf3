"""The baseline that every criterion has to beat.  Start reading at `Random.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from graphprune import ranges
from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, generator


@dataclass(frozen=True)
class Random(Importance):
    """Uniform random numbers, the same for the same seed and group."""

    name: ClassVar[str] = "random"
    seed: Annotated[int, ranges.Ge(0)] = 0

    def score(self, group: Group, evidence: Evidence) -> Vector:
        """I(c) uniform in [0, 1)."""
        return generator(self.seed, group).random(group.size)
