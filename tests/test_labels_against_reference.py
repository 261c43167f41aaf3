"""Random sequences of unify, pin, product and split, against definitions that are too slow to ship."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.labels import Labels, Reason

COUNT = 8

variable = st.integers(0, COUNT - 1)
pairs = st.lists(st.tuples(variable, variable), max_size=12)
unifications = pairs.map(lambda edges: ("unify", edges))
pins = st.lists(variable, max_size=2).map(lambda ids: ("pin", ids))


def closure(edges: list[tuple[int, int]], pinned: list[int]) -> tuple[list[list[bool]], list[bool]]:
    """Reachability by Warshall's algorithm, and who reaches a pinned variable."""
    reach = [[i == j for j in range(COUNT)] for i in range(COUNT)]
    for a, b in edges:
        reach[a][b] = reach[b][a] = True
    for k in range(COUNT):
        for i in range(COUNT):
            for j in range(COUNT):
                reach[i][j] = reach[i][j] or (reach[i][k] and reach[k][j])
    return reach, [any(reach[i][p] for p in pinned) for i in range(COUNT)]


@settings(max_examples=100)
@given(steps=st.lists(st.one_of(unifications, pins), max_size=6))
def test_variables_are_the_transitive_closure(steps: list[tuple[str, Any]]) -> None:
    labels = Labels()
    ids = labels.fresh(COUNT)
    edges: list[tuple[int, int]] = []
    pinned: list[int] = []
    for number, (kind, what) in enumerate(steps):
        if kind == "unify":
            labels.unify(ids[[a for a, _ in what]], ids[[b for _, b in what]])
            edges += what
        else:
            labels.pin(ids[list(what)], Reason(f"step {number}"))
            pinned += what
    reach, stuck = closure(edges, pinned)
    assert labels.is_pinned(ids).tolist() == stuck
    roots = labels.find(ids).tolist()
    for i in range(COUNT):
        for j in range(COUNT):
            if not stuck[i] and not stuck[j]:
                assert (roots[i] == roots[j]) == reach[i][j]


@settings(max_examples=100)
@given(edges=pairs, order=st.randoms(use_true_random=False))
def test_the_order_of_constraints_does_not_matter(edges: list[tuple[int, int]], order: Any) -> None:
    shuffled = list(edges)
    order.shuffle(shuffled)
    partitions = []
    for sequence in (edges, shuffled):
        labels = Labels()
        ids = labels.fresh(COUNT)
        for a, b in sequence:
            labels.unify(ids[[a]], ids[[b]])
        roots = labels.find(ids).tolist()
        partitions.append([roots.index(root) for root in roots])
    assert partitions[0] == partitions[1]


class Recorded:
    """Labels with a record of every constraint, as predicates on which labels are present."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.labels = Labels()
        self.axes: list[np.ndarray] = [self.labels.fresh(size) for size in (6, 6, 2, 3, 12)]
        self.equal: list[tuple[np.ndarray, np.ndarray]] = []
        self.conjunctions: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.pinned: list[np.ndarray] = []

    def pick(self, fits: Any = lambda axis: True) -> np.ndarray | None:
        found = [axis for axis in self.axes if fits(axis)]
        return self.draw(st.sampled_from(range(len(found))).map(lambda k: found[k])) if found else None

    def step(self) -> None:
        kind = self.draw(st.sampled_from(["unify", "unify", "split", "split", "outer", "take", "pin", "concat"]))
        axis = self.pick()
        assert axis is not None
        if kind == "unify":
            other = self.pick(lambda each: len(each) == len(axis))
            assert other is not None
            self.labels.unify(axis, other)
            self.equal.append((axis, other))
        elif kind == "split":
            rows = self.draw(st.sampled_from([k for k in range(1, len(axis) + 1) if len(axis) % k == 0]))
            outer, inner = self.labels.split(axis, rows, len(axis) // rows)
            self.conjunctions.append((axis, np.repeat(outer, len(inner)), np.tile(inner, len(outer))))
            self.axes += [outer, inner]
        elif kind == "outer":
            other = self.pick(lambda each: len(each) * len(axis) <= 24)
            if other is not None:
                made = self.labels.outer(axis, other)
                self.conjunctions.append((made, np.repeat(axis, len(other)), np.tile(other, len(axis))))
                self.axes.append(made)
        elif kind == "take":
            order = self.draw(st.lists(st.integers(0, len(axis) - 1), min_size=1, max_size=6))
            self.axes.append(axis[order])
        elif kind == "concat" and len(axis) <= 12:
            self.axes.append(np.concatenate([axis, self.axes[0]]))
        elif kind == "pin" and self.draw(st.integers(0, 3)) == 0:
            part = axis[: self.draw(st.integers(1, len(axis)))]
            self.labels.pin(part, Reason("drawn"))
            self.pinned.append(part)


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_is_removed_every_constraint_holds(data: st.DataObject) -> None:
    """Any choice of free variables is a consistent network: unified labels go together, products are conjunctions."""
    record = Recorded(data.draw)
    for _ in range(data.draw(st.integers(1, 10))):
        record.step()
    labels = record.labels
    everything = np.arange(len(labels), dtype=np.int32)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    for chance in (0.2, 0.5, 0.8):
        present = (rng.random(len(labels)) < chance) | labels.is_pinned(everything)

        def there(axis: np.ndarray, present: np.ndarray = present) -> list[bool]:
            return present[labels.leaves(axis)].all(axis=1).tolist()

        for a, b in record.equal:
            assert there(a) == there(b)
        for whole, left, right in record.conjunctions:
            assert there(whole) == [x and y for x, y in zip(there(left), there(right), strict=True)]
        for axis in record.pinned:
            assert all(there(axis))
            assert labels.is_pinned(axis).all()
