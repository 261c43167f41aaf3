"""The least total error for the budget.  Start reading at `Distortion.path`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphprune.budget import Counts, KeepPath, Problem
from graphprune.convex import hull_slopes

from .base import Selection

REFRESH = 0.002
"""What units save is worked out anew whenever this share of the cost has gone since."""


@dataclass(frozen=True)
class Distortion(Selection):
    """Takes scores for errors that add up, and always shrinks where the least error is paid for the cost that is saved.

    That is the greedy solution of the additive-distortion knapsack on the convex hull of each group's error curve; what a unit
    saves depends on what its neighbours keep and follows them (Shoham and Gersho 1988; layer-adaptive pruning: Xu et al. 2023).
    """

    name: ClassVar[str] = "distortion"

    def path(self, problem: Problem) -> KeepPath:
        """The counts after each greedy step, from all units at level 1 to the fewest at level 0."""
        descent = _Descent(problem)
        history = [descent.counts.copy()]
        while descent.step():
            history.append(descent.counts.copy())
        table = np.array(history, np.float64)[::-1]
        return lambda level: table[round(level * (len(table) - 1))]


class _Descent:
    """The state of one greedy descent."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.kinds = problem.kinds
        self.counts: Counts = problem.upper.copy()
        self.orders = [np.argsort(-scores, kind="stable") for scores in problem.scores]
        self.slopes = [hull_slopes(errors) for errors in map(self._curve, range(len(problem.groups)))]
        self.present = np.ones(len(problem.model.analysis.ledger.labels), dtype=bool)
        for group, order, count in zip(problem.groups, self.orders, self.counts, strict=True):
            self.present[group.labels[order[count:]]] = False
        self.taken = np.zeros(len(problem.groups), np.int64)
        self._refresh()

    def step(self) -> bool:
        """Shrink the group where error per saved cost is least; False when none can shrink or save."""
        k = int(np.argmin(self.price))
        if not np.isfinite(self.price[k]):
            return False
        count = int(self.counts[k] - self.problem.steps[k])
        self.present[self.problem.groups[k].labels[self.orders[k][count : self.counts[k]]]] = False
        self.counts[k] = count
        self.saved += self.saving[k]
        self.taken[k] += 1
        if self.saved > REFRESH:
            self._refresh()
        else:
            self._set_price(k)
        return True

    def _curve(self, k: int) -> NDArray[np.float64]:
        """The error after 0, 1, 2, ... steps of group k."""
        problem = self.problem
        steps = (problem.upper[k] - problem.lower[k]) // problem.steps[k]
        added = np.cumsum(problem.scores[k][self.orders[k][::-1]])
        first = len(added) - problem.upper[k]
        ends = first + problem.steps[k] * np.arange(steps + 1) - 1
        return np.where(ends >= 0, added[np.maximum(ends, 0)], 0.0)

    def _refresh(self) -> None:
        self.saved = 0.0
        self.savings = self.problem.model.savings(self.present, self.kinds)
        self.saving = np.zeros(len(self.counts))
        self.price = np.full(len(self.counts), np.inf)
        for k in range(len(self.counts)):
            self._set_price(k)

    def _set_price(self, k: int) -> None:
        """What the next step of group k costs in error for each share of the budget that it saves."""
        if self.taken[k] >= len(self.slopes[k]):
            self.price[k] = np.inf
            return
        low, high = self.counts[k] - self.problem.steps[k], self.counts[k]
        self.saving[k] = self.savings[self.problem.groups[k].labels[self.orders[k][low:high]]].sum()
        self.price[k] = self.slopes[k][self.taken[k]] / self.saving[k] if self.saving[k] > 0 else np.inf
