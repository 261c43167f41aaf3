"""What removing a channel does to the loss, to first order.  Start reading at `Taylor.score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.evidence import Evidence
from graphprune.groups import Group
from graphprune.weights import Vector

from .base import Importance, Normalizer, Sight, normalized


@dataclass(frozen=True)
class Taylor(Importance):
    """Squared first-order change of the loss when a channel goes (Molchanov et al. 2019)."""

    name: ClassVar[str] = "taylor"
    sees: ClassVar[Sight] = "gradients"
    extra: ClassVar[str] = "torch"
    normalizer: Normalizer = "none"

    def score(self, group: Group, evidence: Evidence) -> Vector | None:
        """I(c) = mean over the batches of (sum over the weights that produce c of w * g) ** 2."""
        changes = evidence.changes(group)
        return None if changes is None else normalized((changes**2).mean(axis=0), self.normalizer)
