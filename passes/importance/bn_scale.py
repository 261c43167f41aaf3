"""The scale of batch normalisation.  Start reading at `BatchNormScale.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Reduction, normalized, reduced


@dataclass(frozen=True)
class BatchNormScale(Importance):
    """|gamma| of the normalisations that a channel passes (Liu et al. 2017, Network Slimming); groups without one are kept."""

    name: ClassVar[str] = "bn_scale"
    reduce: Reduction = "mean"
    normalizer: Normalizer = "none"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = reduce over the coupled normalisations of |gamma_c|."""
        scales = [member for member in group.members if member.parameter == "scale"]
        if not scales:
            return None
        parts = [evidence.weights.power_sums(group, member, 1) for member in scales]
        return normalized(reduced(parts, self.reduce), self.normalizer)
