"""How much a channel's variation moves its readers.  Start reading at `Fluctuation.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Sight


@dataclass(frozen=True)
class Fluctuation(Importance):
    """Variance of what is read times the squared weights that read it, standardised in each group (An et al. 2024, FLAP).

    Pair with the repair `absorb`, as the paper does.
    """

    name: ClassVar[str] = "fluctuation"
    sees: ClassVar[Sight] = "activations"
    standardize: bool = True

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = sum over the columns j of c of Var[x_j] * |W_j|_2 ** 2."""
        sums = evidence.summed_reads(group, lambda read: read.variance * np.square(read.matrix).sum(axis=1))
        if sums is None or not self.standardize:
            return sums
        return np.asarray((sums - sums.mean()) / max(float(sums.std()), 1e-12))
