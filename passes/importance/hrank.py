"""How rich a channel's maps are.  Start reading at `HRank.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class HRank(Importance):
    """Average rank of a channel's feature maps (Lin et al. 2020, HRank).

    A channel with one spatial axis or none has one map: samples x positions.
    """

    name: ClassVar[str] = "hrank"
    sees: ClassVar[Sight] = "maps"
    normalizer: Normalizer = "mean"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = mean over the samples of rank(x_c)."""
        found = evidence.maps(group)
        if not found:
            return None
        total = np.zeros(group.size)
        for maps, unit in found:
            deep = maps.ndim >= 4
            matrices = maps.reshape(*maps.shape[:3], -1) if deep else maps.reshape(*maps.shape[:2], -1).swapaxes(0, 1)
            ranks = np.linalg.matrix_rank(matrices).astype(np.float64)
            total += np.bincount(unit, ranks.mean(axis=0) if deep else ranks, minlength=group.size)
        return normalized(total, self.normalizer)
