"""Weights times activations.  Start reading at `Wanda.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Wanda(Importance):
    """Absolute weights that read a channel times the norm of what they read (Sun et al. 2024, Wanda), added up by channel."""

    name: ClassVar[str] = "wanda"
    sees: ClassVar[Sight] = "activations"
    normalizer: Normalizer = "mean"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = sum over the columns j of c of |W_j|_1 * sqrt(E[x_j ** 2])."""
        sums = evidence.summed_reads(group, lambda read: np.sqrt(read.square) * np.abs(read.matrix).sum(axis=1))
        return None if sums is None else normalized(sums, self.normalizer)
