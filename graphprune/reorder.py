"""Reordering: channels stand in memory so that what a reader takes is a range.

Reading a range costs nothing or little; reading scattered channels needs a Gather.  Which channels may change places follows from
the analysis: those that stand side by side in every axis of every value and weight form a *block* (`blocks`), and whatever order
they have in one place they have in all, so the permutation is in the weights alone and no node is needed for it.  Within each
block the order is found exactly (`graphprune.consecutive`).  Start reading at `reordered`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .consecutive import best_orders
from .inference import Analysis
from .labels import Ids

Indices = NDArray[np.int64]
NO_CLASS = -1


def ordered(analysis: Analysis, present: NDArray[np.bool_]) -> dict[str, list[int]]:
    """The kept units of each group, in the order that lets most of what readers take be ranges."""
    if not analysis.ledger.taken:
        return analysis.kept(present)
    classes = channel_classes(analysis)
    block = blocks(analysis, classes)
    rank = np.arange(int(classes.max(initial=0)) + 1)
    alive, readers = _readers(analysis, present, classes, block)
    for part in _independent(readers):
        orders, _ = best_orders({number: alive[number] for reader in part for number in reader}, part)
        for number, order in orders.items():
            rank[order] = alive[number]
    shift = np.where(classes == NO_CLASS, 0, rank[classes] - classes)
    return {group.id: _in_order(np.flatnonzero(present[group.labels]), shift[group.labels]) for group in analysis.groups}


def _independent(readers: Sequence[Mapping[int, frozenset[int]]]) -> list[list[Mapping[int, frozenset[int]]]]:
    """The readers in parts that have no block in common."""
    import networkx as nx

    links = nx.Graph()
    for reader in readers:
        nx.add_path(links, reader)
    parts = [set(component) for component in nx.connected_components(links)]
    return [[reader for reader in readers if reader.keys() & part] for part in parts]


def _in_order(units: Indices, shift: Indices) -> list[int]:
    """Kept units of a group in their new order; `shift` says by how many places each unit of the group moves."""
    order: list[int] = units[np.argsort(units + shift[units], kind="stable")].tolist()
    return order


def reordered(analysis: Analysis, present: NDArray[np.bool_]) -> tuple[Analysis, dict[str, list[int]]]:
    """The analysis with channels in the order of `ordered`, and the kept units of each group in that order."""
    keep = ordered(analysis, present)
    return _moved(analysis, _out_of_order(keep)), keep


def with_order(analysis: Analysis, keep: Mapping[str, Sequence[int]]) -> Analysis:
    """The analysis with channels in the order of the kept units of each group; the same object where that is how they are.

    Raises ValueError, with the group's id, where units change places that do not stand side by side everywhere.
    """
    moved = _out_of_order(keep)
    if not moved:
        return analysis
    groups = {group.id: group for group in analysis.groups}
    block = blocks(analysis, channel_classes(analysis))
    for name, units in moved.items():
        labels, slots = groups[name].labels, np.sort(units)
        if (
            not np.array_equal(block[labels[units]], block[labels[slots]])
            or (block[labels[units[units != slots]]] == NO_CLASS).any()
        ):
            raise ValueError(name)
    return _moved(analysis, moved)


def _out_of_order(keep: Mapping[str, Sequence[int]]) -> dict[str, Indices]:
    """The kept units of those groups where they do not ascend."""
    return {name: np.array(units, np.int64) for name, units in keep.items() if sorted(units) != list(units)}


def _moved(analysis: Analysis, moved: Mapping[str, Indices]) -> Analysis:
    """The analysis with the kept units of some groups in another order; the same object where there are none."""
    if not moved:
        return analysis
    moves = np.zeros(len(analysis.ledger.labels), np.int64)
    for group in analysis.groups:
        if group.id in moved:
            units = moved[group.id]
            moves[group.labels[units]] = np.sort(units) - units
    return replace(analysis, moves=moves)


def orders(analysis: Analysis, vectors: Sequence[Ids]) -> list[Indices | None]:
    """For each axis (given by its labels) its indices in their new order; None where they stay."""
    if analysis.moves is None:
        return [None] * len(vectors)
    found: list[Indices | None] = []
    for ids in vectors:
        leaves = analysis.ledger.labels.leaves(ids)
        moving = np.flatnonzero(analysis.moves[leaves].any(axis=0))
        column = leaves[:, moving[0]] if len(moving) else leaves[:, 0]
        steps = analysis.moves[column] * _repetition(column)
        found.append(np.argsort(np.arange(len(ids)) + steps, kind="stable") if len(moving) else None)
    return found


def order_of(analysis: Analysis, ids: Ids) -> Indices:
    """The indices of one axis in their new order."""
    (order,) = orders(analysis, [ids])
    return np.arange(len(ids)) if order is None else order


def channel_classes(analysis: Analysis) -> Ids:
    """For every label the number of its channel; labels that a Take relates are one channel, pinned ones none (-1).

    Experts neither: among equals TopK chooses the first.
    """
    labels = analysis.ledger.labels
    root = np.arange(len(labels), dtype=np.int32)
    pairs = [(outer[:, 0], inner[:, 0]) for outer, inner in analysis.taken_leaves if outer.shape[1] == 1 and inner.shape[1] == 1]
    before = None
    while before is None or not np.array_equal(before, root):
        before = root.copy()
        for outer, inner in pairs:
            least = np.minimum(root[outer], root[inner])
            np.minimum.at(root, outer, least)
            np.minimum.at(root, inner, least)
        root = np.minimum(root, root[root])
    pinned = labels.are_pinned_roots(labels.find(np.arange(len(labels), dtype=np.int32)))
    fixed = np.zeros(len(labels), dtype=bool)
    fixed[root[pinned]] = True
    for choice in analysis.ledger.chosen:
        fixed[root[labels.leaves(choice.ids)]] = True
    units = np.concatenate([group.labels for group in analysis.groups] or [np.zeros(0, np.int32)])
    units = units[~fixed[root[units]]]
    _, first, number = np.unique(root[units], return_index=True, return_inverse=True)
    result: Ids = np.full(len(labels), NO_CLASS, np.int32)
    result[units] = np.argsort(np.argsort(first))[number]
    return result


def blocks(analysis: Analysis, classes: Ids) -> Ids:
    """For every label the number of its block: classes that follow each other in every axis where one of them occurs."""
    start = np.zeros(int(classes.max(initial=NO_CLASS)) + 2, dtype=bool)
    start[0] = True
    vectors = {id(ids): ids for axes in analysis.ledger.values.values() for ids in axes or () if not isinstance(ids, int)}
    for ids in [*vectors.values(), *(group.labels for group in analysis.groups)]:
        found = classes[analysis.ledger.labels.leaves(ids)]
        occurring = found[:, (found != NO_CLASS).any(axis=0)]
        if not occurring.shape[1]:
            continue
        changes = np.flatnonzero(np.diff(occurring[:, 0], prepend=-2))
        if occurring.shape[1] > 1 or len(np.unique(np.diff(np.append(changes, len(ids))))) > 1:
            apart = occurring[occurring != NO_CLASS]
            start[apart] = start[apart + 1] = True
            continue
        row = np.concatenate([[-2], occurring[changes, 0], [-2]])
        breaks = np.flatnonzero(np.diff(row) != 1)
        after, before = row[breaks + 1], row[breaks]
        start[after[after >= 0]] = True
        start[before[before >= 0] + 1] = True
    return np.where(classes == NO_CLASS, NO_CLASS, (np.cumsum(start) - 1)[classes]).astype(np.int32)


def _readers(
    analysis: Analysis, present: NDArray[np.bool_], classes: Ids, block: Ids
) -> tuple[dict[int, list[int]], list[dict[int, frozenset[int]]]]:
    """The kept classes of every block that can be ordered, and for each reader its sets in those, the last reader first.

    The Takes in front of one Concat make one reader: where one of them needs a Gather, that moves behind the Concat and serves
    them all.  What a single Take reads of several blocks at once no order within the blocks makes a range.
    """
    sets: dict[int, dict[int, frozenset[int]]] = defaultdict(dict)
    impossible: set[int] = set()
    labels = analysis.ledger.labels
    for taken in analysis.ledger.taken:
        outer, inner = labels.find(taken.outer), labels.find(taken.inner)
        there, kept = analysis.index_mask(outer, present), analysis.index_mask(inner, present)
        if there.sum() == kept.sum():
            continue
        reader = analysis.reader(taken).node
        found = np.unique(block[inner[kept]])
        if len(found) != 1 or found[0] == NO_CLASS or found[0] in sets[reader]:
            impossible.add(reader)
        else:
            sets[reader][int(found[0])] = frozenset(classes[inner[kept]].tolist())
    served = [sets[reader] for reader in sorted(sets, reverse=True) if reader not in impossible]
    numbers = {number for reader in served for number in reader}
    alive = {number: np.unique(classes[present & (block == number) & (classes >= 0)]).tolist() for number in numbers}
    return alive, served


def _repetition(ids: Ids) -> int:
    """How often each label of an axis stands in a row (a channel's positions behind a Flatten)."""
    changes = np.flatnonzero(np.diff(ids, prepend=-1))
    return len(ids) // len(changes)
