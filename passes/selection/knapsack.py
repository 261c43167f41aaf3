"""The least total error for the budget, by integer programming.  Start reading at `Knapsack.path`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from graphprune.budget import Counts, KeepPath, Problem
from graphprune.errors import InternalError
from graphprune.extras import need

from .base import Selection

Wide = NDArray[np.float64]

FAILED = 4
"""What `scipy.optimize.milp` says where HiGHS gives up; without a solution a program may also be infeasible, or out of time."""


@dataclass(frozen=True)
class Knapsack(Selection):
    """Takes scores for errors that add up and solves the multiple-choice knapsack exactly (Aflalo et al. 2020), with HiGHS.

    What a unit saves depends on what its neighbours keep, so the program is solved `rounds` times, each time with the savings at
    the last solution.  Unlike `distortion` it may jump where an error curve is not convex.  Needs the extra solver.
    """

    name: ClassVar[str] = "knapsack"
    extra: ClassVar[str] = "solver"
    rounds: Annotated[int, Ge(1)] = 3

    def path(self, problem: Problem) -> KeepPath:
        """The solution for a budget of this share of the original cost, in every kind that has a target."""
        program = _Program(problem, self.rounds)
        return cache(program.solve)


class _Program:
    """One choice for each group: after how many steps it ends."""

    def __init__(self, problem: Problem, rounds: int) -> None:
        need("solver")
        self.problem, self.rounds = problem, rounds
        self.kinds = problem.kinds
        self.orders = [np.argsort(-scores, kind="stable") for scores in problem.scores]
        self.choices = [
            np.arange(low, high + 1)[:: -int(step)]
            for low, high, step in zip(problem.lower, problem.upper, problem.steps, strict=True)
        ]
        self.errors = np.concatenate([self._errors(k) for k in range(len(self.choices))])
        self.owner = np.repeat(np.arange(len(self.choices)), [len(counts) for counts in self.choices])

    def solve(self, level: float) -> Wide:
        """The wished counts for a budget of `level`."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        counts = self.problem.upper.copy()
        one_each = csr_array((np.ones(len(self.owner)), (self.owner, np.arange(len(self.owner)))))
        for _ in range(self.rounds):
            rows, room = self._costs(counts, level)
            found = milp(
                self.errors / max(float(np.abs(self.errors).max()), 1e-30),
                integrality=np.ones(len(self.owner)),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(rows, -np.inf, room)],
                options={"mip_rel_gap": 1e-3, "time_limit": 10.0},
            )
            if found.status == FAILED:
                raise InternalError(f"selection 'knapsack': HiGHS cannot solve the program: {found.message}")
            if found.x is None:
                return self.problem.lower.astype(np.float64)
            chosen = [int(np.argmax(found.x[self.owner == k])) for k in range(len(self.choices))]
            counts = np.array([counts[pick] for counts, pick in zip(self.choices, chosen, strict=True)], np.int64)
        return counts.astype(np.float64)

    def _errors(self, k: int) -> Wide:
        """The error of each choice: the sum of the scores of what leaves."""
        worst_first = np.cumsum(self.problem.scores[k][self.orders[k][::-1]])
        gone = len(worst_first) - self.choices[k]
        return np.where(gone > 0, worst_first[np.maximum(gone - 1, 0)], 0.0)

    def _costs(self, counts: Counts, level: float) -> tuple[Wide, Wide]:
        """For each kind the cost of each choice next to the present one, and the room that is left; both by the slope here."""
        present = self._present(counts)
        model = self.problem.model
        rows, room = [], []
        for kind in self.kinds:
            slope = model.savings(present, [kind])
            parts = []
            for k, group in enumerate(self.problem.groups):
                worth = np.concatenate([[0.0], np.cumsum(slope[group.labels[self.orders[k]]])])
                gone = worth[counts[k]] / max(1, counts[k])
                beyond = np.maximum(self.choices[k] - counts[k], 0) * gone
                parts.append(worth[np.minimum(self.choices[k], counts[k])] - worth[counts[k]] + beyond)
            rows.append(np.concatenate(parts))
            room.append(level - model.cost(present).of(kind) / max(1, model.original.of(kind)))
        return np.stack(rows), np.array(room)

    def _present(self, counts: Counts) -> NDArray[np.bool_]:
        present = np.ones(len(self.problem.model.analysis.ledger.labels), dtype=bool)
        for group, order, count in zip(self.problem.groups, self.orders, counts, strict=True):
            present[group.labels[order[count:]]] = False
        return present
