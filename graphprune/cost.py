"""What a network costs as a function of which channels it keeps: MACs, parameters, bytes, channels.

The analysis turns every tensor size into a product of axis sizes, so the cost of any candidate is a few vectorised sums: a
selection pass can try thousands.  Start reading at `CostModel.cost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .graph import element_count, is_parameter, item_bits
from .inference import Analysis
from .labels import Ids

KINDS = ("macs", "params", "bytes", "channels")


@dataclass(frozen=True)
class Cost:
    """MACs for one sample (or for the batch that the model fixes), parameters, bytes of weights, prunable channels."""

    macs: int
    params: int
    bytes: int
    channels: int

    def of(self, kind: str) -> int:
        """The figure of one kind of target."""
        return int(getattr(self, kind))


@dataclass(frozen=True)
class _Terms:
    """Sums of constant times product of axis counts; `factors` indexes the axes, one row a term."""

    constants: NDArray[np.float64]
    factors: NDArray[np.int64]

    def values(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.constants * counts[self.factors].prod(axis=1))


class CostModel:
    """Costs of every network that an analysis can lead to."""

    def __init__(self, analysis: Analysis) -> None:
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
        self._macs, self._params, self._bytes = (self._terms(terms) for terms in (macs, params, sizes))
        units = [group.labels for group in analysis.decided]
        self._units: Ids = np.concatenate(units) if units else np.zeros(0, np.int32)
        self._finish()

    def cost(self, present: NDArray[np.bool_]) -> Cost:
        """The cost with these labels present, and what readers take of others."""
        present = self.analysis.closed(present)
        counts = self.counts(present)
        macs, params, size = (round(terms.values(counts).sum()) for terms in (self._macs, self._params, self._bytes))
        return Cost(macs, params, size, int(present[self._units].sum()))

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
            terms = {"macs": self._macs, "params": self._params, "bytes": self._bytes}.get(kind)
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
        values = self._macs.values(self.counts(present))
        result: dict[int, int] = {}
        for term, value in zip(self.analysis.mac_terms, values.tolist(), strict=True):
            result[term.node] = result.get(term.node, 0) + round(value)
        return result

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
