"""What a selection pass is.  Start reading at `Selection.path`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from graphprune.budget import Error, Keep, KeepPath, Problem, solve
from graphprune.errors import UsageError


@dataclass(frozen=True)
class Selection(ABC):
    """How a budget is spread over the groups."""

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    """The extra that it needs (`graphprune.extras`); checked before any work."""
    drops_branches: ClassVar[bool] = False
    """Whether residual branches may leave as a whole even without --min-channels 0."""
    sees: ClassVar[Literal["weights", "outputs"]] = "weights"
    """What it looks at beside scores and costs: with "outputs" there is a `Problem.error`."""

    def keep(self, problem: Problem) -> Keep:
        """The kept units of each group.  Raises UnreachableError where even the smallest network is above a target."""
        bounded = self.bounded(problem)
        return solve(bounded, self.path(bounded))

    def bounded(self, problem: Problem) -> Problem:
        """The problem with the bounds and steps that this pass works with."""
        return problem

    @abstractmethod
    def path(self, problem: Problem) -> KeepPath:
        """For a level in [0, 1], how many units each group would keep; not decreasing in the level.

        Within a group the units with the highest scores stay.  Alignment, bounds and budget are met by
        `graphprune.budget.solve`.
        """

    def measure(self, problem: Problem) -> Error:
        """What runs the network with some units gone.  Raises UsageError where there are no samples to run it on."""
        if problem.error is None:
            raise UsageError(f"selection {self.name!r} runs the network: give samples, with --calibration FILE.npz or random")
        return problem.error
