"""Groups: the free channel dimensions of a network, each with everything that shrinks with it.

A *unit* is one free variable, such as one channel with all its weights.  Units written by the same weights form a *group*:
the output channels of a convolution and whatever is coupled to them, or the heads of an attention layer.  Start reading
at `build_groups`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .graph import Graph
from .labels import Ids, Reason
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
    positions: Indices
    units: Indices


@dataclass(frozen=True, eq=False)
class Group:
    """One free dimension: `labels[u]` is the variable of unit u."""

    id: str
    labels: Ids
    members: tuple[Member, ...]

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
    factors = _factor_occurrences(ledger)
    keys = _unit_keys(ledger, factors)
    labels, first = _units_in_order(factors)
    if not len(labels):
        return []
    _, start, group = np.unique(keys[labels], return_index=True, return_inverse=True)
    rank = np.empty(len(start), np.int64)
    rank[np.argsort(first[start], kind="stable")] = np.arange(len(start))
    group = rank[group]
    order = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[order])) + 1
    units = np.split(labels[order], bounds)
    group_of, unit_of = (np.full(len(ledger.labels), -1, np.int64) for _ in range(2))
    group_of[labels] = group
    for members in units:
        unit_of[members] = np.arange(len(members))
    members_of = _members(ledger, factors, group_of, unit_of)
    taken: Counter[str] = Counter()
    return [Group(_group_name(members_of[k], taken), units[k], tuple(members_of[k])) for k in range(len(units))]


def list_pinned(graph: Graph, ledger: Ledger) -> list[Pinned]:
    """Axes of weights with pinned indices, kernel positions and axes of size 1 left out."""
    listed = [
        (name, axis, size, ids)
        for name, tensor in graph.initializers.items()
        for axis, (size, ids) in enumerate(zip(tensor.dims, ledger.values.get(name) or (), strict=False))
        if size > 1 and (name, axis) not in ledger.kernel_axes
    ]
    vectors = [ids for *_, ids in listed if not isinstance(ids, int)]
    mask = ledger.labels.is_pinned(np.concatenate(vectors)) if vectors else np.zeros(0, bool)
    parts = iter(np.split(mask, np.cumsum([len(ids) for ids in vectors])[:-1]) if vectors else ())
    pinned = []
    for name, axis, size, ids in listed:
        if isinstance(ids, int):
            pinned.append(Pinned(name, axis, ledger.labels.reason(ids), size))
        elif (part := next(parts)).any():
            pinned.append(Pinned(name, axis, ledger.labels.reason(int(ids[part][0])), int(part.sum())))
    return pinned


@dataclass(frozen=True)
class _Occurrences:
    """Flat table: variable `label[k]` occurs in factor `factor[k]` of `entry[k]` with role `role[k]`."""

    label: Ids
    entry: Indices
    role: Indices
    column: Indices
    """A number for each distinct (tensor, axis, factor, role, leaf column)."""


_ROLES: tuple[Role, ...] = ("producer", "carrier", "consumer")


def _factor_occurrences(ledger: Ledger) -> _Occurrences:
    parts = [
        (ids, entry, factor, _ROLES.index(role))
        for entry, record in enumerate(ledger.tensor_axes)
        for factor, (ids, role) in enumerate(record.roles)
    ]
    if not parts:
        empty = np.zeros(0, np.int64)
        return _Occurrences(empty.astype(np.int32), empty, empty, empty)
    sizes = [len(ids) for ids, *_ in parts]
    leaves = ledger.labels.leaves(np.concatenate([ids for ids, *_ in parts]))
    numbers: dict[tuple[str, int, int, int], int] = {}
    column = [
        numbers.setdefault((ledger.tensor_axes[e].tensor, ledger.tensor_axes[e].axis, f, r), len(numbers))
        for _, e, f, r in parts
    ]
    first_uses = {number: k for k, number in reversed(list(enumerate(column)))}
    repeated = np.repeat([first_uses[number] != k for k, number in enumerate(column)], sizes)
    depth = leaves.shape[1]
    label = leaves.T.ravel()
    keep = ~np.tile(repeated, depth) & ~ledger.labels.is_pinned(label)
    return _Occurrences(
        label[keep],
        np.tile(np.repeat([e for _, e, _, _ in parts], sizes), depth)[keep],
        np.tile(np.repeat([r for *_, r in parts], sizes), depth)[keep],
        (np.tile(np.repeat(column, sizes), depth) * depth + np.repeat(np.arange(depth), sum(sizes)))[keep],
    )


def _unit_keys(ledger: Ledger, factors: _Occurrences) -> NDArray[np.uint64]:
    """A key per variable; units of one group have equal keys.

    The key adds up random numbers, one per occurrence as a *producer* (so that channels stay one group when later layers
    read different parts of them); variables that nobody produces are told apart by all their occurrences.
    """
    salts = np.random.default_rng(0).integers(1, 2**63, size=int(factors.column.max(initial=0)) + 1, dtype=np.uint64)
    produced, occurs = (np.zeros(len(ledger.labels), np.uint64) for _ in range(2))
    salt = salts[factors.column]
    producing = factors.role == _ROLES.index("producer")
    np.add.at(occurs, factors.label, salt)
    np.add.at(produced, factors.label[producing], salt[producing])
    return np.where(produced > 0, produced, occurs)


def _units_in_order(factors: _Occurrences) -> tuple[Ids, Indices]:
    """All variables in order of first occurrence, as producers first, and where that is."""
    order = np.argsort(factors.role, kind="stable")
    labels, first = np.unique(factors.label[order], return_index=True)
    by_first = np.argsort(first, kind="stable")
    return labels[by_first], first[by_first]


def _members(
    ledger: Ledger, factors: _Occurrences, group_of: Indices, unit_of: Indices
) -> dict[int, list[Member]]:
    """The members of every group: runs of equal (axis, group) in the flat table of all indices of all axes."""
    members: dict[int, list[Member]] = defaultdict(list)
    roles = _roles(factors, group_of)
    records = ledger.tensor_axes
    sizes = [len(record.ids) for record in records]
    leaves = ledger.labels.leaves(np.concatenate([record.ids for record in records]))
    entry = np.repeat(np.arange(len(records)), sizes)
    position = np.concatenate([np.arange(size) for size in sizes])
    for label in leaves.T:
        group = group_of[label]
        code = entry * (group_of.max() + 2) + group + 1
        order = np.argsort(code, kind="stable")
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        units, positions = unit_of[label[order]], position[order]
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            where, which = int(entry[order[start]]), int(group[order[start]])
            role = roles.get((where, which))
            if role is not None:
                record = records[where]
                members[which].append(
                    Member(
                        record.tensor,
                        record.axis,
                        role,
                        record.parameter,
                        record.node,
                        positions[start:end],
                        units[start:end],
                    )
                )
    return members


def _roles(factors: _Occurrences, group_of: Indices) -> dict[tuple[int, int], Role]:
    """The role of each group in each axis."""
    group = group_of[factors.label]
    pairs, first = np.unique(factors.entry * (group.max(initial=0) + 1) + group, return_index=True)
    where, which = np.divmod(pairs, group.max(initial=0) + 1)
    codes = factors.role[first].tolist()
    return {(w, g): _ROLES[code] for w, g, code in zip(where.tolist(), which.tolist(), codes, strict=True)}


def _group_name(members: list[Member], taken: Counter[str]) -> str:
    first = next((member for member in members if member.role == "producer"), members[0])
    name = f"{first.tensor}:{first.axis}"
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}/{taken[name]}"
