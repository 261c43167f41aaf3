"""Orders in which sets of channels are consecutive: PQ-trees, and the best compromise where no order has them all.

A PQ-tree holds every order of its leaves that keeps each set seen so far together: the children of a P node may stand in any
order, those of a Q node in theirs or its reverse (Booth and Lueker 1976).  Start reading at `best_orders`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

TRIALS = 1000
"""Sets that are added to trees while other choices of readers are tried; then the best found so far is completed and taken."""


@dataclass(frozen=True, eq=False)
class Tree:
    """A leaf (`children` empty) or a node of a PQ-tree."""

    kind: Literal["leaf", "P", "Q"]
    leaves: frozenset[int]
    children: tuple[Tree, ...] = ()

    @property
    def frontier(self) -> list[int]:
        """The leaves in one of the orders that the tree stands for."""
        return [*self.leaves] if self.kind == "leaf" else [leaf for child in self.children for leaf in child.frontier]


Trees = dict[int, Tree]
"""A tree for each block."""


def best_order(sets: Sequence[frozenset[int]], elements: Sequence[int]) -> tuple[list[int], list[int]]:
    """An order of `elements` in which as many sets as possible are consecutive, and which those are (`best_orders`)."""
    orders, chosen = best_orders({0: elements}, [{0: members} for members in sets])
    return orders[0], chosen


def best_orders(
    blocks: Mapping[int, Sequence[int]], readers: Sequence[Mapping[int, frozenset[int]]]
) -> tuple[dict[int, list[int]], list[int]]:
    """An order of the elements of each block in which as many readers as possible find all their sets consecutive.

    A reader has a set in one or more of the blocks.  Returns the orders and the positions of the readers that they serve.  Exact
    wherever the search ends within `TRIALS` steps, which it does where an order serves all; among equals the first readers win.
    Elements that are in the same sets stay in their given order.
    """
    twins = {
        block: _twins(elements, [reader.get(block, frozenset()) for reader in readers]) for block, elements in blocks.items()
    }
    start = {block: _bundle([Tree("leaf", frozenset([c])) for c in range(len(found))]) for block, found in twins.items()}
    search = _Search([_in_classes(reader, twins) for reader in readers])
    trees, chosen = search.run(start)
    return {block: [element for c in trees[block].frontier for element in twins[block][c]] for block in blocks}, chosen


def _twins(elements: Sequence[int], sets: Sequence[frozenset[int]]) -> list[list[int]]:
    """The elements, those together that are in the same sets."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for element in elements:
        found[tuple(k for k, members in enumerate(sets) if element in members)].append(element)
    return list(found.values())


def _in_classes(reader: Mapping[int, frozenset[int]], twins: Mapping[int, list[list[int]]]) -> dict[int, frozenset[int]]:
    """The sets of a reader as sets of the classes that `_twins` found."""
    return {
        block: frozenset(c for c, elements in enumerate(twins[block]) if elements[0] in members)
        for block, members in reader.items()
    }


def reduced(tree: Tree, members: frozenset[int]) -> Tree | None:
    """The tree of those orders that also keep `members` together; None where there is none."""
    if len(members) < 2 or members >= tree.leaves:
        return tree
    inside = [child for child in tree.children if child.leaves & members]
    if len(inside) > 1:
        return _reduced_root(tree, members)
    child = reduced(inside[0], members)
    if child is None:
        return None
    return Tree(tree.kind, tree.leaves, tuple(child if each is inside[0] else each for each in tree.children))


class _Search:
    """Branch and bound over which readers to serve."""

    def __init__(self, readers: list[dict[int, frozenset[int]]]) -> None:
        self.readers = readers
        self.best: tuple[Trees, list[int]] = ({}, [])
        self.most = -1
        self.trials = 0

    def run(self, trees: Trees) -> tuple[Trees, list[int]]:
        """The trees that serve most readers, and which those are."""
        self._extend(trees, 0, [])
        return self.best

    def _extend(self, trees: Trees, k: int, chosen: list[int]) -> None:
        if len(chosen) + len(self.readers) - k <= self.most:
            return
        if k == len(self.readers):
            self.best, self.most = (trees, chosen), len(chosen)
            return
        more = self._serving(trees, self.readers[k])
        if more is not None:
            self._extend(more, k + 1, [*chosen, k])
        if more is None or (self.trials < TRIALS and any(more[block] is not trees[block] for block in trees)):
            self._extend(trees, k + 1, chosen)

    def _serving(self, trees: Trees, reader: Mapping[int, frozenset[int]]) -> Trees | None:
        """The trees of those orders that serve one reader more."""
        result = dict(trees)
        for block, members in reader.items():
            self.trials += 1
            tree = reduced(result[block], members)
            if tree is None:
                return None
            result[block] = tree
        return result


def _reduced_root(tree: Tree, members: frozenset[int]) -> Tree | None:
    """As `reduced`, where several children have members."""
    if tree.kind == "P":
        return _reduced_p_root(tree, members)
    touched = [k for k, child in enumerate(tree.children) if child.leaves & members]
    first, last = touched[0], touched[-1]
    if any(not child.leaves <= members for child in tree.children[first + 1 : last]):
        return None
    left, right = _ascending(tree.children[first], members), _ascending(tree.children[last], members)
    if left is None or right is None:
        return None
    middle = (*left, *tree.children[first + 1 : last], *right[::-1])
    return _q((*tree.children[:first], *middle, *tree.children[last + 1 :]))


def _reduced_p_root(tree: Tree, members: frozenset[int]) -> Tree | None:
    empty, partial, full = _sorted(tree, members)
    if len(partial) > 2:
        return None
    together = _bundle(full) if full else None
    if partial:
        ends = [_ascending(child, members) for child in partial]
        if any(end is None for end in ends):
            return None
        left = ends[0] or ()
        right = (ends[1] or ())[::-1] if len(ends) > 1 else ()
        together = _q((*left, *([together] if together else ()), *right))
    assert together is not None
    return _bundle([*empty, together])


def _ascending(tree: Tree, members: frozenset[int]) -> tuple[Tree, ...] | None:
    """The parts of a tree in a row, those without members first and those of members last; None where that cannot be."""
    if tree.leaves <= members or not tree.leaves & members:
        return (tree,)
    if tree.kind == "P":
        empty, partial, full = _sorted(tree, members)
        if len(partial) > 1:
            return None
        middle = _ascending(partial[0], members) if partial else ()
        if middle is None:
            return None
        return (*([_bundle(empty)] if empty else ()), *middle, *([_bundle(full)] if full else ()))
    row = tree.children if not tree.children[0].leaves & members or tree.children[-1].leaves <= members else tree.children[::-1]
    first = next(k for k, child in enumerate(row) if child.leaves & members)
    start = _ascending(row[first], members)
    if start is None or not all(child.leaves <= members for child in row[first + 1 :]):
        return None
    return (*row[:first], *start, *row[first + 1 :])


def _sorted(tree: Tree, members: frozenset[int]) -> tuple[list[Tree], list[Tree], list[Tree]]:
    """The children without members, with some, and of members alone."""
    empty, partial, full = list[Tree](), list[Tree](), list[Tree]()
    for child in tree.children:
        found = len(child.leaves & members)
        (empty if not found else full if found == len(child.leaves) else partial).append(child)
    return empty, partial, full


def _bundle(trees: Sequence[Tree]) -> Tree:
    """The trees in any order."""
    return trees[0] if len(trees) == 1 else Tree("P", frozenset().union(*(tree.leaves for tree in trees)), tuple(trees))


def _q(trees: tuple[Tree, ...]) -> Tree:
    """The trees in this order or its reverse."""
    return trees[0] if len(trees) == 1 else Tree("Q", frozenset().union(*(tree.leaves for tree in trees)), trees)
