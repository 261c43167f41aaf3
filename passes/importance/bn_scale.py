"""The scale of batch normalisation.  Start reading at `BatchNormScale.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from graphprune.groups import Group
from graphprune.weights import Vector, Weights

from .base import Importance, Normalizer, normalized


@dataclass(frozen=True)
class BatchNormScale(Importance):
    """|gamma| of the normalisations that a channel passes (Liu et al. 2017, Network Slimming); groups without one are kept."""

    name: ClassVar[str] = "bn_scale"
    reduce: Literal["sum", "mean", "max"] = "mean"
    normalizer: Normalizer = "none"

    def score(self, group: Group, weights: Weights) -> Vector | None:
        """I(c) = reduce over the coupled normalisations of |gamma_c|."""
        scales = [member for member in group.members if member.parameter == "scale"]
        if not scales:
            return None
        parts = np.stack([weights.power_sums(group, member, 1) for member in scales])
        joined = {"sum": parts.sum, "mean": parts.mean, "max": parts.max}[self.reduce](axis=0)
        return normalized(joined, self.normalizer)
