"""Garbage collection while a network is compiled (`graphprune.garbage`)."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from onnx import parser

import graphprune
from graphprune import garbage
from graphprune.errors import UsageError

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1,4] x) => (float[1,4] y)
<float[4,8] a = {%s}, float[8,4] b = {%s}>
{ h = MatMul(x, a)  y = MatMul(h, b) }"""


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 9, 8)
    yield
    gc.set_threshold(*before)


def test_thresholds_return_when_the_last_of_several_callers_leaves() -> None:
    one, other = garbage.rarely(), garbage.rarely()
    one.__enter__()
    assert gc.get_threshold() == (garbage.OBJECTS, 9, 8)
    other.__enter__()
    one.__exit__(None, None, None)
    assert gc.get_threshold() == (garbage.OBJECTS, 9, 8)
    other.__exit__(None, None, None)
    assert gc.get_threshold() == (700, 9, 8)


@pytest.mark.parametrize("number", [0, garbage.OBJECTS * 2])
def test_who_collects_more_rarely_goes_on_so(number: int) -> None:
    gc.set_threshold(number)
    with garbage.rarely():
        assert gc.get_threshold()[0] == number
    assert gc.get_threshold()[0] == number


def test_pruning_leaves_the_thresholds_as_they_were() -> None:
    numbers = ", ".join(str(k + 1) for k in range(32))
    model = parser.parse_model(NET % (numbers, numbers))
    seen = []
    graphprune.prune(model, targets=["channels=0.5"], step=lambda text: seen.append(gc.get_threshold()[0]))
    assert set(seen) == {garbage.OBJECTS}
    assert gc.get_threshold() == (700, 9, 8)
    with pytest.raises(UsageError):
        graphprune.prune(model)
    assert gc.get_threshold() == (700, 9, 8)
