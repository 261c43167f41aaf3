"""What a selection pass is.  Start reading at `Selection.path`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from graphprune.budget import KeepPath, Problem


@dataclass(frozen=True)
class Selection(ABC):
    """How a budget is spread over the groups."""

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    """The extra that it needs (`graphprune.extras`); checked before any work."""
    drops_branches: ClassVar[bool] = False
    """Whether residual branches may leave as a whole even without --min-channels 0."""

    def bounded(self, problem: Problem) -> Problem:
        """The problem with the bounds and steps that this pass works with."""
        return problem

    @abstractmethod
    def path(self, problem: Problem) -> KeepPath:
        """For a level in [0, 1], how many units each group would keep; not decreasing in the level.

        Within a group the units with the highest scores stay.  Alignment, bounds and budget are met by
        `graphprune.budget.solve`.
        """
