"""Dependency analysis: find the groups of coupled channels by unification.

One walk over the nodes in topological order: each node's table entry maps the axes of its inputs to the axes of its results
(`graphprune.operators`), unifying and pinning labels on the way.  Weights bring fresh labels, the network's inputs and
outputs are pinned.  What is still free in the end falls into groups (`graphprune.groups`).

The idea is type inference: a channel is a type variable and an operator a typing rule (design section 1).  Start reading
at `infer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .experts import find_choices
from .graph import Graph, Shape, Use, node_reads, operator_name
from .groups import Group, Pinned, build_groups, list_pinned
from .labels import Ids, OpenAxis, Reason, all_of
from .operators import Operator, operator_table
from .options import Experts, Normalization
from .site import Contraction, Ledger, LooseAxis, MacTerm, Results, Site, Taken

if TYPE_CHECKING:
    from .depth import Residual

MOST_INDICES = 2**22
"""Axes with more indices than this are pinned: no layer has so many channels, and each would cost a label."""


@dataclass
class Analysis:
    """What is known about a graph's channels."""

    graph: Graph
    ledger: Ledger
    groups: list[Group]
    pinned: list[Pinned]
    moves: NDArray[np.int64] | None = None
    """For every label by how many places it moves in its axes (`graphprune.reorder`); None where all stay."""
    residuals: tuple[Residual, ...] = ()
    """Branches that may leave as a whole (`graphprune.depth`); none unless they were asked for."""

    @cached_property
    def decided(self) -> list[Group]:
        """The groups that selection decides about: all but those that follow from what single readers take of them."""
        return [group for group in self.groups if not group.follows]

    @property
    def contractions(self) -> list[Contraction]:
        """Where channels are summed over."""
        return self.ledger.contractions

    @property
    def mac_terms(self) -> list[MacTerm]:
        """What each contraction costs."""
        return self.ledger.mac_terms

    def present(self, keep: Mapping[str, list[int]]) -> NDArray[np.bool_]:
        """For every label whether it stays, given the kept units of each group (all where a group is not named)."""
        present = np.ones(len(self.ledger.labels), dtype=bool)
        for group in self.groups:
            if group.id in keep:
                present[group.labels] = False
                present[group.labels[keep[group.id]]] = True
        return self.closed(present)

    def kept(self, present: NDArray[np.bool_]) -> dict[str, list[int]]:
        """The kept units of each group, for labels as `present` returns them."""
        return {group.id: np.flatnonzero(present[group.labels]).tolist() for group in self.groups}

    def closed(self, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The labels that stay when those of decided groups do.

        What only serves a branch that left leaves with it, and what a reader takes must be there to be read.
        """
        present = present & ~self.left(present) if self.residuals else present
        if not self.taken_leaves:
            return present
        result = present & ~self._following
        count = -1
        while count != (count := int(result.sum())):
            for outer, inner in self.taken_leaves:
                result[outer[all_of(result, inner)].ravel()] = True
        return result

    @cached_property
    def fewest(self) -> dict[Group, int]:
        """The groups of experts, and how many of each must stay so that there are as many as are chosen."""
        labels, fewest = self.ledger.labels, dict[Group, int]()
        owner = np.full(len(labels), -1, np.int32)
        for number, group in enumerate(self.groups) if self.ledger.chosen else ():
            owner[group.labels] = number
        for choice in self.ledger.chosen:
            always = int(labels.is_pinned(choice.ids).sum())
            for number in np.unique(owner[labels.find(choice.ids)]).tolist():
                if number >= 0:
                    group = self.groups[number]
                    fewest[group] = max(fewest.get(group, 1), min(group.size, choice.count - always))
        return fewest

    @cached_property
    def may_leave(self) -> set[Group]:
        """The groups that may keep nothing."""
        return {residual.group for residual in self.residuals}

    def left(self, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For every label whether it leaves with a branch of which nothing stays."""
        left = np.zeros(len(present), dtype=bool)
        for residual in self.residuals:
            if residual.has_left(present):
                left[residual.labels] = True
        return left

    @cached_property
    def _following(self) -> NDArray[np.bool_]:
        """The labels that stay only where a reader takes them: those of groups that follow, but for what nobody ever takes."""
        following = np.zeros(len(self.ledger.labels), dtype=bool)
        for group in self.groups:
            following[group.labels] = group.follows
        wanted = ~following
        for outer, inner in self.taken_leaves:
            wanted[outer[all_of(wanted, inner)].ravel()] = True
        return following & wanted

    def shared_by_readers(self, worth: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
        """What labels are worth, with that of each label that is read shared out among its readers: all must let it go."""
        if not self.taken_leaves:
            return worth
        worth, readers = worth.copy(), np.zeros(len(worth))
        for outer, inner in self.taken_leaves:
            np.add.at(readers, outer[all_of(present, inner)], 1)
        for outer, inner in reversed(self.taken_leaves):
            share = np.where(all_of(present, inner), (worth[outer] / np.maximum(readers[outer], 1)).sum(axis=1), 0)
            np.add.at(worth, inner[:, 0], share)
        return worth

    @cached_property
    def taken_leaves(self) -> list[tuple[Ids, Ids]]:
        """The leaf labels of what is read and of what is taken, the last reader first."""
        leaves = self.ledger.labels.leaves
        return [(leaves(taken.outer), leaves(taken.inner)) for taken in reversed(self.ledger.taken)]

    def reader(self, taken: Taken) -> Use:
        """The one place that reads what a Take gives."""
        return self.graph.uses[self.graph.nodes[taken.node].output[0]][0]

    def index_mask(self, ids: Ids, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For every index of an axis whether it stays."""
        return all_of(present, self.ledger.labels.leaves(ids))

    def emptied_axes(self, present: NDArray[np.bool_]) -> list[Ids]:
        """The axes that would lose all their indices, each as the leaf labels of its indices, shape (n, k).

        So also those of experts of which fewer would stay than are chosen.  Those of branches that leave as a whole do not count.
        """
        return self._without_indices(present) + self.short_of_experts(present)

    def short_of_experts(self, present: NDArray[np.bool_]) -> list[Ids]:
        """The axes of experts of which fewer would stay than are chosen, as `emptied_axes` gives them."""
        there, leaves = present | self.left(present), self.ledger.labels.leaves
        axes = [(leaves(choice.ids), choice.count) for choice in self.ledger.chosen]
        return [axis for axis, count in axes if all_of(there, axis).sum() < count]

    def _without_indices(self, present: NDArray[np.bool_]) -> list[Ids]:
        shared = {id(ids): ids for name in self.ledger.values for _, ids in self.free_axes(name) if len(ids)}
        if not shared:
            return []
        arrays = list(shared.values())
        leaves = self.ledger.labels.leaves(np.concatenate(arrays))
        starts = np.cumsum([0, *(len(ids) for ids in arrays[:-1])])
        fine = all_of(present | self.left(present), leaves)
        alive = np.add.reduceat(fine, starts, dtype=np.int64)
        return [leaves[starts[k] : starts[k] + len(arrays[k])] for k in np.flatnonzero(alive == 0).tolist()]

    def free_axes(self, value: str) -> list[tuple[int, Ids]]:
        """The axes of a value that have labels, with those."""
        axes = self.ledger.values.get(value) or []
        return [(k, ids) for k, ids in enumerate(axes) if not isinstance(ids, int)]


def infer(
    graph: Graph,
    table: Mapping[str, Operator] | None = None,
    normalization: Normalization = "pin",
    experts: Experts = "keep",
) -> Analysis:
    """Analyse a normalised graph.  Never fails on unknown operators: they pin what they touch.

    With `normalization` "kept", channels that a normalisation takes its statistics over may leave; the statistics are then
    those of the kept channels.  With `experts` "prune", experts of a mixture may leave; they are never chosen then.
    """
    table = operator_table() if table is None else table
    graph = graph.learning()
    ledger = Ledger(normalization, experts, choices=find_choices(graph))
    for value in graph.inputs:
        shape = graph.shape(value.name)
        reason = Reason(f"network input {value.name!r} keeps its shape")
        ledger.loose[value.name] = None if shape is None else [ledger.labels.pin_label(reason)] * len(shape)
    for position in range(len(graph.nodes)):
        _visit(graph, ledger, position, table)
    for value in graph.outputs:
        _pin_value(graph, ledger, value.name, Reason(f"network output {value.name!r} keeps its shape"))
    for name in sorted(graph.overridable):
        _pin_value(graph, ledger, name, Reason(f"the caller may override {name!r}"))
    _pin_what_is_always_taken(ledger)
    ledger.settle()
    ledger.labels.flatten()
    return Analysis(graph, ledger, build_groups(ledger), list_pinned(graph, ledger))


def _visit(graph: Graph, ledger: Ledger, position: int, table: Mapping[str, Operator]) -> None:
    node = graph.nodes[position]
    entry = table.get(operator_name(node))
    site = Site(graph, ledger, position, entry.parameters if entry else ())
    if entry is None:
        results = _refuse_unknown(site, ledger)
    elif _is_too_long(graph, [*node.input, *node.output]):
        results = site.refuse(f"an axis of more than {MOST_INDICES} indices")
    else:
        results = entry.infer(site)
    if len(results) < len(node.output):
        results = site.refuse(f"{site.operator} with {len(node.output)} results has no rule")
    for index, name in enumerate(node.output):
        if name:
            axes = results[index]
            ledger.loose[name] = checked = _checked(site, axes, graph.shape(name))
            if checked is None:
                text = f"operator {site.operator} has no rule" if entry is None else f"the shape of {name!r} is not known"
                ledger.unknown.setdefault(name, Reason(text, site.label))
                site.refuse(ledger.unknown[name].text)
            else:
                graph.learn(name, [None if isinstance(axis, int) else len(axis) for axis in checked])


def _is_too_long(graph: Graph, names: Iterable[str]) -> bool:
    """Whether one of the values has an axis that is not worth a label for each index."""
    return any(isinstance(dim, int) and dim > MOST_INDICES for name in names for dim in graph.shape(name) or ())


def _refuse_unknown(site: Site, ledger: Ledger) -> Results:
    text = f"operator {site.operator} has no rule"
    for name in sorted(node_reads(site.graph.nodes[site.position]) - set(site.inputs)):
        _pin_value(site.graph, ledger, name, Reason(f"{text} and reads {name!r} inside", site.label))
    return site.refuse(text)


def _checked(site: Site, axes: Sequence[LooseAxis] | None, shape: Shape | None) -> Sequence[LooseAxis] | None:
    """The result of a rule, with axes of size 1 pinned; a result that contradicts shape inference is pinned."""
    if axes is None or shape is None:
        return axes
    sizes = [None if isinstance(axis, int) else len(axis) for axis in axes]
    fits = len(axes) == len(shape) and all(
        size is None or not isinstance(dim, int) or size == dim for size, dim in zip(sizes, shape, strict=True)
    )
    if not fits:
        text = f"{site.operator} has a result of shape {list(shape)} that its rule does not explain"
        site.refuse(text)
        return [site.pinned(text)] * len(shape)
    return axes


def _pin_value(graph: Graph, ledger: Ledger, name: str, reason: Reason) -> None:
    axes = ledger.loose.get(name)
    if axes is None and name in graph.initializers:
        axes = ledger.loose[name] = [OpenAxis(size) for size in graph.initializers[name].dims]
    for axis in axes or ():
        ledger.labels.pin_axis(axis, reason)


def _pin_what_is_always_taken(ledger: Ledger) -> None:
    """Pin what a reader cannot do without."""
    labels, count = ledger.labels, -1
    while count != (count := labels.pinned_count):
        for taken in reversed(ledger.taken):
            always = labels.is_pinned(taken.inner) & ~labels.is_pinned(taken.outer)
            for leaf in labels.leaves(taken.outer[always]).T if always.any() else ():
                labels.unify(leaf, taken.inner[always])
