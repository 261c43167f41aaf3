"""Union-find over channel indices: `graphprune.labels`."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.labels import Labels, Reason

WHY = Reason("because", "node")


@pytest.fixture
def labels() -> Labels:
    return Labels()


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def same(labels: Labels, a: np.ndarray, b: np.ndarray) -> bool:
    return labels.find(a).tolist() == labels.find(b).tolist()


# ---- variables ----------------------------------------------------------------------------------


def test_fresh_labels_are_distinct_and_free(labels: Labels) -> None:
    a, b = labels.fresh(3), labels.fresh(4)
    assert len(set(labels.find(np.concatenate([a, b])).tolist())) == 7
    assert not labels.is_pinned(a).any()


def test_the_table_grows_beyond_its_first_size(labels: Labels) -> None:
    a = labels.fresh(700)
    b = labels.fresh(5000)
    labels.unify(a, b[:700])
    assert same(labels, a, b[:700])
    assert not set(labels.find(b[700:]).tolist()) & set(labels.find(a).tolist())


def test_unify_joins_element_by_element(labels: Labels) -> None:
    a, b = labels.fresh(3), labels.fresh(3)
    labels.unify(a, b)
    assert same(labels, a, b)
    assert len(set(labels.find(a).tolist())) == 3


def test_unify_is_transitive_in_any_order(labels: Labels) -> None:
    a, b, c, d = (labels.fresh(2) for _ in range(4))
    labels.unify(c, d)
    labels.unify(a, b)
    labels.unify(d, a)
    assert same(labels, b, c)


def test_unify_with_a_three_cycle_joins_the_whole_orbit(labels: Labels) -> None:
    """x[i] ~ x[p(i)] for the cycle 0 -> 1 -> 2 -> 0, and a fixed point 3."""
    a = labels.fresh(4)
    labels.unify(a, a[[1, 2, 0, 3]])
    roots = labels.find(a).tolist()
    assert roots[0] == roots[1] == roots[2] != roots[3]


def test_a_three_cycle_between_two_vectors_keeps_its_direction(labels: Labels) -> None:
    a, b = labels.fresh(3), labels.fresh(3)
    labels.unify(a, b[[1, 2, 0]])
    assert labels.find(a).tolist() == labels.find(b)[[1, 2, 0]].tolist()
    assert labels.find(a).tolist() != labels.find(b)[[2, 0, 1]].tolist()


def test_a_vector_may_repeat_a_label(labels: Labels) -> None:
    a, b = labels.fresh(1), labels.fresh(3)
    labels.unify(np.repeat(a, 3), b)
    assert len(set(labels.find(np.concatenate([a, b])).tolist())) == 1


# ---- pins ---------------------------------------------------------------------------------------


def test_a_pin_has_its_reason(labels: Labels) -> None:
    a = labels.fresh(2)
    labels.pin(a[:1], WHY)
    assert labels.is_pinned(a).tolist() == [True, False]
    assert labels.reason(int(a[0])) == WHY


def test_the_reason_of_a_free_label_is_an_error(labels: Labels) -> None:
    a = labels.fresh(1)
    with pytest.raises(KeyError):
        labels.reason(int(a[0]))


def test_one_pinned_label_for_each_reason(labels: Labels) -> None:
    assert labels.pin_label(WHY) == labels.pin_label(Reason("because", "node"))
    assert labels.pin_label(WHY) != labels.pin_label(Reason("because", "other"))


@pytest.mark.parametrize("pin_first", [True, False])
def test_a_pin_spreads_over_what_is_unified(labels: Labels, pin_first: bool) -> None:
    a, b, c = (labels.fresh(2) for _ in range(3))
    if pin_first:
        labels.pin(b, WHY)
    labels.unify(a, b)
    labels.unify(c, a)
    if not pin_first:
        labels.pin(b, WHY)
    assert labels.is_pinned(np.concatenate([a, b, c])).all()
    assert labels.reason(int(c[1])) == WHY


def test_of_two_pins_the_first_reason_stays(labels: Labels) -> None:
    a = labels.fresh(1)
    labels.pin(a, WHY)
    labels.pin(a, Reason("later"))
    assert labels.reason(int(a[0])) == WHY


# ---- products -----------------------------------------------------------------------------------


def test_outer_is_row_major(labels: Labels) -> None:
    rows, columns = labels.fresh(2), labels.fresh(3)
    grid = labels.outer(rows, columns)
    assert [set(leaf.tolist()) for leaf in labels.leaves(grid)] == [{r, c} for r in rows for c in columns]


def test_a_product_with_a_pinned_label_is_the_other_factor(labels: Labels) -> None:
    a, b = labels.fresh(2), labels.fresh(2)
    labels.pin(b, WHY)
    assert same(labels, labels.product(a, b), a)
    assert same(labels, labels.product(b, a), a)


def test_a_product_is_pinned_once_both_factors_are(labels: Labels) -> None:
    a, b = labels.fresh(2), labels.fresh(2)
    both = labels.product(a, b)
    labels.pin(a, WHY)
    assert not labels.is_pinned(both).any()
    labels.pin(b, WHY)
    assert labels.is_pinned(both).all()


def test_pinning_a_product_pins_its_factors(labels: Labels) -> None:
    a, b = labels.fresh(2), labels.fresh(2)
    labels.pin(labels.product(a, b), WHY)
    assert labels.is_pinned(np.concatenate([a, b])).all()


def test_a_variable_becomes_the_product_it_meets(labels: Labels) -> None:
    flat, rows, columns = labels.fresh(6), labels.fresh(2), labels.fresh(3)
    labels.unify(flat, labels.outer(rows, columns))
    assert not labels.is_pinned(flat).any()
    assert [set(leaf.tolist()) for leaf in labels.leaves(flat)] == [{r, c} for r in rows for c in columns]


def test_equal_products_unify_factor_by_factor(labels: Labels) -> None:
    a, b, c, d = labels.fresh(2), labels.fresh(3), labels.fresh(2), labels.fresh(3)
    labels.unify(labels.outer(a, b), labels.outer(c, d))
    assert same(labels, a, c)
    assert same(labels, b, d)
    assert not labels.is_pinned(np.concatenate([a, b])).any()


def test_three_factors_against_two_split_the_second(labels: Labels) -> None:
    """(a (b c)) meets (d e) with e of size |b| |c|: e becomes (b c)."""
    a, b, c, d, e = labels.fresh(2), labels.fresh(3), labels.fresh(2), labels.fresh(2), labels.fresh(6)
    labels.unify(labels.outer(a, labels.outer(b, c)), labels.outer(d, e))
    assert same(labels, a, d)
    assert [set(leaf.tolist()) for leaf in labels.leaves(e)] == [{x, y} for x in labels.find(b) for y in labels.find(c)]


def test_factors_of_other_sizes_are_coupled(labels: Labels) -> None:
    """(2 x 3) meets (3 x 2): every constraint holds, whichever variables are left."""
    a, b, c, d = labels.fresh(2), labels.fresh(3), labels.fresh(3), labels.fresh(2)
    left, right = labels.outer(a, b), labels.outer(c, d)
    labels.unify(left, right)
    assert [set(leaf) for leaf in labels.leaves(left).tolist()] == [set(leaf) for leaf in labels.leaves(right).tolist()]


def test_incompatible_factors_are_pinned_with_a_reason(labels: Labels) -> None:
    """(4 x 9) and (9 x 2 x 2) over the same indices have no common form that this analysis follows."""
    a, b, c, d, e = (labels.fresh(size) for size in (4, 9, 9, 2, 2))
    labels.unify(labels.outer(a, b), labels.outer(c, labels.outer(d, e)))
    assert labels.is_pinned(np.concatenate([a, b, c, d, e])).all()
    assert "incompatible" in labels.reason(int(a[0])).text


def test_a_label_that_would_contain_itself_is_pinned(labels: Labels) -> None:
    """The occurs check: a ~ (a b) has no finite solution but 'always present'."""
    a, b = labels.fresh(1), labels.fresh(1)
    labels.unify(a, labels.product(a, b))
    assert labels.is_pinned(a).all()
    assert "incompatible" in labels.reason(int(a[0])).text


def test_a_label_that_would_contain_itself_through_another_is_pinned(labels: Labels) -> None:
    a, b, c, d = (labels.fresh(1) for _ in range(4))
    labels.unify(a, labels.product(b, c))
    labels.unify(b, labels.product(a, d))
    assert labels.is_pinned(a).all()
    labels.leaves(np.concatenate([a, b, c, d]))  # terminates


# ---- split --------------------------------------------------------------------------------------


def test_split_of_variables_makes_two_axes(labels: Labels) -> None:
    flat = labels.fresh(6)
    rows, columns = labels.split(flat, 2, 3)
    assert (len(rows), len(columns)) == (2, 3)
    assert [set(leaf) for leaf in labels.leaves(flat).tolist()] == [{r, c} for r in rows.tolist() for c in columns.tolist()]


def test_split_gives_back_the_factors_of_outer(labels: Labels) -> None:
    rows, columns = labels.fresh(2), labels.fresh(3)
    outer, inner = labels.split(labels.outer(rows, columns), 2, 3)
    assert same(labels, outer, rows)
    assert same(labels, inner, columns)


def test_split_of_the_same_axis_twice_is_the_same(labels: Labels) -> None:
    flat = labels.fresh(6)
    first, second = labels.split(flat, 3, 2), labels.split(flat, 3, 2)
    assert same(labels, first[0], second[0])
    assert same(labels, first[1], second[1])


def test_split_with_one_row_or_column_adds_a_pinned_unit(labels: Labels) -> None:
    flat = labels.fresh(4)
    rows, columns = labels.split(flat, 1, 4)
    assert labels.is_pinned(rows).all()
    assert same(labels, columns, flat)
    rows, columns = labels.split(flat, 4, 1)
    assert same(labels, rows, flat)
    assert labels.is_pinned(columns).all()


def test_split_of_an_axis_that_repeats_one_vector(labels: Labels) -> None:
    """Tile: the same three channels, twice.  Only the inner axis varies."""
    a = labels.fresh(3)
    rows, columns = labels.split(np.tile(a, 2), 2, 3)
    assert labels.is_pinned(rows).all()
    assert same(labels, columns, a)


def test_split_finer_than_before_refines_the_factor(labels: Labels) -> None:
    flat = labels.fresh(12)
    heads, sizes = labels.split(flat, 2, 6)
    groups, rest = labels.split(flat, 4, 3)
    assert same(labels, labels.split(groups, 2, 2)[0], heads)
    assert same(labels, labels.split(sizes, 2, 3)[1], rest)


def test_split_of_three_parts_in_either_order_gives_the_same_variables() -> None:
    """(2 x 6 then 6 = 3 x 2) and (6 x 2 then 6 = 2 x 3) describe one grid."""
    outcomes = []
    for outer_first in (True, False):
        labels = Labels()
        flat = labels.fresh(12)
        if outer_first:
            a, rest = labels.split(flat, 2, 6)
            b, c = labels.split(rest, 3, 2)
        else:
            rest, c = labels.split(flat, 6, 2)
            a, b = labels.split(rest, 2, 3)
        outcomes.append((len(set(a.tolist())), len(set(b.tolist())), len(set(c.tolist())), labels.leaves(flat).shape[1]))
    assert outcomes[0][:3] == outcomes[1][:3] == (2, 3, 2)


def test_a_batch_of_pairs_of_every_kind_loses_none() -> None:
    """A variable meets a product and two products meet in one call; the second pair was once dropped."""
    labels = Labels()
    a, b, single = labels.fresh(4), labels.fresh(4), labels.fresh(1)
    labels.split(a, 2, 2)
    labels.split(b, 2, 2)
    labels.unify(np.concatenate([single, a[1:2]]), np.concatenate([b[:1], b[2:3]]))
    assert set(labels.leaves(single)[0]) == set(labels.leaves(b[:1])[0])
    assert set(labels.leaves(a[1:2])[0]) == set(labels.leaves(b[2:3])[0])


def test_products_that_are_unified_with_their_own_permutation() -> None:
    """Channels joined with themselves in another order: the links between them must not close a cycle."""
    labels = Labels()
    rows, columns = labels.fresh(2), labels.fresh(3)
    ids = labels.outer(rows, columns)
    labels.unify(ids, ids[[1, 0, 2, 3, 5, 4]])
    found = labels.find(ids)
    assert found[0] == found[1]
    assert found[4] == found[5]
