"""Where a channel looks.  Start reading at `Attention.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from graphprune import ranges
from graphprune.evidence import Evidence
from graphprune.graph import Array
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Attention(Importance):
    """Agreement of a channel's squared map with the attention map of its layer (Zagoruyko and Komodakis 2017).

    The attention map of a sample is the sum over the channels of |x| ** `p`, with norm one.
    """

    name: ClassVar[str] = "attention"
    sees: ClassVar[Sight] = "maps"
    p: Annotated[float, ranges.Gt(0)] = 2
    normalizer: Normalizer = "mean"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = mean over the samples of the inner product of |x_c| ** p with the attention map."""
        sums = evidence.summed_maps(group, self._agreement)
        return None if sums is None else normalized(sums, self.normalizer)

    def _agreement(self, maps: Array) -> Vector:
        """[channels], from maps [samples, channels, ...]."""
        powers = np.abs(maps.reshape(*maps.shape[:2], -1)).astype(np.float64) ** self.p
        attention = powers.sum(axis=1)
        attention /= np.maximum(np.linalg.norm(attention, axis=1, keepdims=True), 1e-12)
        return np.asarray(np.einsum("scp,sp->c", powers, attention) / len(maps), np.float64)
