"""Second-order scores against brute force: leave out, refit, and look at the error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from graphprune.evidence import Read
from graphprune.second_order import Elimination, eliminate

Wide = NDArray[np.float64]


def read(units: list[int], results: int = 3, rows: int = 400, seed: int = 0) -> tuple[Read, Wide]:
    """A read of correlated columns with a mean, and its rows."""
    rng = np.random.default_rng(seed)
    count = len(units)
    rows_ = rng.normal(size=(rows, count)) @ rng.normal(size=(count, count)) + rng.normal(size=count)
    mean = rows_.mean(axis=0)
    centred = rows_ - mean
    covariance = centred.T @ centred / rows
    matrix = rng.normal(size=(count, results))
    total = float((centred @ matrix).var(axis=0).sum())
    return Read(np.array(units, np.int32), matrix, mean, covariance, total), rows_


def refitted_error(item: Read, rows: Wide, gone: set[int]) -> float:
    """The error of the results when the columns of these units are left out and all others (and a constant) are refitted."""
    wanted = rows @ item.matrix
    kept = rows[:, [k for k, unit in enumerate(item.unit) if unit not in gone]]
    basis = np.column_stack([kept, np.ones(len(rows))])
    fitted = basis @ np.linalg.lstsq(basis, wanted, rcond=None)[0]
    return float(((wanted - fitted) ** 2).mean(axis=0).sum() / item.total)


@pytest.mark.parametrize("units", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3], [0, -1, 1, 1, 2, -1, 2, 0]])
def test_the_loss_of_a_unit_is_that_of_a_refit(units: list[int]) -> None:
    item, rows = read(units)
    size = max(units) + 1
    losses = Elimination(item, size, damping=0).losses(range(size))
    expected = [refitted_error(item, rows, {unit}) for unit in range(size)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_the_losses_after_a_removal_add_up_to_that_of_both() -> None:
    item, rows = read([0, 0, 1, 1, 2, 3, 3])
    state = Elimination(item, 4, damping=0)
    first = state.losses([2])[0]
    state.remove([2])
    for unit in (0, 1, 3):
        assert first + state.losses([unit])[0] == pytest.approx(refitted_error(item, rows, {2, unit}), rel=1e-6)


def test_elimination_is_greedy_and_its_sums_are_exact() -> None:
    item, rows = read([0, 1, 2, 3, 4, 5], seed=3)
    added = eliminate([item], 6, damping=0)
    order = np.argsort(added, kind="stable").tolist()
    gone: set[int] = set()
    for step, unit in enumerate(order[:-1]):
        best = min(refitted_error(item, rows, gone | {other}) for other in set(range(6)) - gone)
        gone.add(unit)
        assert refitted_error(item, rows, gone) == pytest.approx(best, rel=1e-6)
        assert added[order[: step + 1]].sum() >= best * (1 - 1e-6)
    assert added.sum() >= 1 - 1e-6


def test_errors_of_several_reads_add_up() -> None:
    one, rows = read([0, 1, 2, 3], seed=1)
    other, others = read([0, 0, 1, 2, 3], seed=2)
    added = eliminate([one, other], 4, damping=0)
    first = int(np.argmin(added))
    best = min(range(4), key=lambda unit: refitted_error(one, rows, {unit}) + refitted_error(other, others, {unit}))
    assert first == best
    assert added[first] == pytest.approx(refitted_error(one, rows, {first}) + refitted_error(other, others, {first}), rel=1e-6)


def test_a_copy_of_another_unit_costs_nothing() -> None:
    item, _ = read([0, 1, 2, 3])
    mix = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 2]], float)
    covariance = mix.T @ item.covariance @ mix
    copied = Read(np.arange(5, dtype=np.int32), np.vstack([item.matrix, item.matrix[:1]]), np.zeros(5), covariance, item.total)
    added = eliminate([copied], 5, damping=1e-9)
    cheapest = set(np.argsort(added)[:1].tolist())
    assert cheapest <= {3, 4}
    assert added.min() < 1e-6 < sorted(added)[1]


def test_large_groups_leave_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    item, rows = read(list(range(12)), seed=5)
    one_by_one = eliminate([item], 12, damping=0)
    monkeypatch.setattr("graphprune.second_order.STEPS", 4)
    at_once = eliminate([item], 12, damping=0)
    assert sorted(np.argsort(at_once)[:3].tolist()) == sorted(
        min(itertools.combinations(range(12), 3), key=lambda g: sum(refitted_error(item, rows, {u}) for u in g))
    )
    assert one_by_one.min() == pytest.approx(at_once.min())


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_it_does_not_matter_when_what_left_is_cut(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    item, _ = read([k % 6 for k in range(12)], seed=3)
    at_once = eliminate([item], 6)
    monkeypatch.setattr("graphprune.second_order.COMPACTED", share)
    np.testing.assert_allclose(eliminate([item], 6), at_once, rtol=1e-9)
