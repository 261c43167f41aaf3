"""How different are a channel's weights?  Start reading at `Spread.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.passes.importance.base import Importance, Normalizer, normalized
from graphprune.weights import Vector


@dataclass(frozen=True)
class Spread(Importance):
    """Ratio of the 2-norm to the 1-norm of the weights that write a channel: few large weights, or many small ones."""

    name: ClassVar[str] = "template_spread"
    normalizer: Normalizer = "mean"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = |w| / sum |w| over the weights w that write c; None where nothing does."""
        members = [member for member in group.members if member.role == "producer"]
        if not members:
            return None
        squares, sizes = (sum(evidence.weights.power_sums(group, member, p) for member in members) for p in (2, 1))
        return normalized(np.sqrt(squares) / np.maximum(sizes, 1e-12), self.normalizer)
