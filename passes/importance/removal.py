"""What the network loses with a whole branch.  Start reading at `Removal.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Sight


@dataclass(frozen=True)
class Removal(Importance):
    """How much further the network's outputs move when the branch that reads the group leaves (SLEB, Song et al. 2024).

    Branches leave one after the other, the least important first, and each is measured without those that left before.  Has a
    say about groups of branches that can leave as a whole only; pair it with the selection `blocks`.
    """

    name: ClassVar[str] = "removal"
    sees: ClassVar[Sight] = "outputs"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """The mean squared change of the outputs over their variance, in equal shares for all units."""
        error = evidence.removal_errors.get(group.id)
        return None if error is None else np.full(group.size, error / group.size)
