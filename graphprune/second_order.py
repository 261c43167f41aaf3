"""Optimal brain surgeon on blocks of columns: what leaving a unit out costs when the rest makes up for it.

With rows X, matrix W and H = Cov(X), leaving out the columns u and letting all others adapt raises the squared error of the
results by tr(W_u' inv([inv(H)]_uu) W_u) (Hassibi and Stork 1993; blocks: Kurtic et al. 2022, SPA 2024).  Start reading at
`eliminate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .evidence import Read

Wide = NDArray[np.float64]

DAMPING = 1e-3
"""Added to the diagonal of a covariance, relative to its mean."""

STEPS = 96
"""Units leave in at most this many steps; several at a time in large groups."""


def damped(covariance: Wide, damping: float = DAMPING) -> Wide:
    """The covariance with a multiple of its mean diagonal added to the diagonal."""
    size = len(covariance)
    level = float(np.trace(covariance)) / max(1, size)
    return np.asarray(covariance + np.eye(size) * max(damping * level, 1e-10))


COMPACTED = 0.9
"""The inverse is cut when so little of it is left: what left is zero there, and to cut it is to copy it."""


class Elimination:
    """One read while units of it are left out, one after the other."""

    def __init__(self, read: Read, size: int, damping: float = DAMPING) -> None:
        self.inverse = np.linalg.inv(damped(read.covariance, damping))
        self.matrix = read.matrix.copy()
        self.columns = [np.flatnonzero(read.unit == unit) for unit in range(size)]
        self.scale = 1 / max(read.total, 1e-12)
        self.left = np.ones(len(self.matrix), dtype=bool)

    def losses(self, units: Sequence[int]) -> Wide:
        """For each unit the error that its leaving adds, relative to the variance of the sum they go into."""
        result = np.zeros(len(units))
        widths = np.array([len(self.columns[unit]) for unit in units])
        for width in np.unique(widths[widths > 0]).tolist():
            which = np.flatnonzero(widths == width)
            at = np.stack([self.columns[units[int(k)]] for k in which])
            parts = self.matrix[at]
            corner = self.inverse[at[:, :, None], at[:, None, :]]
            result[which] = (parts * np.linalg.solve(corner, parts)).sum(axis=(1, 2))
        return result * self.scale

    def remove(self, units: Sequence[int]) -> None:
        """Leave units out: the others adapt, and the inverse is brought up to date."""
        gone = np.concatenate([self.columns[unit] for unit in units])
        if not len(gone):
            return
        gain = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[gone])
        self.matrix -= gain.T @ self.matrix[gone]
        self.inverse -= self.inverse[:, gone] @ gain
        self.left[gone] = False
        self.columns = [at[self.left[at]] for at in self.columns]
        if np.count_nonzero(self.left) < COMPACTED * len(self.left):
            self._compact()

    def _compact(self) -> None:
        place = np.cumsum(self.left) - 1
        self.matrix, self.inverse = self.matrix[self.left], self.inverse[np.ix_(self.left, self.left)]
        self.columns = [place[at] for at in self.columns]
        self.left = np.ones(len(self.matrix), dtype=bool)


def eliminate(reads: Sequence[Read], size: int, damping: float = DAMPING) -> Wide:
    """Units leave greedily, the cheapest first; returns for each what its leaving added to the error.

    The errors of several reads add up.  Values never decrease in the order of leaving, so that sorting them gives that order
    and adding them up gives the error of any cut.
    """
    active = [Elimination(read, size, damping) for read in reads]
    added = np.zeros(size)
    remaining = list(range(size))
    chunk = max(1, size // STEPS)
    highest = 0.0
    while remaining:
        losses = sum((item.losses(remaining) for item in active), np.zeros(len(remaining)))
        order = np.argsort(losses, kind="stable")[:chunk]
        for k in order.tolist():
            highest = max(highest * (1 + 1e-9), float(losses[k]))
            added[remaining[k]] = highest
        leaving = [remaining[k] for k in order.tolist()]
        for item in active:
            item.remove(leaving)
        remaining = [unit for unit in remaining if unit not in set(leaving)]
    return added
