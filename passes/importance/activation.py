"""How large a channel's activations are.  Start reading at `Activation.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Activation(Importance):
    """Root mean square of what the readers of a channel see (activation norm; Molchanov et al. 2017)."""

    name: ClassVar[str] = "activation"
    sees: ClassVar[Sight] = "activations"
    normalizer: Normalizer = "mean"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = sqrt(sum over the columns of c of E[x ** 2])."""
        squares = evidence.summed_reads(group, lambda read: read.square)
        return None if squares is None else normalized(np.sqrt(squares), self.normalizer)
