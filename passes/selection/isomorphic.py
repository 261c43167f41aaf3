"""Like with like.  Start reading at `Isomorphic.path`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from graphprune import ranges
from graphprune.budget import KeepPath, Problem

from .base import Selection
from .global_ranking import ranked_path


@dataclass(frozen=True)
class Isomorphic(Selection):
    """One ranking for each kind of group (same roles, axes and parameters), the same share of every kind (Fang et al. 2024)."""

    name: ClassVar[str] = "isomorphic"
    floor: Annotated[float, ranges.Ge(0), ranges.Le(1)] = 0.1

    def path(self, problem: Problem) -> KeepPath:
        """As `global`, class by class."""
        numbers: dict[object, int] = {}
        classes = [numbers.setdefault(group.signature, len(numbers)) for group in problem.groups]
        return ranked_path(problem, np.asarray(classes, np.int64), self.floor)
