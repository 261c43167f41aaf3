"""From scores and targets to the units that stay.

A selection pass turns a problem into a *path*: for a level between 0 and 1, how many units it would like each group to keep.
Here the highest level is found whose result meets every target, with alignment, minimum sizes and what the user fixed; what
is left of the budget is then filled step by step.  Start reading at `solve`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .cost import Cost, CostModel
from .errors import UnreachableError
from .groups import Group
from .targets import Target
from .weights import Vector

Counts = NDArray[np.int64]
KeepPath = Callable[[float], NDArray[np.float64]]
"""Level in [0, 1] -> wished number of kept units of each group, not decreasing in the level."""

Keep = dict[str, list[int]]
"""The kept units of each group, in order."""

Error = Callable[[Mapping[str, list[int]]], float]
"""How far the outputs move when each group keeps only these units (`Evidence.error_keeping`)."""

FULL = 0.995
"""A budget used to this share counts as used up."""

CLOSE = 0.97
"""Below this share groups are traded against each other, which coarse steps in small networks need."""

TRADES = 2000
"""At most this many trades are tried."""


@dataclass
class Problem:
    """What a selection pass sees: groups with scores, and the bounds on how many units each keeps."""

    groups: Sequence[Group]
    scores: Sequence[Vector]
    lower: Counts
    upper: Counts
    steps: Counts
    model: CostModel
    targets: Sequence[Target] = ()
    required: dict[int, set[int]] = field(default_factory=dict)
    """Units that must stay, by group."""
    error: Error | None = None
    """None where there are no samples to run the network on."""
    tick: Callable[[float], None] = lambda share: None
    """Called with the share of the work that is done, by passes that take long."""
    finer: Problem | None = None
    """The same with smaller steps, for targets that are out of reach with these."""

    @property
    def sizes(self) -> Counts:
        """The number of units of each group."""
        return np.array([group.size for group in self.groups], np.int64)

    @property
    def coarse(self) -> NDArray[np.bool_]:
        """Which groups have two steps of several units: nobody who wishes for 70 % of one expects to get half."""
        return np.asarray((self.steps > 1) & (self.steps < self.sizes) & (self.sizes <= 2 * self.steps))

    @property
    def floor(self) -> Counts:
        """The fewest units of each group: its lower bound or what is required, whichever is more, in whole steps."""
        required = np.array([len(self.required.get(k, ())) for k in range(len(self.groups))], np.int64)
        lower = np.maximum(self.lower, required)
        return np.asarray(np.minimum(-(-lower // self.steps) * self.steps, self.upper))

    def ranking(self, index: int) -> NDArray[np.int64]:
        """The units of one group: those that are required, then those with the highest scores."""
        scores = np.array(self.scores[index], np.float64)
        scores[list(self.required.get(index, ()))] = np.inf
        return np.argsort(-scores, kind="stable")

    def best(self, counts: Counts) -> Keep:
        """So many of the best units of each group."""
        rankings = [self.ranking(k)[:count] for k, count in enumerate(counts)]
        return {group.id: sorted(units.tolist()) for group, units in zip(self.groups, rankings, strict=True)}

    @property
    def kinds(self) -> list[str]:
        """What the targets are about; multiply-accumulates where there are none."""
        return sorted({target.kind for target in self.targets}) or ["macs"]

    @property
    def limits(self) -> list[tuple[Target, float]]:
        """The targets, each with the cost that it allows."""
        return [(target, target.limit(self.model.original)) for target in self.targets]

    def usage(self, cost: Cost) -> float:
        """The largest share of a target's limit that is used; 0 without targets."""
        return max((cost.of(target.kind) / max(limit, 1e-9) for target, limit in self.limits), default=0.0)

    def a_step_less(self, counts: Counts, index: int) -> int:
        """The count of a group after its next step downwards, aligned whatever it was; it may be below the floor."""
        step = int(self.steps[index])
        return (int(counts[index]) - 1) // step * step

    def a_step_more(self, counts: Counts, index: int) -> int:
        """The count of a group after its next step upwards: at most its upper bound."""
        return int(min(counts[index] + self.steps[index], self.upper[index]))


def solve(problem: Problem, path: KeepPath) -> Keep:
    """The kept units of each group, in order.

    Raises UnreachableError where even the smallest network is above a target.
    """
    while True:
        kept = _Search(problem, path).run()
        empty = _empty_axes(problem, kept)
        if not empty:
            return {group.id: units for group, units in zip(problem.groups, kept, strict=True)}
        if all(unit in problem.required.get(group, ()) for group, unit in empty):
            raise UnreachableError("--ratio leaves nothing of some axis, or fewer experts than are chosen; raise it")
        for group, unit in empty:
            problem.required.setdefault(group, set()).add(unit)


class _Search:
    """One search for the highest level that meets the targets."""

    def __init__(self, problem: Problem, path: KeepPath) -> None:
        self.problem = problem
        self.path = path
        self.model = problem.model
        self.limits = problem.limits
        self.ranked = [problem.ranking(k) for k in range(len(problem.groups))]
        self.labels = np.concatenate([g.labels[order] for g, order in zip(problem.groups, self.ranked, strict=True)])
        self.rank = np.concatenate([np.arange(group.size) for group in problem.groups])
        self.owner = np.repeat(np.arange(len(problem.groups)), problem.sizes)

    def run(self) -> list[list[int]]:
        """Kept units by group, ascending."""
        counts = self._rounded(1.0) if not self.limits else self._fill(*self._bisect())
        return [sorted(order[:count].tolist()) for order, count in zip(self.ranked, counts, strict=True)]

    def cost(self, counts: Counts) -> Cost:
        """The cost of keeping this many of each group's best units."""
        present = np.ones(len(self.model.analysis.ledger.labels), dtype=bool)
        present[self.labels] = self.rank < counts[self.owner]
        return self.model.cost(present)

    def fits(self, counts: Counts) -> bool:
        """Whether every target is met."""
        return self.usage(counts) <= 1

    def usage(self, counts: Counts) -> float:
        """The largest share of a budget that is used."""
        return self.problem.usage(self.cost(counts))

    def _rounded(self, level: float) -> Counts:
        """Wished counts brought to the alignment and into the bounds: to the nearest step; coarse groups keep both or one."""
        problem = self.problem
        wished = np.minimum(self.path(level), problem.sizes)
        steps = wished / problem.steps
        whole = np.where(problem.coarse & (steps > 1), np.ceil(steps), np.rint(steps)) * problem.steps
        counts: Counts = np.where(wished >= problem.sizes, problem.sizes, whole).astype(np.int64)
        return np.asarray(np.clip(counts, problem.floor, problem.upper))

    def _bisect(self) -> tuple[Counts, Counts]:
        """The counts at the highest level that fits, and the wished counts just above it."""
        top = self._rounded(1.0)
        if self.fits(top):
            return top, top
        low, high = 0.0, 1.0
        below, above = self._rounded(low), top
        if not self.fits(below):
            self._refuse()
        for _ in range(24):
            middle = (low + high) / 2
            counts = self._rounded(middle)
            if np.array_equal(counts, below) or (not np.array_equal(counts, above) and self.fits(counts)):
                low, below = middle, counts
            else:
                high, above = middle, counts
        return below, above

    def _refuse(self) -> None:
        cost = self.cost(self._rounded(0.0))
        problems = [
            f"{target} asks for at most {limit:,.0f} {target.kind}, the smallest network has {cost.of(target.kind):,}"
            for target, limit in self.limits
            if cost.of(target.kind) > limit
        ]
        raise UnreachableError(
            "the target cannot be reached: " + "; ".join(problems) + ". Lower --min-channels or --align, or keep less"
        )

    def _fill(self, counts: Counts, wished: Counts) -> Counts:
        """Add single steps while the budget allows, first where the path would go next."""
        following = [self._next_score(k, counts) for k in range(len(counts))]
        by_wish = sorted(range(len(counts)), key=lambda k: (counts[k] - wished[k] >= 0, -following[k]))
        progress = True
        while progress and self.usage(counts) < FULL:
            progress = False
            for k in by_wish:
                before, counts[k] = counts[k], self.problem.a_step_more(counts, k)
                if counts[k] > before and self.fits(counts):
                    progress = True
                else:
                    counts[k] = before
        return self._trade(counts) if self.usage(counts) < CLOSE else counts

    def _trade(self, counts: Counts) -> Counts:
        """Grow one group and shrink another, each by one step at most, while the budget gets fuller."""
        best, usage = counts.copy(), self.usage(counts)
        for grown, shrunk in islice(self._pairs(counts, best), TRADES):
            trial = best.copy()
            trial[grown], trial[shrunk] = self.problem.a_step_more(best, grown), self.problem.a_step_less(best, shrunk)
            used = self.usage(trial)
            if usage < used <= 1:
                best[:], usage = trial, used
                if usage >= FULL:
                    break
        return best

    def _pairs(self, counts: Counts, best: Counts) -> Iterator[tuple[int, int]]:
        """Groups that can still grow and shrink, as a trade goes from `counts` to `best`; coarse ones shrink for coarse."""
        problem, floor, coarse = self.problem, self.problem.floor, self.problem.coarse
        shrinkable = [k for k in range(len(counts)) if problem.a_step_less(counts, k) >= floor[k]]
        for grown in np.flatnonzero(counts < problem.upper).tolist():
            for shrunk in shrinkable:
                moved = best[grown] > counts[grown] or best[shrunk] < counts[shrunk]
                if grown != shrunk and not moved and (coarse[grown] or not coarse[shrunk]):
                    yield grown, shrunk

    def _next_score(self, index: int, counts: Counts) -> float:
        order, scores = self.ranked[index], self.problem.scores[index]
        return float(scores[order[counts[index]]]) if counts[index] < len(order) else -np.inf


def _empty_axes(problem: Problem, kept: list[list[int]]) -> list[tuple[int, int]]:
    """For every axis of a tensor that would lose all its indices, the most important units to bring back; groups by number."""
    analysis = problem.model.analysis
    present = analysis.present({group.id: units for group, units in zip(problem.groups, kept, strict=True)})
    empty = analysis.emptied_axes(present)
    if not empty:
        return []
    units, worth = _units_of_labels(problem)
    best = (rows[np.argmax(np.where(present[rows].all(axis=1), -np.inf, worth[rows].sum(axis=1)))] for rows in empty)
    revived = set().union(*(units.get(label, set()) for row in best for label in row.tolist()))
    return sorted((group, unit) for group, unit in revived if unit not in kept[group])


def _units_of_labels(problem: Problem) -> tuple[dict[int, set[tuple[int, int]]], NDArray[np.float64]]:
    """The units that must stay so that a label does, by group and unit, and what they are worth.

    A label that only stays where a reader takes it stays with the best that some reader takes.
    """
    units: dict[int, set[tuple[int, int]]] = {}
    worth = np.zeros(len(problem.model.analysis.ledger.labels))
    for number, group in enumerate(problem.groups):
        units |= {label: {(number, unit)} for unit, label in enumerate(group.labels.tolist())}
        worth[group.labels] = problem.scores[number]
    for outer, inner in problem.model.analysis.taken_leaves:
        for row in np.argsort(-worth[inner].sum(axis=1), kind="stable"):
            needed = set().union(*(units.get(label, set()) for label in inner[row].tolist()))
            for label in outer[row].tolist():
                if label not in units:
                    units[label], worth[label] = needed, worth[inner[row]].sum()
    return units, worth
