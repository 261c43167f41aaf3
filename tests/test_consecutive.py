"""PQ-trees: orders in which sets are consecutive, checked against intervals and brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.consecutive import best_order, best_orders


def consecutive(order: list[int], members: frozenset[int]) -> bool:
    places = sorted(order.index(member) for member in members)
    return not places or places[-1] - places[0] == len(places) - 1


@given(st.integers(0, 10**6), st.sampled_from([24, 64, 200, 512]), st.integers(2, 8))
@settings(max_examples=60)
def test_an_order_is_found_wherever_there_is_one(seed: int, channels: int, consumers: int) -> None:
    """Intervals of a hidden order, so that an order exists by construction; UPSCALE's search misses up to half of these."""
    rng = np.random.default_rng(seed)
    hidden = rng.permutation(channels).tolist()
    ends = [sorted(rng.choice(channels + 1, 2, replace=False).tolist()) for _ in range(consumers)]
    sets = [frozenset(hidden[first:last]) for first, last in ends]
    order, chosen = best_order(sets, range(channels))
    assert sorted(order) == list(range(channels))
    assert chosen == list(range(consumers))
    assert all(consecutive(order, members) for members in sets)


@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(2, 5))
@settings(max_examples=60)
def test_as_many_sets_as_possible_are_consecutive(seed: int, channels: int, consumers: int) -> None:
    rng = np.random.default_rng(seed)
    sets = [frozenset(rng.choice(channels, int(rng.integers(1, channels + 1)), replace=False).tolist()) for _ in range(consumers)]
    order, chosen = best_order(sets, range(channels))
    assert all(consecutive(order, sets[k]) for k in chosen)
    most = max(sum(consecutive(list(each), members) for members in sets) for each in permutations(range(channels)))
    assert len(chosen) == most


def test_elements_in_the_same_sets_keep_their_order() -> None:
    order, _ = best_order([frozenset({5, 1, 3})], [5, 4, 3, 2, 1])
    assert [each for each in order if each in (5, 3, 1)] == [5, 3, 1]
    assert [each for each in order if each in (4, 2)] == [4, 2]


def test_a_reader_of_two_blocks_is_served_in_both_or_in_neither() -> None:
    blocks = {0: range(4), 1: range(4)}
    first = {0: frozenset({0, 2}), 1: frozenset({1, 3})}
    second = {0: frozenset({1, 2}), 1: frozenset({0, 3})}
    third = {0: frozenset({0, 1}), 1: frozenset({0, 1})}
    orders, chosen = best_orders(blocks, [first, second, third])
    assert chosen == [0, 1]
    for block in blocks:
        assert consecutive(orders[block], first[block])
        assert consecutive(orders[block], second[block])
        assert not consecutive(orders[block], third[block])


@pytest.mark.parametrize("sets", [[], [frozenset()], [frozenset({2})], [frozenset({0, 1, 2})]])
def test_nothing_to_order(sets: list[frozenset[int]]) -> None:
    order, chosen = best_order(sets, range(3))
    assert sorted(order) == [0, 1, 2]
    assert chosen == list(range(len(sets)))
