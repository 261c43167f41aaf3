"""Groups: the free channel dimensions of a network, each with everything that shrinks with it.

A *unit* is one free variable, such as one channel with all its weights.  Units written by the same weights form a *group*:
the output channels of a convolution and whatever is coupled to them, or the heads of an attention layer.  Start reading
at `build_groups`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .graph import Graph
from .labels import Ids, Labels, Reason
from .site import Ledger, Role

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """One occurrence of a group in a weight: index `positions[k]` of the axis belongs to unit `units[k]`."""

    tensor: str
    axis: int
    role: Role
    parameter: str
    node: int
    positions: Ids
    units: Ids


@dataclass(frozen=True, eq=False)
class Group:
    """One free dimension: `labels[u]` is the variable of unit u."""

    id: str
    labels: Ids
    members: tuple[Member, ...]
    follows: bool = False
    """Whether what stays of it is what its readers take (`graphprune.taking`); nobody decides about it then."""

    @property
    def size(self) -> int:
        """The number of units."""
        return len(self.labels)

    @cached_property
    def signature(self) -> tuple[tuple[str, str, int], ...]:
        """What kinds of members there are, for comparing like with like (isomorphic pruning)."""
        return tuple(sorted({(member.role, member.parameter, member.axis) for member in self.members}))


@dataclass(frozen=True)
class Pinned:
    """An axis of a weight that cannot be pruned, or only in part, and why."""

    tensor: str
    axis: int
    reason: Reason
    indices: int
    """How many of its indices are pinned."""


def build_groups(ledger: Ledger) -> list[Group]:
    """All groups, in the order in which the network computes them."""
    arrays = _Arrays(ids for record in ledger.tensor_axes for ids in (record.ids, *(factor for factor, _ in record.roles)))
    leaves = _leaf_table(ledger, arrays)
    first = _first_occurrences(ledger, arrays, leaves)
    labels = np.flatnonzero(first < _NEVER).astype(np.int32)
    if not len(labels):
        return []
    labels = labels[np.argsort(first[labels], kind="stable")]
    _, start, key = np.unique(_unit_keys(ledger, arrays, leaves)[labels], return_index=True, return_inverse=True)
    rank = np.empty(len(start), np.int32)
    rank[np.argsort(start)] = np.arange(len(start), dtype=np.int32)
    group = rank[key]
    order = np.argsort(group, kind="stable")
    units = np.split(labels[order], np.flatnonzero(np.diff(group[order])) + 1)
    group_of, unit_of = (np.full(len(ledger.labels), -1, np.int32) for _ in range(2))
    group_of[labels] = group
    for members in units:
        unit_of[members] = np.arange(len(members), dtype=np.int32)
    members_of = _members(ledger, arrays, group_of, unit_of)
    names: Counter[str] = Counter()
    read = _read_by_takes(ledger)
    return [
        Group(_group_name(members_of[k], names), units[k], tuple(members_of[k]), _follows(members_of[k], read[units[k]]))
        for k in range(len(units))
    ]


def _read_by_takes(ledger: Ledger) -> NDArray[np.bool_]:
    """For every label whether a Take reads it."""
    read = np.zeros(len(ledger.labels), dtype=bool)
    for taken in ledger.taken:
        read[ledger.labels.leaves(taken.outer)] = True
    return read


def _follows(members: list[Member], read: NDArray[np.bool_]) -> bool:
    return bool(read.all()) and all(member.role != "consumer" for member in members)


def list_pinned(graph: Graph, ledger: Ledger) -> list[Pinned]:
    """Axes of weights with pinned indices, kernel positions and axes of size 1 left out."""
    listed = [
        (name, axis, size, ids)
        for name, tensor in graph.initializers.items()
        for axis, (size, ids) in enumerate(zip(tensor.dims, ledger.values.get(name) or (), strict=False))
        if size > 1 and (name, axis) not in ledger.kernel_axes
    ]
    arrays = _Arrays(ids for *_, ids in listed if not isinstance(ids, int))
    counts, firsts = np.zeros(len(arrays.ids), np.int64), np.zeros(len(arrays.ids), np.int32)
    for number, _, leaves in arrays.chunks(ledger.labels):
        mask = ledger.labels.are_pinned_roots(leaves).all(axis=1)
        found, start, count = np.unique(number[mask], return_index=True, return_counts=True)
        counts[found] = count
        firsts[found] = np.flatnonzero(mask)[start] - np.searchsorted(number, found)
    pinned = []
    for name, axis, size, ids in listed:
        if isinstance(ids, int):
            pinned.append(Pinned(name, axis, ledger.labels.reason(ids), size))
        elif counts[arrays.number(ids)]:
            label = int(ids[firsts[arrays.number(ids)]])
            pinned.append(Pinned(name, axis, ledger.labels.reason(label), int(counts[arrays.number(ids)])))
    return pinned


_ROLES: tuple[Role, ...] = ("producer", "carrier", "consumer")
_NEVER = np.iinfo(np.int64).max
_CHUNK = 2**14
"""Indices that are looked at together: few numpy calls for many small axes, and bounded memory for large ones."""


class _Arrays:
    """The distinct vectors of labels; most axes share theirs with others."""

    def __init__(self, vectors: Iterable[Ids]) -> None:
        self.ids: list[Ids] = []
        self._number: dict[int, int] = {}
        for ids in vectors:
            if id(ids) not in self._number:
                self._number[id(ids)] = len(self.ids)
                self.ids.append(ids)

    def number(self, ids: Ids) -> int:
        """Which of the distinct vectors this one is."""
        return self._number[id(ids)]

    def chunks(self, labels: Labels) -> Iterator[tuple[Ids, Ids, Ids]]:
        """For some vectors at a time: the vector's number, the position, and the leaf labels (n, k) of each index."""
        start = 0
        while start < len(self.ids):
            end, total = start, 0
            while end < len(self.ids) and (end == start or total + len(self.ids[end]) <= _CHUNK):
                total += len(self.ids[end])
                end += 1
            sizes = [len(ids) for ids in self.ids[start:end]]
            number = np.repeat(np.arange(start, end, dtype=np.int32), sizes)
            position = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
            yield number, position, labels.leaves(np.concatenate(self.ids[start:end]))
            start = end


@dataclass(frozen=True)
class _LeafTable:
    """Variable `label[k]` occurs `count[k]` times in leaf column `column[k]` of vector `array[k]`, first at `position[k]`."""

    array: Ids
    column: Ids
    label: Ids
    position: Ids
    count: Ids
    width: int


def _leaf_table(ledger: Ledger, arrays: _Arrays) -> _LeafTable:
    parts: list[tuple[Ids, Ids, Ids, Ids, Ids]] = []
    width = 1
    for number, position, leaves in arrays.chunks(ledger.labels):
        width = max(width, leaves.shape[1])
        for column, label in enumerate(leaves.T):
            free = np.flatnonzero(~ledger.labels.are_pinned_roots(label))
            key = number[free].astype(np.int64) << 32 | label[free]
            found, first, count = np.unique(key, return_index=True, return_counts=True)
            which = (found & 0xFFFFFFFF).astype(np.int32)
            places = position[free[first]]
            same = np.full(len(found), column, np.int32)
            times: Ids = count.astype(np.int32)
            parts.append(((found >> 32).astype(np.int32), same, which, places, times))
    empty = (np.zeros(0, np.int32),) * 5
    array, columns, which, places, times = (np.concatenate(each) for each in zip(*(parts or [empty]), strict=True))
    return _LeafTable(array, columns, which, places, times, width)


def _first_occurrences(ledger: Ledger, arrays: _Arrays, leaves: _LeafTable) -> Indices:
    """For every label a number that grows with its first occurrence, those as producers before all others."""
    rank: dict[int, tuple[int, int]] = {}
    for entry, record in enumerate(ledger.tensor_axes):
        for ids, role in record.roles:
            number = arrays.number(ids)
            rank[number] = min(rank.get(number, (len(_ROLES), entry)), (_ROLES.index(role), entry))
    order = sorted((role, column, entry, number) for number, (role, entry) in rank.items() for column in range(leaves.width))
    base = np.full((len(arrays.ids), leaves.width), -1, np.int64)
    total = 0
    for _, column, _, number in order:
        base[number, column] = total
        total += len(arrays.ids[number])
    place = base[leaves.array, leaves.column]
    first = np.full(len(ledger.labels), _NEVER)
    known = place >= 0
    np.minimum.at(first, leaves.label[known], place[known] + leaves.position[known])
    return first


def _unit_keys(ledger: Ledger, arrays: _Arrays, leaves: _LeafTable) -> NDArray[np.uint64]:
    """A key per variable; units of one group have equal keys.

    The key adds up random numbers, one per occurrence as a *producer* (so that channels stay one group when later layers
    read different parts of them); variables that nobody produces are told apart by all their occurrences.
    """
    rng = random.Random(0)  # noqa: S311 (no secrets; numpy's generators take 10 ms to import)
    occurring, producing = (np.zeros((len(arrays.ids), leaves.width), np.uint64) for _ in range(2))
    seen: set[tuple[str, int, int, Role]] = set()
    for record in ledger.tensor_axes:
        for factor, (ids, role) in enumerate(record.roles):
            if (record.tensor, record.axis, factor, role) in seen:
                continue
            seen.add((record.tensor, record.axis, factor, role))
            salts = np.array([rng.randrange(1, 2**63) for _ in range(leaves.width)], np.uint64)
            occurring[arrays.number(ids)] += salts
            producing[arrays.number(ids)] += salts * (role == "producer")
    occurs, produced = (np.zeros(len(ledger.labels), np.uint64) for _ in range(2))
    for total, salt in ((occurs, occurring), (produced, producing)):
        np.add.at(total, leaves.label, salt[leaves.array, leaves.column] * leaves.count.astype(np.uint64))
    return np.where(produced > 0, produced, occurs)


Run = tuple[int, Ids, Ids]
"""Within one vector of labels: a group, the positions that belong to it, and their units."""


def _members(ledger: Ledger, arrays: _Arrays, group_of: Ids, unit_of: Ids) -> dict[int, list[Member]]:
    """The members of every group."""
    runs = _runs(ledger, arrays, group_of, unit_of)
    members: dict[int, list[Member]] = defaultdict(list)
    for record in ledger.tensor_axes:
        roles: dict[int, Role] = {}
        for ids, role in record.roles:
            for group, *_ in runs[arrays.number(ids)]:
                roles.setdefault(group, role)
        for group, positions, units in runs[arrays.number(record.ids)]:
            if group in roles:
                member = Member(record.tensor, record.axis, roles[group], record.parameter, record.node, positions, units)
                members[group].append(member)
    return members


def _runs(ledger: Ledger, arrays: _Arrays, group_of: Ids, unit_of: Ids) -> list[list[Run]]:
    """The runs of every vector, one leaf column after the other."""
    runs: list[list[Run]] = [[] for _ in arrays.ids]
    for number, position, leaves in arrays.chunks(ledger.labels):
        for label in leaves.T:
            group = group_of[label]
            free = np.flatnonzero(group >= 0)
            if not len(free):
                continue
            code = number[free].astype(np.int64) << 32 | group[free]
            order = free[np.argsort(code, kind="stable")]
            starts = np.flatnonzero(np.diff(np.sort(code), prepend=-1))
            positions, units = position[order], unit_of[label[order]]
            for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
                where = order[start]
                runs[int(number[where])].append((int(group[where]), positions[start:end], units[start:end]))
    return runs


def _group_name(members: list[Member], names: Counter[str]) -> str:
    first = next((member for member in members if member.role == "producer"), members[0])
    name = f"{first.tensor}:{first.axis}"
    names[name] += 1
    return name if names[name] == 1 else f"{name}/{names[name]}"
