"""Refines what another selection gives, by measured trades.  Start reading at `Evolution.keep`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt

from graphprune import registry
from graphprune.budget import Counts, Keep, KeepPath, Problem, solve
from graphprune.errors import UnreachableError, UsageError

from .base import Selection

LARGEST = 4
"""A trade makes a group wider by at most one part in so many."""

DRAWS = 100
"""After so many draws in a row that give no new network the search is over."""


@dataclass(frozen=True)
class Evolution(Selection):
    """Starts from another selection, makes one group wider and another narrower, and keeps what moves the outputs less.

    That is a (1+1) evolution strategy (Rechenberg 1973): each network is the best so far with one random trade, and a trade that
    won is tried again.  It ends after `seconds`, or, with `evaluations` above 0, after so many measured networks instead: then
    the same seed gives the same network again.  The result is never worse than the start, on the samples.
    """

    name: ClassVar[str] = "evolution"
    sees: ClassVar[Literal["weights", "outputs"]] = "outputs"
    start: str = "distortion"
    seconds: Annotated[float, Gt(0)] = 60.0
    evaluations: Annotated[int, Ge(0)] = 0
    seed: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a start that is no other selection."""
        if registry.name_of("selection", self.start) == self.name:
            raise UsageError("selection 'evolution' cannot start from itself; give another one, such as start=distortion")
        registry.make("selection", self.start)

    @property
    def drops_branches(self) -> bool:  # type: ignore[override]
        """As the start does."""
        return bool(self._start.drops_branches)

    def keep(self, problem: Problem) -> Keep:
        """What the start gives, refined.  Raises UsageError without samples, and UnreachableError as the start does."""
        error = self.measure(problem)
        best: Keep = self._start.keep(problem)
        if not problem.targets:
            return best
        trades = _Trades(self.bounded(problem), best, np.random.default_rng(self.seed))
        least, began, tried = error(best), time.monotonic(), 0
        while (done := self._done(tried, time.monotonic() - began)) < 1:
            problem.tick(done)
            candidate = trades.next(best)
            if candidate is None:
                break
            tried += 1
            found = error(candidate)
            trades.won = found < least
            if trades.won:
                best, least = candidate, found
        return best

    def bounded(self, problem: Problem) -> Problem:
        """As the start works."""
        bounded: Problem = self._start.bounded(problem)
        return bounded

    def path(self, problem: Problem) -> KeepPath:
        """That of the start: what is refined is the one network of it that meets the budget."""
        path: KeepPath = self._start.path(problem)
        return path

    @property
    def _start(self) -> Any:
        return registry.make("selection", self.start)

    def _done(self, tried: int, seconds: float) -> float:
        return tried / self.evaluations if self.evaluations else seconds / self.seconds


class _Trades:
    """Draws networks that meet the budget, none of them twice."""

    def __init__(self, problem: Problem, start: Keep, rng: np.random.Generator) -> None:
        self.problem, self.rng = problem, rng
        self.seen = {self._counts(start).tobytes()}
        self.won = False
        self.trade = (0, 0, 0)

    def next(self, keep: Keep) -> Keep | None:
        """A network that is one trade away, the last trade where that won; None where none can be found."""
        counts = self._counts(keep)
        for _ in range(DRAWS):
            if not self.won and not self._draw(counts):
                return None
            self.won = False
            found = self._traded(counts)
            if found is not None and (key := self._counts(found).tobytes()) not in self.seen:
                self.seen.add(key)
                return found
        return None

    def _draw(self, counts: Counts) -> bool:
        """Choose the group that grows, the one that shrinks, and by how many units the first does; False where none can."""
        problem = self.problem
        grows, shrinks = np.flatnonzero(counts < problem.upper), np.flatnonzero(counts > problem.floor)
        if not len(grows) or not len(shrinks):
            return False
        grown, shrunk = int(self.rng.choice(grows)), int(self.rng.choice(shrinks))
        step = int(problem.steps[grown])
        most = max(1, int(problem.sizes[grown]) // step // LARGEST)
        self.trade = grown, shrunk, step * int(self.rng.integers(1, most + 1))
        return True

    def _traded(self, counts: Counts) -> Keep | None:
        """One group is wider, and the other as much narrower as the budget needs; None where that is not enough."""
        grown, shrunk, units = self.trade
        if grown == shrunk:
            return None

        def path(level: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            wished = counts.astype(np.float64)
            wished[grown] += units
            wished[shrunk] *= level
            return wished

        try:
            return solve(replace(self.problem, required={}), path)
        except UnreachableError:
            return None

    def _counts(self, keep: Keep) -> Counts:
        return np.array([len(keep[group.id]) for group in self.problem.groups], np.int64)
