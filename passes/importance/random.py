"""The baseline that every criterion has to beat.  Start reading at `Random.score`."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance


@dataclass(frozen=True)
class Random(Importance):
    """Uniform random numbers, the same for the same seed and group."""

    name: ClassVar[str] = "random"
    seed: int = 0

    def score(self, group: Group, evidence: Evidence) -> Vector:
        """I(c) uniform in [0, 1)."""
        return np.random.default_rng([self.seed, zlib.crc32(group.id.encode())]).random(group.size)
