"""Groups: the free channel dimensions of a network, each with everything that shrinks with it.

A *unit* is one free variable, such as one channel with all its weights.  Units written by the same weights form a *group*:
the output channels of a convolution and whatever is coupled to them, or the heads of an attention layer.  Start reading
at `build_groups`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .graph import Graph
from .labels import Ids, Reason
from .site import Ledger, Role, TensorAxis

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

    @property
    def units_in_order(self) -> bool:
        """Whether each unit occurs once, in order, at positions 0, 1, 2 ..."""
        return np.array_equal(self.units, np.arange(len(self.units))) and np.array_equal(self.positions, self.units)


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


def build_groups(graph: Graph, ledger: Ledger) -> list[Group]:
    """All groups, in the order in which the network computes them."""
    unit_keys = _unit_keys(ledger)
    if not len(unit_keys):
        return []
    variables = np.flatnonzero(unit_keys)
    _, inverse = np.unique(unit_keys[variables], return_inverse=True)
    group_of = np.full(len(ledger.labels), -1, np.int64)
    group_of[variables] = inverse
    order = _unit_order(ledger, group_of)
    unit_of = np.full(len(ledger.labels), -1, np.int64)
    for labels in order.values():
        unit_of[labels] = np.arange(len(labels))
    members = _members(ledger, group_of, unit_of)
    groups = []
    taken: dict[str, int] = defaultdict(int)
    for group, labels in order.items():
        name = _group_name(members[group], taken)
        groups.append(Group(name, labels, tuple(members[group])))
    return groups


def list_pinned(graph: Graph, ledger: Ledger) -> list[Pinned]:
    """Axes of weights with pinned indices, kernel positions and axes of size 1 left out."""
    pinned: dict[tuple[str, int], Pinned] = {}
    for name, tensor in graph.initializers.items():
        axes = ledger.values.get(name) or ()
        for axis, ids in enumerate(axes):
            if isinstance(ids, int) or (name, axis) in ledger.kernel_axes:
                continue
            mask = ledger.labels.is_pinned(ids)
            if mask.any() and tensor.dims[axis] > 1:
                reason = _first_reason(ledger, ids[mask][:1])
                pinned[name, axis] = Pinned(name, axis, reason, int(mask.sum()))
    return list(pinned.values())


def _first_reason(ledger: Ledger, ids: Ids) -> Reason:
    return ledger.labels.reason(int(ledger.labels.leaves(ids)[0, 0]))


def _unit_keys(ledger: Ledger) -> NDArray[np.uint64]:
    """A key per label, 0 where it is not a free variable of a weight; units of one group have equal keys.

    The key adds up random numbers, one per occurrence as a *producer* (so that channels stay one group when later layers
    read different parts of them); variables that nobody produces are told apart by all their occurrences.
    """
    random = np.random.default_rng(0)
    count = len(ledger.labels)
    produced, occurs = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    seen: set[tuple[str, int, int, Role]] = set()
    for entry in ledger.tensor_axes:
        for factor, (ids, role) in enumerate(entry.roles):
            if (entry.tensor, entry.axis, factor, role) in seen:
                continue
            seen.add((entry.tensor, entry.axis, factor, role))
            leaves = ledger.labels.leaves(ids)
            for column in leaves.T:
                salt = random.integers(1, 2**63, dtype=np.uint64)
                np.add.at(occurs, column, salt)
                if role == "producer":
                    np.add.at(produced, column, salt)
    keys = np.where(produced > 0, produced, occurs)
    keys[ledger.labels.is_pinned(np.arange(count, dtype=np.int32))] = 0
    return keys


def _unit_order(ledger: Ledger, group_of: Indices) -> dict[int, Ids]:
    """The labels of each group in order of first occurrence; the groups too, producers first."""
    columns: dict[int, list[Ids]] = {}
    for wanted in ("producer", "carrier", "consumer"):
        for entry in ledger.tensor_axes:
            for ids, role in entry.roles:
                if role != wanted:
                    continue
                for column in ledger.labels.leaves(ids).T:
                    for group in dict.fromkeys(group_of[column].tolist()):
                        if group >= 0 and group not in columns:
                            columns[group] = [column[group_of[column] == group]]
    order: dict[int, Ids] = {}
    for group, (column, *_) in columns.items():
        _, first = np.unique(column, return_index=True)
        order[group] = column[np.sort(first)]
    return order


def _members(ledger: Ledger, group_of: Indices, unit_of: Indices) -> dict[int, list[Member]]:
    members: dict[int, list[Member]] = defaultdict(list)
    seen: set[tuple[str, int, str, int]] = set()
    for entry in ledger.tensor_axes:
        roles = _role_of_group(ledger, entry, group_of)
        for column in ledger.labels.leaves(entry.ids).T:
            groups = group_of[column]
            order = np.argsort(groups, kind="stable")
            found, starts = np.unique(groups[order], return_index=True)
            for group, positions in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
                role = roles.get(group)
                key = (entry.tensor, entry.axis, str(role), group)
                if group < 0 or role is None or key in seen:
                    continue
                seen.add(key)
                units = unit_of[column[positions]]
                members[group].append(
                    Member(entry.tensor, entry.axis, role, entry.parameter, entry.node, positions, units)
                )
    return members


def _role_of_group(ledger: Ledger, entry: TensorAxis, group_of: Indices) -> dict[int, Role]:
    roles: dict[int, Role] = {}
    for ids, role in entry.roles:
        for group in np.unique(group_of[ledger.labels.leaves(ids)]).tolist():
            roles.setdefault(group, role)
    return roles


def _group_name(members: list[Member], taken: dict[str, int]) -> str:
    first = next((member for member in members if member.role == "producer"), members[0])
    name = f"{first.tensor}:{first.axis}"
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}/{taken[name]}"
