"""One ranking over all groups.  Start reading at `Global.path`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from graphprune import ranges
from graphprune.budget import KeepPath, Problem

from .base import Selection


@dataclass(frozen=True)
class Global(Selection):
    """All units of the network in one ranking; no group loses more than its share above `floor`."""

    name: ClassVar[str] = "global"
    floor: Annotated[float, ranges.Ge(0), ranges.Le(1)] = 0.1

    def path(self, problem: Problem) -> KeepPath:
        """The number of units of each group among the best `level` of all, at least `floor` of the group."""
        return ranked_path(problem, np.zeros(len(problem.groups), np.int64), self.floor)


def ranked_path(problem: Problem, classes: np.ndarray[tuple[int, ...], np.dtype[np.int64]], floor: float) -> KeepPath:
    """Ranks units within each class of groups; every class keeps the same share of its units."""
    sizes = problem.sizes
    scores = np.concatenate(problem.scores) if len(problem.scores) else np.zeros(0)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    kind = classes[owner]
    order = np.lexsort((-scores, kind))
    start = np.searchsorted(kind[order], kind[order])
    place = np.empty(len(order))
    totals = np.bincount(kind, minlength=int(classes.max(initial=0)) + 1)
    place[order] = (np.arange(len(order)) - start) / totals[kind[order]]

    def wish(level: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        kept = np.bincount(owner[place < level], minlength=len(sizes))
        return np.asarray(np.maximum(kept, np.minimum(1.0, level / max(floor, 1e-9)) * floor * sizes))

    return wish
