"""How the scores of a group lie, and where the cut went through them.  Start reading at `distributions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .groups import Group
from .weights import Vector

BARS = 64
"""At most this many for each group ..."""

ALL_BARS = 8000
"""... and in all, as far as `FEWEST` allows."""

FEWEST = 12
WIDTH, HEIGHT = 240, 60


@dataclass(frozen=True)
class Distribution:
    """One group: bars for its scores, highest first, as SVG paths in a box of `WIDTH` x `HEIGHT`."""

    group: int
    id: str
    size: int
    kept: int
    scored: bool
    """Whether the criterion had a say about it."""
    kept_path: str = ""
    removed_path: str = ""
    zero: float = HEIGHT
    """Where the score 0 is."""
    cut: float | None = None
    """Where the bars of what stays end; None where they do not stand together."""
    lowest_kept: float = 0.0
    highest_removed: float = 0.0

    @property
    def removed(self) -> int:
        """Units that left."""
        return self.size - self.kept


def distributions(groups: Sequence[Group], scores: Mapping[str, Vector], keep: Mapping[str, Sequence[int]]) -> list[Distribution]:
    """One for each group, in order; `scores` and `keep` are by group."""
    bars = max(FEWEST, min(BARS, ALL_BARS // max(1, len(groups))))
    return [_distribution(k, group, scores.get(group.id), keep[group.id], bars) for k, group in enumerate(groups)]


def _distribution(number: int, group: Group, scores: Vector | None, keep: Sequence[int], bars: int) -> Distribution:
    values = np.zeros(0) if scores is None else np.nan_to_num(np.asarray(scores, np.float64), posinf=0.0, neginf=0.0)
    if not values.any():
        return Distribution(number, group.id, group.size, len(keep), scored=False)
    stays = np.zeros(group.size, dtype=bool)
    stays[list(keep)] = True
    order = np.argsort(-values, kind="stable")
    low, high = min(0.0, values.min()), max(0.0, values.max())
    zero = HEIGHT * high / (high - low)
    kept_path, removed_path = [], []
    for units, left, right in _bins(order, bars):
        height = float(values[units].mean()) / (high - low) * HEIGHT
        part = height * float(stays[units].mean())
        kept_path.append(_bar(left, right, zero, part))
        removed_path.append(_bar(left, right, zero - part, height - part))
    together = bool(stays[order[: len(keep)]].all())
    return Distribution(
        number,
        group.id,
        group.size,
        len(keep),
        scored=True,
        kept_path="".join(kept_path),
        removed_path="".join(removed_path),
        zero=round(zero, 1),
        cut=round(WIDTH * len(keep) / group.size, 1) if together else None,
        lowest_kept=float(values[stays].min(initial=np.inf)),
        highest_removed=float(values[~stays].max(initial=-np.inf)),
    )


def _bins(order: NDArray[np.intp], bars: int) -> list[tuple[NDArray[np.intp], float, float]]:
    """Units in the order of their scores, joined into at most so many bars, with the left and right end of each."""
    edges = np.linspace(0, len(order), min(bars, len(order)) + 1).round().astype(int)
    scale = WIDTH / len(order)
    return [(order[a:b], a * scale, b * scale) for a, b in pairwise(edges.tolist())]


def _bar(left: float, right: float, base: float, height: float) -> str:
    if abs(height) < 0.05:
        return ""
    gap = min(0.6, (right - left) / 5)
    return f"M{left:.1f} {base:.1f}h{right - left - gap:.1f}v{-height:.1f}h{left + gap - right:.1f}z"
