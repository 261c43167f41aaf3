"""How much a channel changes the flow of gradients.  Start reading at `Crop.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Crop(Importance):
    """Size of the change of the squared gradient norm when a channel goes (Rachwan et al. 2022, CroP)."""

    name: ClassVar[str] = "crop"
    sees: ClassVar[Sight] = "gradients"
    extra: ClassVar[str] = "torch"
    normalizer: Normalizer = "none"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = |sum over the coupled weights of w * (H g)|."""
        sums = evidence.summed_weights(group, evidence.curvatures, np.multiply)
        return None if sums is None else normalized(np.abs(sums), self.normalizer)
