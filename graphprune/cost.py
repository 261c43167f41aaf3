"""What a network costs as a function of which channels it keeps: MACs, parameters, bytes, channels, measured time.

The analysis turns every tensor size into a product of axis sizes, so the cost of any candidate is a few vectorised sums: a
selection pass can try thousands.  Start reading at `CostModel.cost`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from .graph import element_count, is_parameter, item_bits
from .inference import Analysis
from .labels import Ids

KINDS = ("macs", "params", "bytes", "channels", "latency")

Times = Mapping[int, float]
"""Nanoseconds that nodes take, by position."""


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


class CostModel:
    """Costs of every network that an analysis can lead to."""

    def __init__(self, analysis: Analysis, times: Times | None = None) -> None:
        """With `times`, of the network as it is, other networks are taken to need time as their products and values are large."""
        self.analysis = analysis
        self._axes: dict[bytes, int] = {}
        self._arrays: list[Ids] = []
        labels = analysis.ledger.labels
        macs: list[tuple[float, list[int]]] = [
            (term.constant, [self._axis(labels.find(ids)) for ids in term.factors]) for term in analysis.mac_terms
        ]
        params: list[tuple[float, list[int]]] = []
        sizes: list[tuple[float, list[int]]] = []
        for name, tensor in analysis.graph.initializers.items():
            free = dict(analysis.free_axes(name))
            constant = 1
            for axis, size in enumerate(tensor.dims):
                constant *= 1 if axis in free else size
            factors = [self._axis(labels.find(ids)) for ids in free.values()]
            sizes.append((constant * item_bits(tensor.data_type) / 8 if element_count(tensor) else 0, factors))
            if is_parameter(tensor):
                params.append((constant, factors))
        self._of_kind = {
            kind: self._terms(terms)
            for kind, terms in (("macs", macs), ("params", params), ("bytes", sizes), ("latency", self._durations(times or {})))
        }
        units = [group.labels for group in analysis.decided]
        self._units: Ids = np.concatenate(units) if units else np.zeros(0, np.int32)
        self._finish()

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
            alive = present[self._leaves].all(axis=1)
            sizes = np.diff(np.append(self._starts, len(self._leaves)))
            worth = np.where(alive, np.repeat(slope[: len(sizes)], sizes), 0)
            for leaf, repeated in zip(self._leaves.T, _repeats(self._leaves), strict=True):
                saved += np.bincount(leaf, np.where(repeated, 0, worth), minlength=len(present))
        return self.analysis.shared_by_readers(saved, present)

    def counts(self, present: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The kept size of every distinct axis; the last entry is the constant 1."""
        if not len(self._leaves):
            return np.ones(1)
        kept = present[self._leaves].all(axis=1)
        return np.append(np.add.reduceat(kept, self._starts, dtype=np.float64), 1.0)

    def node_macs(self, present: NDArray[np.bool_]) -> dict[int, int]:
        """MACs of each contraction by node position."""
        values = self._of_kind["macs"].values(self.counts(present))
        result: dict[int, int] = {}
        for term, value in zip(self.analysis.mac_terms, values.tolist(), strict=True):
            result[term.node] = result.get(term.node, 0) + round(value)
        return result

    def _durations(self, times: Times) -> list[tuple[float, list[int]]]:
        """Terms that give every node its time: in proportion to its MACs, or to the size of its first result."""
        graph, labels = self.analysis.graph, self.analysis.ledger.labels
        products: dict[int, list[tuple[float, list[int]]]] = defaultdict(list)
        for term in self.analysis.mac_terms:
            axes = [self._axis(labels.find(ids)) for ids in term.factors]
            products[term.node].append((term.constant * self._full(axes), axes))
        terms = []
        self._timed: list[int] = []
        """The node of each term."""
        for node, time in times.items():
            free = [ids for _, ids in self.analysis.free_axes(graph.nodes[node].output[0])]
            shares = products.get(node) or [(1.0, [self._axis(labels.find(ids)) for ids in free])]
            total = sum(size for size, _ in shares)
            self._timed += [node] * len(shares)
            terms += [(time * size / max(total, 1) / self._full(factors), factors) for size, factors in shares]
        return terms

    def node_shares(self, present: NDArray[np.bool_]) -> dict[int, float]:
        """The predicted time of each node relative to that in the whole network, for nodes with a time."""
        everything = np.ones(len(present), dtype=bool)
        terms = self._of_kind["latency"]
        now, whole = (terms.values(self.counts(mask)) for mask in (self.analysis.closed(present), everything))
        shares: dict[int, list[float]] = {}
        for node, a, b in zip(self._timed, now.tolist(), whole.tolist(), strict=True):
            old = shares.setdefault(node, [0.0, 0.0])
            old[0], old[1] = old[0] + a, old[1] + b
        return {node: a / b for node, (a, b) in shares.items() if b}

    def _full(self, factors: Sequence[int]) -> int:
        """The product of whole axes."""
        return prod(len(self._arrays[factor]) for factor in factors)

    def _axis(self, ids: Ids) -> int:
        key = ids.tobytes()
        if key not in self._axes:
            self._axes[key] = len(self._arrays)
            self._arrays.append(ids)
        return self._axes[key]

    def _terms(self, terms: list[tuple[float, list[int]]]) -> _Terms:
        width = max((len(factors) for _, factors in terms), default=0) or 1
        table = np.full((len(terms), width), -1, np.int64)
        for row, (_, factors) in enumerate(terms):
            table[row, : len(factors)] = factors
        return _Terms(np.array([constant for constant, _ in terms], np.float64), table)

    def _finish(self) -> None:
        sizes = [len(ids) for ids in self._arrays]
        flat = np.concatenate(self._arrays) if self._arrays else np.zeros(0, np.int32)
        self._leaves = self.analysis.ledger.labels.leaves(flat) if len(flat) else np.zeros((0, 1), np.int32)
        self._starts = np.cumsum([0, *sizes[:-1]]) if sizes else np.zeros(0, np.int64)


def _repeats(leaves: Ids) -> list[NDArray[np.bool_]]:
    """For each column where it repeats the label of an earlier one (labels with fewer factors are filled up so)."""
    return [(leaves[:, :k] == leaves[:, k : k + 1]).any(axis=1) for k in range(leaves.shape[1])]
