"""Random networks, pruned at random: the masked oracle decides."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nets import write
from onnx import ModelProto
from random_graphs import Network, networks

import graphprune
from graphprune import model_file
from graphprune.branches import with_branches
from graphprune.cost import CostModel
from graphprune.depth import with_residuals
from graphprune.errors import UnreachableError
from graphprune.model_file import whole
from graphprune.options import Mode
from graphprune.plan import parse_plan
from graphprune.replay import analysis_of, make_plan

IMPORTANCE = ["magnitude", "magnitude{p=1,reduce=max}", "random", "random{seed=5}", "lamp", "fpgm"]


@st.composite
def wishes(draw: Any) -> dict[str, Any]:
    kinds = draw(st.lists(st.sampled_from(["channels", "params", "bytes", "macs"]), min_size=1, max_size=2, unique=True))
    values = st.sampled_from([0.95, 0.8, 0.65, 0.5, 0.35, 0.2])
    return {
        "targets": [f"{kind}={draw(values)}" for kind in kinds],
        "importance": draw(st.sampled_from(IMPORTANCE)),
        "selection": draw(st.sampled_from(["uniform", "global", "isomorphic"])),
        "align": draw(st.sampled_from([1, 1, 1, 2, 4, "auto"])),
        "seed": draw(st.integers(0, 99)),
        "mode": draw(st.sampled_from(["coupled", "unconstrained"])),
        "masks": draw(st.sampled_from(["nested", "independent"])),
        "min_channels": draw(st.sampled_from([0, 1, 2])),
    }


@given(network=networks(), options=wishes())
def test_a_pruned_random_network_equals_the_masked_original(network: Network, options: dict[str, Any]) -> None:
    check(network, options)


@pytest.mark.nightly
@given(network=networks(most=30), options=wishes())
def test_a_pruned_large_random_network_equals_the_masked_original(network: Network, options: dict[str, Any]) -> None:
    check(network, options)


@settings(max_examples=100)
@given(network=networks(), options=wishes())
def test_kept_normalisations_in_random_networks(network: Network, options: dict[str, Any]) -> None:
    """The masked reference of the proof decides: no weight can mask a statistic."""
    oracle_runs(network.model)
    result = prune_somehow(network.model, options | {"normalization": "kept"})
    assert result.proof is not None
    again = graphprune.apply_plan(network.model, parse_plan(result.plan.to_json()), verify=False)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    _check_cost(result)


@settings(max_examples=30)
@given(network=networks(), options=wishes())
def test_repaired_random_networks(network: Network, options: dict[str, Any]) -> None:
    """Whatever repair does to the weights, the pruned network equals the masked original that has them too."""
    oracle_runs(network.model)
    passes = {"importance": "probed", "selection": "distortion", "repair": "reconstruct", "calibration": "random"}
    result = prune_somehow(network.model, options | passes)
    assert result.proof is not None
    plan = parse_plan(result.plan.to_json())
    again = graphprune.apply_plan(network.model, plan, verify=False, weights=result.weights)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    _check_cost(result)


@settings(max_examples=60)
@given(network=networks(), stays=st.booleans())
def test_a_normal_form_computes_what_its_file_does(network: Network, stays: bool) -> None:
    """The proof compares with the normal form, so nothing else sees a mistake in it; weights are read, or stay in the file."""
    oracle_runs(network.model)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = write(network.model, Path(folder) / "m.onnx")
        patch.setattr(model_file, "MAPPED", 0 if stays else 2**40)
        patch.setattr(model_file, "LARGE", 16)
        normal = whole(with_branches(graphprune.load(path).model))
    feeds = oracle.random_feeds(network.model)
    found = oracle.run(normal, feeds)
    for name, expected in oracle.run(network.model, feeds).items():
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(found[name] / scale, expected / scale, atol=1e-5, rtol=0)


@settings(max_examples=60)
@given(network=networks(), data=st.data(), mode=st.sampled_from(["coupled", "unconstrained"]))
def test_random_branches_leave_random_networks(network: Network, data: st.DataObject, mode: Mode) -> None:
    """Some of the branches that can leave, whatever else stays, and each by the plan alone."""
    oracle_runs(network.model)
    graph = graphprune.load(network.model)
    analysis = with_residuals(analysis_of(graph, "pin", mode))
    assume(analysis.residuals)
    keep = {group.id: list(range(group.size)) for group in analysis.groups}
    for group in analysis.groups:
        if data.draw(st.booleans()):
            keep[group.id] = sorted(data.draw(st.sets(st.sampled_from(keep[group.id]), min_size=1)))
    for number in data.draw(st.sets(st.integers(0, len(analysis.residuals) - 1), min_size=1)):
        keep[analysis.residuals[number].group.id] = []
    present = analysis.present(keep)
    assume(not analysis.emptied_axes(present))
    plan = make_plan(graph, analysis, analysis.kept(present), {}, {"mode": mode})
    result = graphprune.apply_plan(graph, parse_plan(plan.to_json()))
    assert any(not units for units in result.keep.values())
    if not network.summed:
        oracle.check(graph.model, json.loads(plan.to_json()), result.model, tolerance=1e-4, silence=network.silenced)
    _check_cost(replace(result, options={"normalization": "pin"}))


def check(network: Network, options: dict[str, Any]) -> None:
    model = network.model
    oracle_runs(model)
    graph = graphprune.load(model)
    imported = graph.model.SerializeToString(deterministic=True)
    assert graphprune.load(graph.model).model.SerializeToString(deterministic=True) == imported
    result = prune_somehow(model, options)
    assert result.proof is not None
    plan = json.loads(result.plan.to_json())
    if not network.summed:
        oracle.check(graph.model, plan, result.model, tolerance=1e-4, silence=network.silenced)
    assert _outputs(result.model) == _outputs(graph.model)
    for target in result.realised:
        assert target.cost <= target.limit
    again = graphprune.apply_plan(model, parse_plan(result.plan.to_json()), verify=False)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    _check_cost(result)


def prune_somehow(model: ModelProto, options: dict[str, Any]) -> graphprune.Result:
    """Prune to the wished target; where that is out of reach, remove at least something."""
    for wish in (options, *(options | {"align": 1, "targets": [f"channels={share}"]} for share in (0.7, 0.95))):
        try:
            return graphprune.prune(model, **wish)
        except UnreachableError:
            continue
    assume(False)
    raise AssertionError


def oracle_runs(model: ModelProto) -> None:
    """The network itself is sound; anything else is a mistake of the generator, or of the runtime's own shape inference."""
    try:
        values = oracle.run(model, oracle.random_feeds(model)).values()
    except Exception as error:
        assume("[ShapeInferenceError]" not in str(error))  # ORT 1.31: sizes of a Resize from the Shape of a GroupNormalization
        raise
    for array in values:
        assume(bool(np.isfinite(array).all()) and float(np.abs(array).max(initial=0)) < 1e6)


def _outputs(model: ModelProto) -> list[bytes]:
    return [value.SerializeToString() for value in model.graph.output]


def _check_cost(result: graphprune.Result) -> None:
    """The cost model, which only evaluates formulas, agrees with an analysis of the pruned file."""
    analysis = graphprune.analyze(result.model, normalization=result.options["normalization"])
    measured = CostModel(analysis).original
    assert measured.macs == result.after.macs
    if len(analysis.graph.initializers) == len(result.model.graph.initializer):  # else it gave the readers of a weight one each
        assert measured.params == result.after.params
