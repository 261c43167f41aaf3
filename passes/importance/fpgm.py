"""Distance to the other filters.  Start reading at `Fpgm.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, normalized


@dataclass(frozen=True)
class Fpgm(Importance):
    """Sum of the distances to all other filters of the layer: what is near them is replaceable (He et al. 2019, FPGM)."""

    name: ClassVar[str] = "fpgm"
    normalizer: Normalizer = "mean"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = sum over k of |w_c - w_k|, added up over the weights that produce the group."""
        producers = [member for member in group.members if member.role == "producer"]
        if not producers:
            return None
        total = np.zeros(group.size)
        for member in producers:
            rows = evidence.weights.rows(group, member).astype(np.float64)
            squares = (rows**2).sum(axis=1)
            distances = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
            np.fill_diagonal(distances, 0)
            total += np.sqrt(np.maximum(distances, 0)).sum(axis=1)
        return normalized(total, self.normalizer)
