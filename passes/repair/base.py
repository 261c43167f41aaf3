"""What a repair pass is.  Start reading at `Repair.repair`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from graphprune.repairing import Patient


@dataclass(frozen=True)
class Repair(ABC):
    """Wins accuracy back without labels, by changing weights of the pruned network."""

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    """The extra that it needs (`graphprune.extras`); checked before any work."""

    @abstractmethod
    def repair(self, patient: Patient) -> None:
        """Change weights through `patient.set_weight`; shapes stay as they are."""
