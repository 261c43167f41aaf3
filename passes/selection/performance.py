"""A greedy descent whose price is what the outputs lose, measured.  Start reading at `Performance.path`."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from graphprune.budget import Counts, Error, KeepPath, Problem
from graphprune.cost import Cost

from .base import Selection


@dataclass(frozen=True)
class Performance(Selection):
    """Runs the network without what has left so far, and shrinks where its outputs move least for the cost that is saved.

    Layers are judged together and not one by one (performance-aware global channel pruning: Ye et al. 2023).  Each step takes
    the share `step` of a group, or, with 0, as little as the alignment allows.  It is lazy: what was measured for a group counts
    until it is the cheapest, and is then measured again (Minoux 1978), which is exact as long as prices only rise.
    """

    name: ClassVar[str] = "performance"
    sees: ClassVar[Literal["weights", "outputs"]] = "outputs"
    step: Annotated[float, Ge(0), Le(1)] = 0.125

    def path(self, problem: Problem) -> KeepPath:
        """The counts after each greedy step, from all units at level 1 to the first that meet the budget at level 0."""
        error = self.measure(problem)
        history = [problem.upper.copy()]
        if problem.usage(_cost(problem, problem.floor)) <= 1:
            descent = _Descent(problem, error, self.step)
            while descent.step():
                history.append(descent.counts.copy())
        if problem.usage(_cost(problem, history[-1])) > 1:
            history.append(problem.floor)
        table = np.array(history, np.float64)[::-1]
        return lambda level: table[round(level * (len(table) - 1))]


class _Descent:
    """The state of one greedy descent."""

    def __init__(self, problem: Problem, error: Error, share: float) -> None:
        self.problem, self.measure = problem, error
        self.kinds = sorted({target.kind for target in problem.targets})
        self.counts: Counts = problem.upper.copy()
        self.moves = np.maximum(1, np.rint(share * problem.sizes / problem.steps).astype(np.int64)) * problem.steps
        self.cost = _cost(problem, self.counts)
        self.first = problem.usage(self.cost)
        self.error = error(problem.best(self.counts)) if self.first > 1 else 0.0
        self.queue = [(-np.inf, k) for k in range(len(self.counts))]
        heapify(self.queue)

    def step(self) -> bool:
        """Shrink the group where the rise of the error for the cost that is saved is least; False when done, or nothing can."""
        usage = self.problem.usage(self.cost)
        if usage <= 1:
            return False
        self.problem.tick((self.first - usage) / (self.first - 1))
        found: dict[int, tuple[Counts, float, Cost]] = {}
        while self.queue:
            price, k = heappop(self.queue)
            if k in found:
                self.counts, self.error, self.cost = found[k]
                heappush(self.queue, (price, k))
                return True
            smaller = self._smaller(k)
            if smaller is not None:
                error, cost = self.measure(self.problem.best(smaller)), _cost(self.problem, smaller)
                found[k] = smaller, error, cost
                saved = self._saved(cost)
                if saved > 0 and np.isfinite(error):
                    heappush(self.queue, ((error - self.error) / saved, k))
        return False

    def _saved(self, cost: Cost) -> float:
        """How much less that is than the present cost, as a share of the original; kinds of targets add up."""
        original = self.problem.model.original
        return sum((self.cost.of(kind) - cost.of(kind)) / max(1, original.of(kind)) for kind in self.kinds)

    def _smaller(self, k: int) -> Counts | None:
        """The counts when group k takes its next step; None where it cannot."""
        low, step = self.problem.floor[k], self.problem.steps[k]
        if self.counts[k] <= low:
            return None
        counts = self.counts.copy()
        counts[k] = max(low, -(-counts[k] // step) * step - self.moves[k])
        return counts


def _cost(problem: Problem, counts: Counts) -> Cost:
    return problem.model.cost(problem.model.analysis.present(problem.best(counts)))
