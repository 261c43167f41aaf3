"""How sensitive the loss is to a channel's weights.  Start reading at `Snip.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Snip(Importance):
    """Sensitivity of the loss to the coupled weights (Lee et al. 2019, SNIP; by channel: Verdenius et al. 2020)."""

    name: ClassVar[str] = "snip"
    sees: ClassVar[Sight] = "gradients"
    extra: ClassVar[str] = "torch"
    normalizer: Normalizer = "none"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = sum over the coupled weights of |w| * E|g|."""
        sums = evidence.summed_weights(group, evidence.gradient_sizes, lambda weight, size: np.abs(weight) * size)
        return None if sums is None else normalized(sums, self.normalizer)
