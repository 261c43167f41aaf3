"""Whole residual branches and nothing else.  Start reading at `Blocks.path`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from graphprune.budget import KeepPath, Problem

from .base import Selection


@dataclass(frozen=True)
class Blocks(Selection):
    """Drops residual branches (blocks, attentions, MLPs) as a whole, the least important for the cost that they save first.

    What a branch matters is the sum of its group's scores; pair it with the importance `removal` or `obspa` (depth pruning:
    ShortGPT, Men et al. 2024; Gromov et al. 2024).  All other groups stay as they are.
    """

    name: ClassVar[str] = "blocks"
    drops_branches: ClassVar[bool] = True

    def bounded(self, problem: Problem) -> Problem:
        """Branches are kept whole or not at all."""
        whole = problem.lower == 0
        return replace(
            problem, lower=np.where(whole, 0, problem.upper), steps=np.where(whole, np.maximum(problem.upper, 1), problem.steps)
        )

    def path(self, problem: Problem) -> KeepPath:
        """From all branches at level 1 to none at level 0."""
        kinds = problem.kinds
        model = problem.model
        everything = np.ones(len(model.analysis.ledger.labels), dtype=bool)
        whole = model.cost(everything)
        price = []
        for k in np.flatnonzero(problem.lower == 0).tolist():
            present = everything.copy()
            present[problem.groups[k].labels] = False
            rest = model.cost(present)
            saved = sum(1 - rest.of(kind) / max(1, whole.of(kind)) for kind in kinds)
            price.append((float(problem.scores[k].sum()) / max(saved, 1e-12), k))
        order = [k for _, k in sorted(price)]

        def counts(level: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            wished = problem.upper.astype(np.float64)
            wished[order[: round((1 - level) * len(order))]] = 0
            return wished

        return counts
