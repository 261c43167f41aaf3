"""The same ratio everywhere.  Start reading at `Uniform.path`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphprune.budget import KeepPath, Problem

from .base import Selection


@dataclass(frozen=True)
class Uniform(Selection):
    """Every group keeps the same share of its units."""

    name: ClassVar[str] = "uniform"

    def path(self, problem: Problem) -> KeepPath:
        """Level * size."""
        sizes = problem.sizes.astype(float)
        return lambda level: level * sizes
