"""Unconstrained mode: finding groups for every reader, and one ranking for all readers of a channel.

Start reading at `infer_unconstrained`; what a Take is, `graphprune.taking` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .convex import TIE
from .graph import Graph
from .groups import Group
from .inference import Analysis, infer
from .options import Experts, Normalization
from .reorder import NO_CLASS, channel_classes, order_of
from .taking import with_takes
from .weights import Vector


def infer_unconstrained(graph: Graph, normalization: Normalization = "pin", experts: Experts = "keep") -> Analysis:
    """The analysis of a normalised graph in which readers of a value take channels of their own.

    A Take whose channels no weight belongs to would never be decided about; those are left out.
    """
    useless: set[str] = set()
    while True:
        analysis = infer(with_takes(graph, useless), normalization=normalization, experts=experts)
        undecided = _undecided(analysis) - useless
        if not undecided:
            return analysis
        useless |= undecided


def _undecided(analysis: Analysis) -> set[str]:
    """The Takes of which some free label is in no group."""
    labels = analysis.ledger.labels
    known = labels.are_pinned_roots(np.arange(len(labels), dtype=np.int32))
    for group in analysis.groups:
        known[group.labels] = True
    return {
        analysis.graph.nodes[taken.node].name for taken in analysis.ledger.taken if not known[labels.leaves(taken.inner)].all()
    }


def nested(analysis: Analysis, groups: Sequence[Group], scores: Sequence[Vector]) -> list[Vector]:
    """Scores that rank a channel alike for all its readers, so that what one takes lies within what another does.

    A channel's rank is by the sum of what its readers give it, each scaled to a mean of 1; the scores of a group are its own, in
    that order.  Nested sets can always be laid out as ranges (`graphprune.reorder`).
    """
    classes = channel_classes(analysis)
    pooled = np.zeros(int(classes.max(initial=NO_CLASS)) + 1)
    for group, own in zip(groups, scores, strict=True):
        number = classes[group.labels]
        known = number != NO_CLASS
        np.add.at(pooled, number[known], (own / max(float(np.abs(own).mean()), 1e-30))[known])
    return [in_order_of(own, pooled, classes[group.labels]) for group, own in zip(groups, scores, strict=True)]


def in_order_of(own: Vector, pooled: Vector, number: NDArray[np.int32]) -> Vector:
    """Values in the order of `pooled`: for each channel the largest of `own` that leaves with it; others stay as they are.

    No two are equal, since ties would be broken by the unit's number, in each group in another way.
    """
    result = own.copy()
    known = np.flatnonzero(number != NO_CLASS)
    worst_first = known[np.lexsort((-number[known], pooled[number[known]]))]
    ranks = np.arange(len(worst_first)) * max(float(np.abs(own).max(initial=0)), 1e-30)
    result[worst_first] = np.maximum.accumulate(own[worst_first]) + TIE * ranks
    return result


def taken_by_readers(analysis: Analysis, present: NDArray[np.bool_]) -> list[tuple[str, int, int, list[int]]]:
    """(node, input, axis, indices) for each reader that takes less than is there; indices are those of the original, in order."""
    found = []
    for taken in analysis.ledger.taken:
        inner = analysis.index_mask(taken.inner, present)
        if inner.sum() < analysis.index_mask(taken.outer, present).sum():
            use = analysis.reader(taken)
            order = order_of(analysis, taken.inner)
            found.append((analysis.graph.nodes[use.node].name, use.input, taken.axis, order[inner[order]].tolist()))
    return found
