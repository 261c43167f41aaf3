"""Union-find over channel indices: the type variables of the analysis.

Every index of every prunable axis carries a *label*, an integer.  An axis of n channels is a vector of n
labels; operators move, join and unify those vectors (see `graphprune.inference`).  A label is one of

* a **variable**: may be present or absent in the pruned network;
* a **product** of two labels: present where both are (index (h, d) of an axis that is heads x head size);
* a **pinned** label: always present, for a reason that the user can read.

Two labels that must be removed together are *unified*.  Everything is vectorised and amortised near
linear (Tarjan 1975); nothing here knows about operators.  Start reading at `Labels.unify`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
NONE = -1


@dataclass(frozen=True)
class Reason:
    """Why something is pinned: a sentence for the user and the node (or value) that caused it."""

    text: str
    node: str = ""


class OpenAxis:
    """An axis of a weight whose labels nobody has asked for one by one: it is only as long as another, or unknown.

    Most axes of a network are met only as a whole, by whole axes; those never cost a label of their own.
    """

    __slots__ = ("bound", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.bound: Ids | int | OpenAxis | None = None

    def __len__(self) -> int:
        return self.size


class Labels:
    """The growing table of labels, with unification."""

    def __init__(self) -> None:
        self._parent: Ids = np.arange(1024, dtype=np.int32)
        self._left: Ids = np.full(1024, NONE, np.int32)
        self._right: Ids = np.full(1024, NONE, np.int32)
        self._pinned = np.zeros(1024, dtype=bool)
        self._size = 0
        self._reasons: dict[int, Reason] = {}
        self._pin_of: dict[Reason, int] = {}
        self._flat = False
        """Whether every label points straight at its representative."""
        self._has_products = False
        self._always = self.pin_label(Reason("this index is always present"))

    def __len__(self) -> int:
        return self._size

    # ---- making labels -------------------------------------------------------------------------

    def fresh(self, count: int) -> Ids:
        """`count` new variables, as an int32 vector."""
        start, end = self._size, self._size + count
        if end > len(self._parent):
            self._grow(end)
        self._size = end
        return np.arange(start, end, dtype=np.int32)

    def resolved(self, axis: Ids | int | OpenAxis) -> Ids | int | OpenAxis:
        """What an axis has been bound to so far; an OpenAxis only where it is still open."""
        while isinstance(axis, OpenAxis) and axis.bound is not None:
            axis = axis.bound
        return axis

    def settled(self, axis: Ids | int | OpenAxis) -> Ids | int:
        """The labels of an axis, made now if it is open."""
        found = self.resolved(axis)
        if not isinstance(found, OpenAxis):
            return found
        made = found.bound = self.fresh(found.size)
        return made

    def pin_label(self, reason: Reason) -> int:
        """The pinned label that stands for `reason` (one per distinct reason)."""
        if reason not in self._pin_of:
            label = int(self.fresh(1)[0])
            self._pinned[label] = True
            self._reasons[label] = reason
            self._pin_of[reason] = label
        return self._pin_of[reason]

    def reason(self, label: int) -> Reason:
        """The reason behind a pinned label (of a product: its innermost factor).  Raises KeyError if the label is not pinned."""
        return self._reasons[int(self.innermost(np.array([label], np.int32))[0])]

    def product(self, outer: Ids, inner: Ids) -> Ids:
        """Labels that are present where both operands are; vectors of equal length, element by element."""
        outer, inner = self.find(outer), self.find(inner)
        result = np.where(self._pinned[outer] & (inner != self._always), inner, outer)
        both = ~self._pinned[outer] & ~self._pinned[inner]
        if both.any():
            made = self.fresh(int(both.sum()))
            self._has_products = True
            self._left[made] = outer[both]
            self._right[made] = inner[both]
            result[both] = made
        return result

    def outer(self, rows: Ids, columns: Ids) -> Ids:
        """Labels of the flattened axis (rows x columns), row-major; length len(rows) * len(columns)."""
        return self.product(np.repeat(rows, len(columns)), np.tile(columns, len(rows)))

    def copied(self, ids: Ids) -> Ids:
        """Labels with the structure of these, of new variables in place of theirs; what is pinned stays pinned."""
        leaves = self.leaves(ids)
        free = ~self._pinned[leaves]
        old, number = np.unique(leaves[free], return_inverse=True)
        leaves[free] = self.fresh(len(old))[number]
        result: Ids = leaves[:, 0]
        for column in leaves.T[1:]:
            result = self.product(result, column)
        return result

    # ---- reading labels ------------------------------------------------------------------------

    def find(self, ids: Ids) -> Ids:
        """The representative of each label, compressing the paths on the way."""
        root = self._parent[ids]
        if self._flat:
            return root
        above = self._parent[root]
        if (above == root).all():
            return root
        while (above != root).any():
            root, above = above, self._parent[above]
        self._parent[ids] = root
        return root

    def flatten(self) -> None:
        """Point every label straight at its representative: until the next link each is found by one look-up."""
        self._parent[: self._size] = self.find(np.arange(self._size, dtype=np.int32))
        self._flat = True

    @property
    def pinned_count(self) -> int:
        """How many labels are pinned by now."""
        return int(self._pinned[self.find(np.arange(self._size, dtype=np.int32))].sum())

    def are_same(self, one: Ids | int | OpenAxis, other: Ids | int | OpenAxis) -> bool:
        """Whether two axes are the same index by index, or both pinned as a whole."""
        a, b = self.resolved(one), self.resolved(other)
        if isinstance(a, int) or isinstance(b, int):
            return isinstance(a, int) and isinstance(b, int)
        return a is b or np.array_equal(self.find(self.settled(a)), self.find(self.settled(b)))  # type: ignore[arg-type]

    def is_pinned(self, ids: Ids) -> NDArray[np.bool_]:
        """True where a label is pinned (a product is pinned once both its factors are)."""
        return all_of(self._pinned, self.leaves(ids))

    def are_pinned_roots(self, leaves: Ids) -> NDArray[np.bool_]:
        """As `is_pinned`, for what `leaves` returned."""
        return np.asarray(self._pinned[leaves])

    def leaves(self, ids: Ids) -> Ids:
        """The variables (or pinned labels) behind each label: shape (n, k), padded with pinned labels.

        Index i is present in the pruned network exactly if all k entries of row i are.
        """
        if not self._has_products:
            return self.find(ids)[:, None]
        todo, done = [self.find(ids)], []
        while todo:
            column = todo.pop()
            left = self._left[column]
            inner = left != NONE
            if not inner.any():
                done.append(column)
                continue
            right = np.where(inner, self.find(np.maximum(self._right[column], 0)), self._always)
            todo.append(right.astype(np.int32))
            todo.append(np.where(inner, self.find(np.maximum(left, 0)), column).astype(np.int32))
        return np.stack(done, axis=1)

    def innermost(self, ids: Ids) -> Ids:
        """The last leaf of each label that says something."""
        leaves = self.leaves(ids)
        innermost: Ids = leaves[:, 0]
        for column in leaves.T[1:]:
            innermost = np.where(column == self._always, innermost, column)
        return innermost

    # ---- whole axes ----------------------------------------------------------------------------

    def pin_axis(self, axis: Ids | int | OpenAxis, reason: Reason) -> None:
        """Require that every index of an axis is always present."""
        found = self.resolved(axis)
        if isinstance(found, OpenAxis):
            found.bound = self.pin_label(reason)
        elif not isinstance(found, int):
            self.pin(found, reason)

    def unify_axes(self, a: Ids | OpenAxis, b: Ids | int | OpenAxis) -> Ids | int | OpenAxis:
        """Unify two axes of equal size (b may be pinned as a whole); returns what they are now."""
        if isinstance(a, OpenAxis):
            a.bound = b
            return b
        if isinstance(b, OpenAxis):
            b.bound = a
        elif isinstance(b, int):
            self.unify(a, np.full(len(a), b, np.int32))
        else:
            self.unify(a, b)
        return a

    def split_axis(self, axis: Ids | OpenAxis, rows: int, columns: int) -> tuple[Ids, Ids]:
        """As `split`, for an axis that may be open."""
        found = self.resolved(axis)
        if isinstance(found, OpenAxis) and rows > 1 and columns > 1:
            row, column = self.fresh(rows), self.fresh(columns)
            found.bound = self.outer(row, column)
            return row, column
        ids = self.settled(found)
        assert not isinstance(ids, int)
        return self.split(ids, rows, columns)

    # ---- constraints ---------------------------------------------------------------------------

    def pin(self, ids: Ids, reason: Reason) -> None:
        """Require that every one of these labels is always present."""
        self.unify(ids, np.full(len(ids), self.pin_label(reason), np.int32))

    def unify(self, a: Ids, b: Ids) -> None:
        """Require a[i] and b[i] to be present together, for every i.

        Each round links the roots that differ and looks again: a variable joins a variable, then a
        variable becomes a product, then two products are unified factor by factor.  A pinned label
        pins what it meets.  Labels that have no common form are pinned.
        """
        while True:
            a, b = self.find(a), self.find(b)
            differ = (a != b) & ~(self._pinned[a] & self._pinned[b])
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            a_product, b_product = self._left[a] != NONE, self._left[b] != NONE
            plain = ~a_product & ~b_product
            mixed = a_product != b_product
            if plain.any():
                self._link_variables(a[plain], b[plain])
            elif mixed.any():
                variables, products = np.where(a_product, b, a), np.where(a_product, a, b)
                self._link_to_products(variables[mixed], products[mixed])
            else:
                self._unify_products(a, b)

    def split(self, ids: Ids, rows: int, columns: int) -> tuple[Ids, Ids]:
        """Factor the labels of an axis of size rows * columns (row-major) into labels of the two axes.

        Factors that exist are reused; variables that vary along both axes become products of new ones.
        """
        if rows == 1 or columns == 1:
            unit = np.full(1, self._always, np.int32)
            return (unit, self.find(ids)) if rows == 1 else (self.find(ids), unit)
        outer: Ids = np.full(rows, self._always, np.int32)
        inner: Ids = np.full(columns, self._always, np.int32)
        for slot in np.moveaxis(self.leaves(ids).reshape(rows, columns, -1), 2, 0):
            if (slot == slot[:, :1]).all():
                outer = self.product(outer, slot[:, 0])
            elif (slot == slot[:1]).all():
                inner = self.product(inner, slot[0])
            else:
                row, column = self.fresh(rows), self.fresh(columns)
                self.unify(slot.ravel(), self.outer(row, column))
                outer, inner = self.product(outer, row), self.product(inner, column)
        return outer, inner

    # ---- the three cases of unify --------------------------------------------------------------

    def _link(self, labels: Ids, roots: Ids) -> None:
        self._parent[labels] = roots
        self._flat = False

    def _link_variables(self, a: Ids, b: Ids) -> None:
        """Link roots so that pinned labels stay roots, else the older label does: no cycle is possible."""
        a_first = self._pinned[a] | (~self._pinned[b] & (a < b))
        self._link(np.where(a_first, b, a), np.where(a_first, a, b))

    def _link_to_products(self, variables: Ids, products: Ids) -> None:
        """Each variable becomes the product; one that would contain itself is pinned with it."""
        leaves = self.leaves(products)
        pin = self._pinned[variables]
        recursive = np.isin(variables, leaves)
        stop = pin | recursive
        if not stop.any():
            self._link(variables, products)
            return
        conflict = self.pin_label(Reason("the same channels are laid out in two incompatible ways"))
        source = np.where(pin, variables, np.int32(conflict))[stop]
        for column in leaves[stop].T:
            self.unify(column, source)
        self.unify(variables[stop], source)
        rest = ~stop
        self._link(products[stop], source)
        self.unify(variables[rest], products[rest])

    def _unify_products(self, a: Ids, b: Ids) -> None:
        """Unify factor by factor where the factors vary alike; pin where they have no common form.

        Both sides are then linked to a new product of plain variables (or to a pinned label), never to
        each other: one may contain the other, and a link would close a cycle.
        """
        left, right = self._free_columns(a), self._free_columns(b)
        pairs = self._matching_factors(left, right)
        if pairs is None:
            conflict = Reason("the same channels are split into incompatible factors")
            for column in [*left.T, *right.T]:
                self.pin(column, conflict)
            common = np.full(len(a), self.pin_label(conflict), np.int32)
        else:
            for one, other in pairs:
                self.unify(one, other)
            common = self._common(a)
        self._link(self.find(a), common)
        self._link(self.find(b), common)

    def _common(self, ids: Ids) -> Ids:
        """One product of plain variables for all labels with the same factors: two would be unified for ever."""
        columns = self._free_columns(ids)
        if not columns.shape[1]:
            return self.innermost(ids)
        rows, which = np.unique(columns, axis=0, return_inverse=True)
        return self._join(rows)[which.reshape(-1)]

    def _free_columns(self, ids: Ids) -> Ids:
        """The leaf matrix without the columns that are pinned throughout."""
        leaves = self.leaves(ids)
        return leaves[:, ~self._pinned[leaves].all(axis=0)]

    def _matching_factors(self, a: Ids, b: Ids) -> list[tuple[Ids, Ids]] | None:
        """Pair runs of columns that vary alike, each run one column on at least one side; None if impossible.

        Equal numbers of columns pair up in order: where the factors differ in size (12 x 4 and 6 x 8) that couples more than
        a common refinement would, and is just as right.
        """
        if a.shape[1] == b.shape[1]:
            return list(zip(a.T, b.T, strict=True))
        pairs: list[tuple[Ids, Ids]] = []
        i = j = 0
        while i < a.shape[1] and j < b.shape[1]:
            i_end, j_end = i + 1, j + 1
            while not _same_partition(a[:, i:i_end], b[:, j:j_end]):
                widen_a = j_end - j > 1 or _classes(a[:, i:i_end]) < _classes(b[:, j:j_end])
                if widen_a and j_end - j == 1 and i_end < a.shape[1]:
                    i_end += 1
                elif (not widen_a and i_end - i == 1 and j_end < b.shape[1]) or (j_end - j > 1 and j_end < b.shape[1]):
                    j_end += 1
                else:
                    return None
            pairs.append((self._join(a[:, i:i_end]), self._join(b[:, j:j_end])))
            i, j = i_end, j_end
        return pairs if i == a.shape[1] and j == b.shape[1] else None

    def _join(self, columns: Ids) -> Ids:
        result: Ids = columns[:, 0]
        for column in columns.T[1:]:
            result = self.product(result, column)
        return result

    def _grow(self, needed: int) -> None:
        capacity = max(needed, len(self._parent) * 3 // 2)
        more = capacity - len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(len(self._parent), capacity, dtype=np.int32)])
        self._left = np.concatenate([self._left, np.full(more, NONE, np.int32)])
        self._right = np.concatenate([self._right, np.full(more, NONE, np.int32)])
        self._pinned = np.concatenate([self._pinned, np.zeros(more, dtype=bool)])


def all_of(flags: NDArray[np.bool_], leaves: Ids) -> NDArray[np.bool_]:
    """For each row of labels whether the flags of all are set: [labels], [n, k] -> [n]."""
    result: NDArray[np.bool_] = flags[leaves[:, 0]]
    for column in leaves.T[1:]:
        result &= flags[column]
    return result


def _codes(columns: Ids) -> NDArray[np.int64]:
    """One integer a row, equal exactly where the rows are equal."""
    codes = np.zeros(len(columns), np.int64)
    for column in columns.T:
        _, inverse = np.unique(column, return_inverse=True)
        _, codes = np.unique(codes * len(columns) + inverse, return_inverse=True)
    return codes


def _classes(columns: Ids) -> int:
    return int(_codes(columns).max(initial=-1)) + 1


def _same_partition(a: Ids, b: Ids) -> bool:
    """Whether two column sets are equal on exactly the same pairs of rows."""
    return _classes(a) == _classes(b) == _classes(np.concatenate([a, b], axis=1))
