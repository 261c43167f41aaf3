"""Plans: writing one from what was decided, and replaying one on the model that it was made for.

Start reading at `replay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from . import registry
from .depth import with_residuals
from .digest import digest
from .edit import kept_axes
from .errors import UsageError
from .graph import Array, Graph
from .groups import Group
from .inference import Analysis, infer
from .options import Experts, Mode, Normalization, Options
from .plan import Plan, PlanGroup, PlanMember, PlanPinned, PlanRead, weights_digest
from .reorder import with_order
from .unconstrained import infer_unconstrained, taken_by_readers
from .version import VERSION


def analysis_of(graph: Graph, normalization: Normalization, mode: Mode, experts: Experts = "keep") -> Analysis:
    """The analysis of a normalised graph in one of the modes."""
    find = infer_unconstrained if mode == "unconstrained" else infer
    return find(graph, normalization=normalization, experts=experts)


def make_plan(
    graph: Graph, analysis: Analysis, keep: Mapping[str, list[int]], weights: Mapping[str, Array], options: Mapping[str, Any]
) -> Plan:
    """The plan that leads from a normalised graph to what is kept of it."""
    shrink, present = shrink_pass(), analysis.present(keep)
    kept_of = shrink.kept_indices(analysis, present)
    groups = [
        PlanGroup(
            id=group.id,
            size=group.size,
            keep=keep[group.id],
            members=[PlanMember(tensor=m.tensor, axis=m.axis, role=m.role) for m in group.members],
        )
        for group in analysis.groups
    ]
    tensors = {}
    for name, tensor in analysis.graph.initializers.items():
        cuts = kept_axes(kept_of, name, len(tensor.dims))
        if cuts:
            tensors[name] = {str(axis): indices.tolist() for axis, indices in cuts.items()}
    pinned = [PlanPinned(tensor=p.tensor, axis=p.axis, reason=p.reason.text, node=p.reason.node) for p in analysis.pinned]
    reads = [PlanRead(*read) for read in taken_by_readers(analysis, present)]
    return Plan(VERSION, digest(graph), dict(options), groups, tensors, pinned, reads, weights_digest(weights))


def replay(graph: Graph, plan: Plan) -> tuple[Analysis, NDArray[np.bool_]]:
    """The analysis and the present labels of a plan.  Raises UsageError where it does not fit the model."""
    found = digest(graph)
    if found != plan.model_sha256:
        raise UsageError(
            f"the plan is for another model: it names sha256 {plan.model_sha256[:12]}..., "
            f"this one (normalised) is {found[:12]}..."
        )
    normalization, mode, experts = (recorded_option(plan, name) for name in ("normalization", "mode", "experts"))
    analysis = analysis_of(graph, normalization, mode, experts)
    if not all(group.keep for group in plan.groups):
        analysis = with_residuals(analysis)
    if len(plan.keep) < len(plan.groups):
        raise UsageError("the plan names a group twice; keep one entry of each")
    known = {group.id: group for group in analysis.groups}
    for entry in plan.groups:
        group = known.get(entry.id)
        if group is None or group.size != entry.size:
            raise UsageError(f"the plan's group {entry.id!r} of size {entry.size} is not in this model")
        _check_keep(entry, group, analysis)
    try:
        analysis = with_order(analysis, plan.keep)
    except ValueError as error:
        text = "its units cannot change places; give the indices to keep in ascending order"
        raise UsageError(f"the plan's group {str(error)!r}: {text}") from error
    present = analysis.present(plan.keep)
    kept = analysis.kept(present)
    if any(sorted(units) != kept[name] for name, units in plan.keep.items()):
        raise UsageError("the plan contradicts itself: a reader takes a channel that its producer does not keep")
    if analysis.short_of_experts(present):
        raise UsageError("the plan leaves fewer experts than the model chooses; keep as many as its TopK takes")
    if analysis.emptied_axes(present):
        raise UsageError("the plan leaves nothing of some tensor's axis (a part of a Split, perhaps); keep one index of each")
    _check_tensors(analysis, plan, present)
    return analysis, present


def recorded_option(plan: Plan, name: str) -> Any:
    """An option that the plan was made with, the default where it says nothing.  Raises UsageError where it cannot be one."""
    from pydantic import TypeAdapter, ValidationError

    hint = get_type_hints(Options, include_extras=True)[name]
    try:
        return TypeAdapter(hint).validate_python(plan.options.get(name, getattr(Options, name)), strict=True)
    except ValidationError as error:
        raise UsageError(f"the plan's option {name!r}: {error.errors()[0]['msg']}") from error


def _check_keep(entry: PlanGroup, group: Group, analysis: Analysis) -> None:
    leaves = any(group in (residual.group, *residual.inner) for residual in analysis.residuals)
    if not entry.keep and not group.follows and not leaves:
        raise UsageError(f"the plan keeps nothing of group {entry.id!r}; at least one unit must stay")
    if max(entry.keep, default=0) >= entry.size:
        raise UsageError(f"the plan's group {entry.id!r} keeps index {max(entry.keep)}, but its size is {entry.size}")
    if len(set(entry.keep)) < len(entry.keep):
        raise UsageError(f"the plan's group {entry.id!r} keeps an index twice")


def _check_tensors(analysis: Analysis, plan: Plan, present: NDArray[np.bool_]) -> None:
    """The index vectors that the plan lists must be those that its groups lead to."""
    kept_of = shrink_pass().kept_indices(analysis, present)
    for name in sorted({*plan.tensors, *analysis.graph.initializers}):
        if name not in analysis.graph.initializers:
            raise UsageError(f"the plan cuts the tensor {name!r}, which is not in this model")
        found = kept_axes(kept_of, name, len(analysis.graph.initializers[name].dims))
        cuts = {str(axis): ids.tolist() for axis, ids in found.items()}
        if cuts != plan.tensors.get(name, {}):
            raise UsageError(f"the plan contradicts itself: the indices for tensor {name!r} are not those of its groups")


def check_weights(analysis: Analysis, plan: Plan, present: NDArray[np.bool_], weights: Mapping[str, Array]) -> None:
    """The repaired weights must be those that the plan was written with.  Raises UsageError."""
    if weights_digest(weights) != plan.weights_sha256:
        missing = "lacks its repaired weights" if not weights else "was written with other repaired weights"
        raise UsageError(f"the plan {missing}: keep PLAN.json and PLAN.weights.safetensors together")
    kept_of = shrink_pass().kept_indices(analysis, present)
    for name, array in weights.items():
        if name not in analysis.graph.initializers:
            raise UsageError(f"the plan's weights have a tensor {name!r}, which is not in this model")
        dims = analysis.graph.initializers[name].dims
        shape = tuple(size if kept_of(name, k) is None else len(kept_of(name, k)) for k, size in enumerate(dims))
        if shape != array.shape:
            raise UsageError(f"the plan's weights have {name!r} in shape {array.shape}; the pruned model has {shape}")


def shrink_pass() -> Any:
    """The rewrite that removes channels."""
    return registry.load("rewrite", "shrink")
