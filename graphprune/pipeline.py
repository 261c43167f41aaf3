"""The main job: a model goes in, a smaller and proven one comes out.

    read -> normalize -> infer -> score -> select -> repair -> rewrite -> prove

Start reading at `prune`.  The command line (`graphprune.cli`) is a thin layer over these functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from . import registry
from .budget import Problem, solve
from .calibration import RUN_BYTES, Calibration, linear_nodes
from .cost import Cost, CostModel
from .errors import ProofError, UnreachableError, UsageError
from .evidence import Evidence
from .graph import Array, Graph
from .inference import Analysis, infer
from .model_file import content_hash, read_model
from .normalize import normalize
from .options import Normalization, Options
from .plan import Plan, PlanGroup, PlanMember, PlanPinned, weights_digest
from .problem import Step, check_passes, check_supported, formulate
from .proof import Proof, prove
from .recipes import MADE_UP_MACS, resolved
from .repairing import Patient, with_weights
from .samples import read_calibration, run_size
from .shape_inference import InputShapes
from .sources import read_source
from .synthetic import random_runs
from .targets import Target, parse_target
from .version import VERSION

Source = str | Path | ModelProto | Graph | Any
"""A path, an import string, a model of ONNX or another framework (perhaps with example inputs), or a graph that was loaded."""


@dataclass(frozen=True)
class Realised:
    """One target and what became of it: `value` over the original's cost."""

    target: str
    limit: float
    cost: int
    original: int

    @property
    def fraction(self) -> float:
        """The realised share of the original."""
        return self.cost / self.original if self.original else 1.0


@dataclass(frozen=True)
class Result:
    """A pruned model with everything that is known about it."""

    model: ModelProto
    original: Graph
    analysis: Analysis
    keep: Mapping[str, list[int]]
    """The kept units of each group."""
    weights: Mapping[str, Array]
    """The weights that repair passes changed, by name, in the shapes of the pruned model."""
    options: Mapping[str, Any]
    """The options as the plan records them."""
    before: Cost
    after: Cost
    realised: tuple[Realised, ...]
    proof: Proof | None

    @cached_property
    def plan(self) -> Plan:
        """The plan that leads to this model; made on first use, since it hashes the whole original."""
        return _plan(self.analysis, self.keep, self.weights, self.options)


@dataclass(frozen=True)
class Scored:
    """A network with scores and bounds: all that does not hang on a target, so that several targets share it."""

    evidence: Evidence
    problem: Problem
    options: Options
    input_shapes: InputShapes | None


def load(source: Source, input_shapes: InputShapes | None = None) -> Graph:
    """Read (or copy) a model and bring it into normal form.  Raises InvalidModelError."""
    if isinstance(source, Graph):
        return source
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
    else:
        model = read_source(source, shapes=input_shapes)
    return normalize(model, input_shapes)


def analyze(
    source: Source,
    input_shapes: InputShapes | None = None,
    normalization: Normalization = Options.normalization,
) -> Analysis:
    """The groups and pinned axes of a model.  Raises InvalidModelError."""
    return infer(load(source, input_shapes), normalization=normalization)


def prune(
    source: Source,
    options: Options | None = None,
    input_shapes: InputShapes | None = None,
    step: Step = lambda text: None,
    **changes: Any,
) -> Result:
    """Prune a model: `prune("model.onnx", targets=["macs=0.5"])`.

    Keyword arguments are the fields of `Options`.  Raises UsageError, InvalidModelError, UnreachableError or ProofError; nothing
    is written to disk.
    """
    options = resolved((options or Options()).updated(changes))
    targets = [parse_target(text) for text in options.targets]
    if not targets and not options.ratios:
        raise UsageError("nothing to do: give a target such as macs=0.5, or a ratio for some layers")
    decided = _decide(score(source, options, input_shapes, step), targets, step)
    return _finish(*decided, options, targets, input_shapes, step)


def score(
    source: Source,
    options: Options,
    input_shapes: InputShapes | None = None,
    step: Step = lambda text: None,
) -> Scored:
    """Everything up to the scores; targets in `options` are not looked at.

    Raises UsageError, InvalidModelError or UnreachableError.
    """
    options = resolved(options)
    check_passes(options)
    step("reading and normalising")
    graph = load(source, input_shapes)
    step("finding groups")
    analysis = infer(graph, normalization=options.normalization)
    check_supported(analysis, options)
    model = CostModel(analysis)
    evidence = Evidence.of(analysis, _calibration(model, options, input_shapes, step))
    return Scored(evidence, formulate(evidence, model, options, step), options, input_shapes)


def prune_scored(scored: Scored, target: str, step: Step = lambda text: None) -> Result:
    """What `prune` gives for one target, from what `score` found.  Raises UsageError, UnreachableError or ProofError."""
    options, targets = scored.options.updated({"targets": target}), [parse_target(target)]
    return _finish(*_decide(scored, targets, step), options, targets, scored.input_shapes, step)


def _decide(scored: Scored, targets: Sequence[Target], step: Step) -> tuple[Analysis, dict[str, list[int]], dict[str, Array]]:
    """What is kept of each group, and the weights that repair passes change."""
    analysis, options = scored.evidence.analysis, scored.options
    problem = replace(scored.problem, targets=targets, required={})
    step("selecting channels")
    keep = solve(problem, registry.make("selection", options.selection).path(problem))
    if all(len(units) == group.size for group, units in zip(problem.groups, keep.values(), strict=True)):
        raise UnreachableError(_nothing_pruned(options))
    return analysis, keep, _repaired_weights(scored.evidence, analysis.present(keep), options, step)


def _finish(
    analysis: Analysis,
    keep: Mapping[str, list[int]],
    weights: Mapping[str, Array],
    options: Options,
    targets: Sequence[Target],
    input_shapes: InputShapes | None,
    step: Step,
) -> Result:
    """Rewrite and prove."""
    present, model = analysis.present(keep), CostModel(analysis)
    kept_of = _shrink().kept_indices(analysis, present)
    step("rewriting")
    changed = with_weights(analysis, weights, kept_of)
    rewritten = _shrink().shrink(changed, present)
    analysis.graph.forget_constants()
    after = model.cost(present)
    realised = tuple(Realised(str(t), t.limit(model.original), after.of(t.kind), model.original.of(t.kind)) for t in targets)
    proof = None
    if options.verify:
        step("proving")
        proof = _passed(prove(changed, present, rewritten, kept_of, options.seed, input_shapes))
    recorded = options.as_dict()
    return Result(rewritten, analysis.graph, analysis, keep, weights, recorded, model.original, after, realised, proof)


def _calibration(model: CostModel, options: Options, input_shapes: InputShapes | None, step: Step) -> Calibration | None:
    """The network with the samples that the passes need; None where all look at weights alone."""
    graph = model.analysis.graph
    criterion = registry.load("importance", registry.name_of("importance", options.importance))
    if criterion.sees == "weights" and not options.repair:
        return None
    size = run_size(graph, (name for node in linear_nodes(graph).values() for name in (node.data, node.result)), RUN_BYTES)
    if options.calibration is None or (isinstance(options.calibration, str) and options.calibration == "random"):
        runs, labels = random_runs(graph, options.seed, size, input_shapes, MADE_UP_MACS // max(1, model.original.macs)), None
    else:
        runs, labels = read_calibration(options.calibration, graph, size)
    return Calibration(graph, runs, options.seed, lambda share: step(f"running the network on samples: {share:.0%}"), labels)


def _repaired_weights(evidence: Evidence, present: NDArray[np.bool_], options: Options, step: Step) -> dict[str, Array]:
    """The weights that repair passes change, in the shapes of the pruned network."""
    if not options.repair or evidence.calibration is None:
        return {}
    analysis = evidence.analysis
    kept_of = _shrink().kept_indices(analysis, present)
    patient = Patient(analysis, present, _shrink().shrink(analysis, present), kept_of, evidence.calibration.copy())
    for spec in options.repair:
        repair = registry.make("repair", spec)
        patient.tick = lambda share, name=repair.name: step(f"repairing ({name}): {share:.0%}")  # type: ignore[misc]
        repair.repair(patient)
    return patient.changed


def _shrink() -> Any:
    return registry.load("rewrite", "shrink")


def _nothing_pruned(options: Options) -> str:
    return (
        f"nothing was pruned: with --align {options.align} and --min-channels {options.min_channels} no group can shrink "
        "for this target; lower them or the target"
    )


def apply_plan(source: Source, plan: Plan, verify: bool = True, weights: Mapping[str, Array] | None = None) -> Result:
    """Replay a plan on the model that it was made for: gives the same bytes again.

    `weights` are those that repair passes changed (`graphprune.plan.read_weights`).  Raises UsageError where plan or weights
    do not fit the model, ProofError where the result is wrong.
    """
    graph = load(source)
    analysis, present = _replay(graph, plan)
    changed = dict(weights or {})
    _check_weights(analysis, plan, present, changed)
    options = Options(seed=int(plan.options.get("seed", 0)), verify=verify)
    result = _finish(analysis, plan.keep, changed, options, (), None, lambda text: None)
    return replace(result, options=plan.options)


def verify(
    source: Source,
    plan: Plan,
    pruned: str | Path | ModelProto,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    weights: Mapping[str, Array] | None = None,
) -> Proof:
    """The proof alone: compare a pruned model with the masked original.

    `weights` are those that repair passes changed.  Raises UsageError where the plan does not fit the model, ProofError where
    one of the models cannot be run.
    """
    graph = load(source)
    analysis, present = _replay(graph, plan)
    model = pruned if isinstance(pruned, ModelProto) else read_model(Path(pruned))
    changed = dict(weights or {})
    _check_weights(analysis, plan, present, changed)
    kept_of = _shrink().kept_indices(analysis, present)
    return prove(with_weights(analysis, changed, kept_of), present, model, kept_of, seed, input_shapes)


# ---- plans --------------------------------------------------------------------------------------


def _plan(analysis: Analysis, keep: Mapping[str, list[int]], weights: Mapping[str, Array], options: Mapping[str, Any]) -> Plan:
    shrink = _shrink()
    kept_of = shrink.kept_indices(analysis, analysis.present(keep))
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
    for name in analysis.graph.initializers:
        cuts = shrink.cut_axes(analysis.graph, name, kept_of)
        if cuts:
            tensors[name] = {str(axis): indices.tolist() for axis, indices in cuts.items()}
    pinned = [PlanPinned(tensor=p.tensor, axis=p.axis, reason=p.reason.text, node=p.reason.node) for p in analysis.pinned]
    digest = content_hash(analysis.graph.model)
    return Plan(VERSION, digest, dict(options), groups, tensors, pinned, weights_sha256=weights_digest(weights))


def _replay(graph: Graph, plan: Plan) -> tuple[Analysis, NDArray[np.bool_]]:
    """The analysis and the present labels of a plan.  Raises UsageError where it does not fit the model."""
    digest = content_hash(graph.model)
    if digest != plan.model_sha256:
        raise UsageError(
            f"the plan is for another model: it names sha256 {plan.model_sha256[:12]}..., "
            f"this one (normalised) is {digest[:12]}..."
        )
    analysis = infer(graph, normalization=plan.options.get("normalization", Options.normalization))
    known = {group.id: group for group in analysis.groups}
    for entry in plan.groups:
        group = known.get(entry.id)
        if group is None or group.size != entry.size:
            raise UsageError(f"the plan's group {entry.id!r} of size {entry.size} is not in this model")
        _check_keep(entry)
    present = analysis.present(plan.keep)
    if analysis.emptied_axes(present):
        raise UsageError("the plan leaves nothing of some tensor's axis (a part of a Split, perhaps); keep one index of each")
    _check_tensors(analysis, plan, present)
    return analysis, present


def _check_keep(entry: PlanGroup) -> None:
    if not entry.keep:
        raise UsageError(f"the plan keeps nothing of group {entry.id!r}; at least one unit must stay")
    if max(entry.keep) >= entry.size:
        raise UsageError(f"the plan's group {entry.id!r} keeps index {max(entry.keep)}, but its size is {entry.size}")
    if any(b <= a for a, b in zip(entry.keep, entry.keep[1:], strict=False)):
        raise UsageError(f"the plan's group {entry.id!r}: indices to keep must ascend without repetition")


def _check_tensors(analysis: Analysis, plan: Plan, present: NDArray[np.bool_]) -> None:
    """The index vectors that the plan lists must be those that its groups lead to."""
    shrink = _shrink()
    kept_of = shrink.kept_indices(analysis, present)
    for name in {*plan.tensors, *analysis.graph.initializers}:
        if name not in analysis.graph.initializers:
            raise UsageError(f"the plan cuts the tensor {name!r}, which is not in this model")
        cuts = {str(axis): ids.tolist() for axis, ids in shrink.cut_axes(analysis.graph, name, kept_of).items()}
        if cuts != plan.tensors.get(name, {}):
            raise UsageError(f"the plan contradicts itself: the indices for tensor {name!r} are not those of its groups")


def _check_weights(analysis: Analysis, plan: Plan, present: NDArray[np.bool_], weights: Mapping[str, Array]) -> None:
    """The repaired weights must be those that the plan was written with."""
    if weights_digest(weights) != plan.weights_sha256:
        missing = "lacks its repaired weights" if not weights else "was written with other repaired weights"
        raise UsageError(f"the plan {missing}: keep PLAN.json and PLAN.weights.safetensors together")
    kept_of = _shrink().kept_indices(analysis, present)
    for name, array in weights.items():
        if name not in analysis.graph.initializers:
            raise UsageError(f"the plan's weights have a tensor {name!r}, which is not in this model")
        dims = analysis.graph.initializers[name].dims
        shape = tuple(size if kept_of(name, k) is None else len(kept_of(name, k)) for k, size in enumerate(dims))
        if shape != array.shape:
            raise UsageError(f"the plan's weights have {name!r} in shape {array.shape}; the pruned model has {shape}")


def _passed(proof: Proof) -> Proof:
    if not proof.passed:
        raise ProofError(f"{proof}; nothing was written. Please report this with the model")
    return proof
