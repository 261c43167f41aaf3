"""What a network costs as a function of which channels it keeps: MACs, parameters, bytes, channels, measured time.

The analysis turns every tensor size into a product of axis sizes, so the cost of any candidate is a few vectorised sums: a
selection pass can try thousands.  Start reading at `CostModel.cost`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from .graph import element_count, is_parameter, item_bits
from .inference import Analysis
from .labels import Ids, all_of

KINDS = ("macs", "params", "bytes", "channels", "latency")

Times = Mapping[int, float]
"""Nanoseconds that nodes take, by position."""

Term = tuple[float, list[int]]
"""A constant and the axes whose sizes it is multiplied with, as `CostModel.counts` numbers them."""


@dataclass(frozen=True)
class Cost:
    """MACs for one sample (or for the batch that the model fixes), parameters, bytes of weights, prunable channels.

    `latency` is in nanoseconds, and 0 where the model that gave it knows no times.
    """

    macs: int
    params: int
    bytes: int
    channels: int
    latency: int = 0

    def of(self, kind: str) -> int:
        """The figure of one kind of target."""
        return int(getattr(self, kind))

    def as_dict(self) -> dict[str, int]:
        """All figures that are known."""
        return {kind: self.of(kind) for kind in KINDS if kind != "latency" or self.latency}


@dataclass(frozen=True)
class _Terms:
    """Sums of constant times product of axis counts; `factors` indexes the axes, one row a term."""

    constants: NDArray[np.float64]
    factors: NDArray[np.int64]

    def values(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.constants * counts[self.factors].prod(axis=1))


def _terms(terms: Sequence[Term]) -> _Terms:
    width = max((len(factors) for _, factors in terms), default=0) or 1
    table = np.full((len(terms), width), -1, np.int64)
    for row, (_, factors) in enumerate(terms):
        table[row, : len(factors)] = factors
    return _Terms(np.array([constant for constant, _ in terms], np.float64), table)


class CostModel:
    """Costs of every network that an analysis can lead to."""

    def __init__(self, analysis: Analysis, times: Times | None = None, present: NDArray[np.bool_] | None = None) -> None:
        """`times` are of the network with the labels `present`; others take time as their products and values are large."""
        self.analysis = analysis
        self._axes: dict[bytes, int] = {}
        self._arrays: list[Ids] = []
        self._serves: dict[int, set[int]] = defaultdict(set)
        for number, residual in enumerate(analysis.residuals):
            for node in residual.nodes:
                self._serves[node].add(number)
        macs = [(float(term.constant), self._factors(term.factors, term.node)) for term in analysis.mac_terms]
        replaced = {end.tail.shift.tensor for each in analysis.residuals for end in each.ends if end.tail.shift}
        params: list[Term] = []
        sizes: list[Term] = []
        for name, tensor in analysis.graph.initializers.items():
            free = dict(analysis.free_axes(name))
            constant = prod(size for axis, size in enumerate(tensor.dims) if axis not in free)
            readers = () if name in replaced else [use.node for use in analysis.graph.uses.get(name, ())]
            factors = self._factors(free.values(), *readers)
            sizes.append((constant * item_bits(tensor.data_type) / 8 if element_count(tensor) else 0, factors))
            if is_parameter(tensor):
                params.append((constant, factors))
        work = self._work(times, macs) if times else {}
        self._finish()
        if times:
            work = self._timed(work, times, np.ones(len(analysis.ledger.labels), dtype=bool) if present is None else present)
        terms = [term for node in work.values() for term in node]
        self._of_kind = {"macs": _terms(macs), "params": _terms(params), "bytes": _terms(sizes), "latency": _terms(terms)}
        units = [group.labels for group in analysis.decided]
        self._units: Ids = np.concatenate(units) if units else np.zeros(0, np.int32)

    def cost(self, present: NDArray[np.bool_]) -> Cost:
        """The cost with these labels present, and what readers take of others."""
        present = self.analysis.closed(present)
        counts = self.counts(present)
        figures = {kind: round(terms.values(counts).sum()) for kind, terms in self._of_kind.items()}
        return Cost(channels=int(present[self._units].sum()), **figures)

    @cached_property
    def original(self) -> Cost:
        """The cost with everything present."""
        return self.cost(np.ones(len(self.analysis.ledger.labels), dtype=bool))

    def savings(self, present: NDArray[np.bool_], kinds: Sequence[str]) -> NDArray[np.float64]:
        """For every label what its leaving would save, to first order, as a share of the original; kinds add up."""
        present = self.analysis.closed(present)
        counts, saved = self.counts(present), np.zeros(len(present))
        slope = np.zeros(len(counts))
        for kind in kinds:
            terms = self._of_kind.get(kind)
            if terms is None:
                saved[self._units] += 1 / max(1, self.original.channels)
                continue
            share = terms.values(counts) / max(1, self.original.of(kind))
            for factors in terms.factors.T:
                np.add.at(slope, factors, share / np.maximum(counts[factors], 1))
        if len(self._leaves):
            alive = all_of(present, self._leaves)
            sizes = np.diff(np.append(self._starts, len(self._leaves)))
            worth = np.where(alive, np.repeat(slope[: len(sizes)], sizes), 0)
            for leaf, repeated in zip(self._leaves.T, _repeats(self._leaves), strict=True):
                saved += np.bincount(leaf, np.where(repeated, 0, worth), minlength=len(present))
        return self.analysis.shared_by_readers(saved, present)

    def counts(self, present: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The kept size of every distinct axis, then 1 for each branch that stays and 0 for others, the last first, then 1."""
        branches = [not residual.has_left(present) for residual in reversed(self.analysis.residuals)]
        kept = np.cumsum(all_of(present, self._leaves), dtype=np.float64)
        sizes = np.diff(np.append(0.0, kept)[np.append(self._starts, len(kept))])
        return np.concatenate([sizes, branches, [1.0]])

    def node_macs(self, present: NDArray[np.bool_]) -> dict[int, int]:
        """MACs of each contraction by node position."""
        values = self._of_kind["macs"].values(self.counts(present))
        result: dict[int, int] = {}
        for term, value in zip(self.analysis.mac_terms, values.tolist(), strict=True):
            result[term.node] = result.get(term.node, 0) + round(value)
        return result

    def _work(self, nodes: Iterable[int], macs: Sequence[Term]) -> dict[int, list[Term]]:
        """What the time of each node goes with: its MACs, or the size of its first result."""
        graph = self.analysis.graph
        products: dict[int, list[Term]] = defaultdict(list)
        for contraction, term in zip(self.analysis.mac_terms, macs, strict=True):
            products[contraction.node].append(term)
        sizes = {node: [ids for _, ids in self.analysis.free_axes(graph.nodes[node].output[0])] for node in nodes}
        return {node: products.get(node) or [(1.0, self._factors(free, node))] for node, free in sizes.items()}

    def _timed(self, work: Mapping[int, list[Term]], times: Times, present: NDArray[np.bool_]) -> dict[int, list[Term]]:
        """The work in the unit of time."""
        counts = self.counts(self.analysis.closed(present))
        timed = {}
        for node, terms in work.items():
            done = float(_terms(terms).values(counts).sum())
            timed[node] = [(times[node] * constant / max(done, 1e-6), factors) for constant, factors in terms]
        return timed

    def _factors(self, axes: Iterable[Ids], *nodes: int) -> list[int]:
        """Where `counts` has the sizes of these axes, and whether the branches stay that all these nodes serve."""
        factors = [self._axis(self.analysis.ledger.labels.find(ids)) for ids in axes]
        served = set.intersection(*(self._serves.get(node, set()) for node in nodes)) if nodes else set()
        return factors + [-2 - branch for branch in sorted(served)]

    def _axis(self, ids: Ids) -> int:
        key = ids.tobytes()
        if key not in self._axes:
            self._axes[key] = len(self._arrays)
            self._arrays.append(ids)
        return self._axes[key]

    def _finish(self) -> None:
        sizes = [len(ids) for ids in self._arrays]
        flat = np.concatenate(self._arrays) if self._arrays else np.zeros(0, np.int32)
        self._leaves = self.analysis.ledger.labels.leaves(flat) if len(flat) else np.zeros((0, 1), np.int32)
        self._starts = np.cumsum([0, *sizes[:-1]]) if sizes else np.zeros(0, np.int64)


def _repeats(leaves: Ids) -> list[NDArray[np.bool_]]:
    """For each column where it repeats the label of an earlier one (labels with fewer factors are filled up so)."""
    return [(leaves[:, :k] == leaves[:, k : k + 1]).any(axis=1) for k in range(leaves.shape[1])]
