"""How rich a channel's maps are.  Start reading at `HRank.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.graph import Array
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
        sums = evidence.summed_maps(group, _ranks)
        return None if sums is None else normalized(sums, self.normalizer)


def _ranks(maps: Array) -> Vector:
    """[channels], from maps [samples, channels, ...]."""
    if maps.ndim < 4:
        maps = maps.reshape(1, *maps.shape[:2], -1).swapaxes(1, 2)
    matrices = maps.astype(np.float32).reshape(*maps.shape[:3], -1)
    if not np.isfinite(matrices).all():
        return np.full(matrices.shape[1], np.nan)
    return np.asarray(np.linalg.matrix_rank(matrices).mean(axis=0), np.float64)
