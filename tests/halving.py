"""Prune a network to half of its channels and check the result in every way there is.  Start reading at `halve`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import oracle
from onnx import ModelProto

import graphprune
from graphprune import registry
from graphprune.branches import with_branches
from graphprune.cost import CostModel
from graphprune.edit import kept_axes
from graphprune.model_file import whole
from graphprune.plan import Plan


def halve(
    model: ModelProto, channels: float = 0.5, silence: bool = False, tolerance: float = 2e-5, **options: Any
) -> graphprune.Result:
    """Prune with alignment 1: the proof passes, the oracle agrees, the cost is as predicted, a replay gives the same bytes."""
    options = {"targets": [f"channels={channels}"], "align": 1, "selection": "uniform"} | options
    result = graphprune.prune(model, **options)
    assert result.proof is not None
    assert result.proof.passed
    plan = json.loads(result.plan.to_json())
    oracle.check(with_branches(whole(result.original.model)), plan, result.model, tolerance=tolerance, silence=silence)
    assert [v.SerializeToString() for v in result.model.graph.output] == [v.SerializeToString() for v in model.graph.output]
    measured = CostModel(graphprune.analyze(result.model)).original
    assert (measured.macs, measured.params) == (result.after.macs, result.after.params)
    again = graphprune.apply_plan(model, result.plan, verify=False)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    return result


def keep_exactly(model: ModelProto, keep: dict[str, list[int]], silence: bool = False) -> graphprune.Result:
    """Prune to chosen units of chosen groups (all of the others), and check as `halve` does."""
    plan = plan_that_keeps(model, keep)
    result = graphprune.apply_plan(model, plan)
    oracle.check(
        with_branches(whole(result.original.model)), json.loads(plan.to_json()), result.model, tolerance=2e-5, silence=silence
    )
    return result


def plan_that_keeps(model: ModelProto, keep: dict[str, list[int]]) -> Plan:
    """A consistent plan for chosen units of chosen groups."""
    some = graphprune.prune(model, targets=["channels=0.5"], align=1, verify=False)
    assert keep.keys() <= {group.id for group in some.plan.groups}, [group.id for group in some.plan.groups]
    chosen = [replace(group, keep=keep.get(group.id, list(range(group.size)))) for group in some.plan.groups]
    analysis = graphprune.analyze(some.original)
    shrink = registry.load("rewrite", "shrink")
    kept_of = shrink.kept_indices(analysis, analysis.present({group.id: group.keep for group in chosen}))
    tensors = {
        name: {str(axis): kept.tolist() for axis, kept in cuts.items()}
        for name, tensor in analysis.graph.initializers.items()
        if (cuts := kept_axes(kept_of, name, len(tensor.dims)))
    }
    return replace(some.plan, groups=chosen, tensors=tensors)


def groups(model: ModelProto) -> dict[str, int]:
    """The size of every group, by its id."""
    return {group.id: group.size for group in graphprune.analyze(model).groups}


def members(model: ModelProto, group: str) -> set[str]:
    """What belongs to a group, as `tensor:axis role`."""
    found = next(each for each in graphprune.analyze(model).groups if each.id == group)
    return {f"{m.tensor}:{m.axis} {m.role}" for m in found.members}


def pinned(model: ModelProto) -> dict[str, str]:
    """Why each axis (`tensor:axis`) is pinned."""
    return {f"{p.tensor}:{p.axis}": p.reason.text for p in graphprune.analyze(model).pinned}


def shapes(model: ModelProto) -> dict[str, list[int]]:
    """The shape of every initializer."""
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
