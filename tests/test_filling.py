"""Copies that cost more than they save are left out: their readers take what lies in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from halving import halve
from nets import net, operators
from onnx import ModelProto

import graphprune
from graphprune import bench
from graphprune.cost import CostModel
from graphprune.filling import filled
from graphprune.inference import Analysis
from graphprune.latency import Stopwatch
from graphprune.passes.rewrite.shrink import shrink
from graphprune.plan import parse_plan
from graphprune.reorder import reordered

MODE: dict[str, Any] = {"mode": "unconstrained", "importance": "magnitude", "masks": "independent", "selection": "uniform"}
DEAR, CHEAP = 1e9, 1e-3


def three_readers() -> ModelProto:
    """Three readers that choose by themselves: no order makes ranges of all they take."""
    return net("""three (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,5,8,8] z, float[N,6,8,8] s)
        <float[24,3,3,3] w, float[4,24,1,1] v, float[5,24,3,3] u, float[6,24,1,1] t> {
            c = Conv <pads=[1,1,1,1]> (x, w)
            r = Relu (c)
            y = Conv (r, v)
            z = Conv <pads=[1,1,1,1]> (r, u)
            s = Conv (r, t)
        }""")


def parts() -> ModelProto:
    """Readers of several parts at once: their Gather is behind the Concat."""
    return net("""parts (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,5,8,8] z, float[N,6,8,8] s, float[N,2,8,8] q)
        <float[16,3,3,3] a, float[16,3,3,3] b, float[4,32,1,1] v, float[5,16,1,1] u, float[6,16,1,1] t, float[2,16,1,1] k> {
            f = Conv <pads=[1,1,1,1]> (x, a)
            g = Conv <pads=[1,1,1,1]> (x, b)
            h = Concat <axis=1> (f, g)
            y = Conv (h, v)
            z = Conv (f, u)
            s = Conv (f, t)
            q = Conv (g, k)
        }""")


def pruned(model: ModelProto) -> tuple[Analysis, np.ndarray, list[str]]:
    """The analysis in order, what stays, and the names of the Gathers that are left."""
    result = halve(model, **MODE, channels=0.6)
    analysis, keep = reordered(result.analysis, result.analysis.present(result.keep))
    gathers = [node.name for node in result.model.graph.node if node.op_type == "Gather"]
    assert gathers
    return analysis, analysis.present(keep), gathers


def timed(analysis: Analysis, present: np.ndarray) -> CostModel:
    return CostModel(analysis, {term.node: 100.0 for term in analysis.mac_terms}, present)


def gathers_left(analysis: Analysis, present: np.ndarray) -> int:
    """Once channels are in the order that suits what stays."""
    analysis, keep = reordered(analysis, present)
    return operators(shrink(analysis, analysis.present(keep))).count("Gather")


@pytest.mark.parametrize("make", [three_readers, parts])
def test_what_a_dear_copy_left_out_is_read_along(make: Any) -> None:
    analysis, present, gathers = pruned(make())
    wider = filled(analysis, present, timed(analysis, present), dict.fromkeys(gathers, DEAR))
    assert (wider & present == present).all()
    assert gathers_left(analysis, wider) == 0


@pytest.mark.parametrize("make", [three_readers, parts])
def test_a_cheap_copy_stays(make: Any) -> None:
    analysis, present, gathers = pruned(make())
    assert filled(analysis, present, timed(analysis, present), dict.fromkeys(gathers, CHEAP)) is present


def test_each_copy_is_weighed_by_itself() -> None:
    analysis, present, gathers = pruned(three_readers())
    wider = filled(analysis, present, timed(analysis, present), {gathers[0]: DEAR})
    assert gathers_left(analysis, wider) == len(gathers) - 1


@pytest.mark.parametrize(("price", "left"), [(DEAR, 0), (CHEAP, 1)])
def test_a_latency_target_leaves_dear_copies_out(price: float, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine made up: 1 ns for each MAC, and a price for each Gather by its name that only the profile shows."""

    def macs(model: ModelProto) -> dict[str, float]:
        analysis = graphprune.analyze(model)
        counts = CostModel(analysis).node_macs(np.ones(len(analysis.ledger.labels), dtype=bool))
        return {analysis.graph.nodes[node].name: float(count) for node, count in counts.items()}

    def measure(models: Sequence[ModelProto], *rest: Any, **options: Any) -> list[bench.Latency]:
        times = [sum(macs(model).values()) / 1e6 for model in models]
        return [bench.Latency(time, time, time, 1, 1, 1) for time in times]

    def node_times(watch: Stopwatch, model: ModelProto, contractions: set[str]) -> dict[str, float]:
        return macs(model) | {node.name: price for node in model.graph.node if node.op_type == "Gather"}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(Stopwatch, "node_times", node_times)
    model = three_readers()
    result = graphprune.prune(model, targets=["latency=0.7"], align=1, **MODE)
    assert result.realised[0].fraction <= 0.7
    assert (operators(result.model).count("Gather") > 0) == bool(left)
    again = graphprune.apply_plan(model, parse_plan(result.plan.to_json()))
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
