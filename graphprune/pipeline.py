"""The main job: a model goes in, a smaller and proven one comes out.

    read -> normalize -> infer -> score -> select -> repair -> rewrite -> prove

Start reading at `prune`.  The command line (`graphprune.cli`) is a thin layer over these functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from . import digest, first_use, garbage, registry
from .budget import Keep, Problem
from .calibration import RUN_BYTES, Calibration, linear_nodes
from .cost import Cost, CostModel
from .depth import with_residuals
from .dequantised import rounded, with_real_weights
from .errors import ProofError, UnreachableError, UsageError
from .evidence import QUICK_REPAIR, Evidence
from .given import Given, check_normal_form
from .graph import Array, Graph, copy_model
from .in_memory import borrowed, check_at_hand, owned
from .inference import Analysis, infer
from .lent import lent_to
from .model_file import fits_message, load_what_fits, read_model
from .normalize import fix_input_shapes, normalize
from .options import Experts, Normalization, Options
from .plan import Plan
from .problem import Step, check_passes, check_supported, formulate, seeded
from .proof import Proof, contraction_results, prove
from .recipes import MADE_UP_MACS, resolved
from .reorder import reordered
from .repairing import Patient, with_weights
from .replay import analysis_of, check_weights, make_plan, recorded_option, replay, shrink_pass
from .runtime import trial
from .samples import read_calibration, run_size
from .shape_inference import InputShapes
from .sources import is_onnx_file, read_source
from .synthetic import random_runs
from .targets import Target, parse_target
from .unread_weights import with_types_of_file
from .weights import Vector
from .widening import as_run

first_use.prepare()

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

    cut: ModelProto
    """The pruned model; large weights that the original left in its file are cut when they are read or written."""
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
    scores: Mapping[str, Vector] = field(default_factory=dict)
    """The score of each unit by group, where a criterion scored them."""
    replayed: Plan | None = None
    """The plan that was given, where one was."""

    @cached_property
    def model(self) -> ModelProto:
        """The pruned model with its weights, unless those are 2 GB or more."""
        return load_what_fits(self.cut)

    @cached_property
    def plan(self) -> Plan:
        """The plan that leads to this model; made on first use, since it hashes the whole original."""
        return self.replayed or make_plan(self.original, self.analysis, self.keep, self.weights, self.options)


@dataclass(frozen=True)
class Scored:
    """A network with scores and bounds: all that does not hang on a target, so that several targets share it."""

    graph: Graph
    analysis: Analysis
    evidence: Evidence
    """What passes look at: the analysis of a twin with real weights (`graphprune.dequantised`), in types that are run."""
    problem: Problem
    options: Options
    input_shapes: InputShapes | None

    @property
    def scores(self) -> dict[str, Vector]:
        """The score of each unit by group."""
        return {group.id: scores for group, scores in zip(self.problem.groups, self.problem.scores, strict=True)}


def load(source: Source, input_shapes: InputShapes | None = None, format_: str | None = None) -> Graph:
    """Read (or copy) a model and bring it into normal form.  Raises InvalidModelError.

    `format_` names the importer where the source does not tell.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, ModelProto):
        check_at_hand(source)
        return normalize(copy_model(source, without=()), input_shapes)
    given = Given(path=Path(source)) if is_onnx_file(source, format_) else None
    model = read_source(source, format_, input_shapes)
    if given is None and fits_message(model):
        given = Given(copy_model(model, without=()))
    graph = normalize(model, input_shapes)
    graph.given = given
    return graph


def _load_for_proof(source: Source, input_shapes: InputShapes | None = None, format_: str | None = None) -> Graph:
    """`load`; the large weights of a model of the caller's are not copied."""
    if not isinstance(source, ModelProto):
        return load(source, input_shapes, format_)
    model, lent = borrowed(source)
    given = Given(copy_model(model, without=()), lent=lent)
    graph = normalize(model, input_shapes)
    graph.given = given
    return graph


def load_fixed(source: Source, input_shapes: InputShapes | None = None, format_: str | None = None) -> Graph:
    """`load`, with the given sizes of inputs fixed and the normal form compared with what was given.

    Raises InvalidModelError, or ProofError where the two compute something else.
    """
    graph = _load_for_proof(source, input_shapes, format_)
    check_normal_form(graph, (), shapes=input_shapes)
    if not input_shapes:
        return graph
    fix_input_shapes(graph.model, input_shapes)
    fixed = normalize(graph.model, input_shapes)
    fixed.given = graph.given
    return fixed


def load_whole(source: Source, input_shapes: InputShapes | None = None) -> Graph:
    """What exporters take: `load_fixed` with all weights read, run once within limits.  Raises what that raises."""
    graph = load_fixed(source, input_shapes)
    load_what_fits(graph.model)
    trial(graph, input_shapes)
    return graph


@garbage.rarely()
def analyze(
    source: Source,
    input_shapes: InputShapes | None = None,
    normalization: Normalization = Options.normalization,
    experts: Experts = Options.experts,
) -> Analysis:
    """The groups and pinned axes of a model.  Raises InvalidModelError."""
    return infer(load(source, input_shapes), normalization=normalization, experts=experts)


@garbage.rarely()
def prune(
    source: Source,
    options: Options | None = None,
    input_shapes: InputShapes | None = None,
    step: Step = lambda text: None,
    **changes: Any,
) -> Result:
    """Prune a model: `prune("model.onnx", targets=["macs=0.5"])`.

    Keyword arguments are the fields of `Options`.  Without a proof (`verify=False`) weights are cut when `Result.model` is asked
    for, or written; the file, or the ModelProto, must not change until then.  Raises UsageError, InvalidModelError,
    UnreachableError or ProofError; nothing is written to disk.
    """
    options = resolved((options or Options()).updated(changes))
    targets = [parse_target(text) for text in options.targets]
    if not targets and not options.ratios:
        raise UsageError("nothing to do: give a target such as macs=0.5, or a ratio for some layers")
    return _pruned(score(source, options, input_shapes, step), options, targets, step)


@garbage.rarely()
def score(
    source: Source,
    options: Options,
    input_shapes: InputShapes | None = None,
    step: Step = lambda text: None,
) -> Scored:
    """Everything up to the scores; targets in `options` are not looked at.  A ModelProto must not change until the last result.

    Raises UsageError, InvalidModelError or UnreachableError.
    """
    options = resolved(options)
    check_passes(options)
    step("reading and normalising")
    graph = _load_for_proof(source, input_shapes)
    step("finding groups")
    analysis = analysis_of(graph, options.normalization, options.mode, options.experts)
    selection = registry.make("selection", options.selection)
    analysis = with_residuals(analysis) if options.min_channels == 0 or selection.drops_branches else analysis
    check_supported(analysis, options)
    model = CostModel(analysis)
    seen = _as_passes_see(analysis) if _needs_samples(options) else analysis
    evidence = Evidence.of(seen, _calibration(seen.graph, model.original.macs, options, input_shapes, step))
    return Scored(graph, analysis, evidence, formulate(evidence, model, options, step), options, input_shapes)


def prune_scored(scored: Scored, target: str, step: Step = lambda text: None) -> Result:
    """What `prune` gives for one target, from what `score` found.  Raises UsageError, UnreachableError or ProofError."""
    return _pruned(scored, scored.options.updated({"targets": target}), [parse_target(target)], step)


def _pruned(scored: Scored, options: Options, targets: Sequence[Target], step: Step) -> Result:
    """What is left of a scored network for these targets."""
    result = _finish(scored.graph, *_decide(scored, targets, step), options, targets, scored.input_shapes, step)
    return replace(result, scores=scored.scores)


def _decide(scored: Scored, targets: Sequence[Target], step: Step) -> tuple[Analysis, dict[str, list[int]], dict[str, Array]]:
    """What is kept of each group, and the weights that repair passes change."""
    analysis, options, problem = scored.analysis, scored.options, scored.problem
    try:
        keep = _selected(scored, problem, targets, step)
    except UnreachableError:
        if problem.finer is None:
            raise
        keep = _selected(scored, problem.finer, targets, step)
    analysis, keep = reordered(analysis, analysis.present(keep))
    return analysis, keep, _repaired_weights(scored.evidence, analysis, analysis.present(keep), options, step)


def _selected(scored: Scored, problem: Problem, targets: Sequence[Target], step: Step) -> Keep:
    """What the selection pass keeps.  Raises UnreachableError where that meets no target, or is everything."""
    analysis, options = scored.analysis, scored.options
    selection = seeded(registry.make("selection", options.selection), options)
    problem = replace(problem, targets=targets, required={}, tick=lambda share: step(f"selecting channels: {share:.0%}"))
    if scored.evidence.calibration is not None:
        problem.error = partial(scored.evidence.error_keeping, repair=QUICK_REPAIR if options.repair else "")
    step("selecting channels")
    keep: Keep
    if any(target.kind == "latency" for target in targets):
        from .latency import fastest, stopwatch_for

        trial(scored.graph, scored.input_shapes)
        watch = stopwatch_for(scored.graph, options.threads, scored.input_shapes)
        keep = fastest(problem, watch, selection.keep, lambda kept: _built(analysis, kept), step)
    else:
        keep = selection.keep(problem)
    if all(len(units) == group.size for group, units in zip(problem.groups, keep.values(), strict=True)):
        raise UnreachableError(_nothing_pruned(options))
    return keep


def _built(analysis: Analysis, keep: Mapping[str, list[int]]) -> ModelProto:
    """The network with what is kept, in order."""
    analysis, keep = reordered(analysis, analysis.present(keep))
    model: ModelProto = shrink_pass().shrink(analysis, analysis.present(keep))
    return model


def _finish(
    graph: Graph,
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
    kept_of = shrink_pass().kept_indices(analysis, present)
    step("rewriting")
    changed = with_weights(analysis, weights, kept_of)
    rewritten = with_types_of_file(shrink_pass().shrink(changed, present))
    analysis.graph.forget_constants()
    after = model.cost(present)
    before = model.original
    if any(target.kind == "latency" for target in targets):
        from .latency import check_faster, stopwatch_for

        step("measuring the result")
        old, new = check_faster(stopwatch_for(graph, options.threads, input_shapes), rewritten)
        before, after = replace(before, latency=old), replace(after, latency=new)
    realised = tuple(Realised(str(t), t.limit(before), after.of(t.kind), before.of(t.kind)) for t in targets)
    proof = None
    if options.verify:
        step("proving")
        rewritten = owned(rewritten)
        lent = lent_to(graph.model)
        if lent:
            digest.begin(graph)
        reservation = check_normal_form(graph, contraction_results(analysis), options.seed, input_shapes)
        proof = _passed(prove(changed, present, rewritten, kept_of, options.seed, input_shapes))
        proof = proof.with_reservation(reservation)
        if lent:
            digest.digest(graph)  # the caller's weights may change from here on
    recorded = options.as_dict()
    return Result(rewritten, graph, analysis, keep, weights, recorded, before, after, realised, proof)


def _needs_samples(options: Options) -> bool:
    """Whether not all passes look at weights alone."""
    criterion = registry.load("importance", registry.name_of("importance", options.importance))
    selection = registry.load("selection", registry.name_of("selection", options.selection))
    return bool(options.repair) or not criterion.sees == selection.sees == "weights"


def _as_passes_see(analysis: Analysis) -> Analysis:
    """The analysis of a twin that passes can run, and compute with."""
    real = with_real_weights(analysis)
    return replace(real, graph=as_run(real.graph))


def _calibration(graph: Graph, macs: int, options: Options, input_shapes: InputShapes | None, step: Step) -> Calibration | None:
    """The network with the samples that the passes need; None where they need none."""
    if not _needs_samples(options):
        return None
    trial(graph, input_shapes)
    size = run_size(graph, (name for node in linear_nodes(graph).values() for name in (node.data, node.result)), RUN_BYTES)
    if options.samples_made_up:
        runs, labels = random_runs(graph, options.seed, size, input_shapes, MADE_UP_MACS // max(1, macs)), None
    else:
        runs, labels = read_calibration(options.calibration, graph, size)
    return Calibration(graph, runs, options.seed, lambda share: step(f"running the network on samples: {share:.0%}"), labels)


def _repaired_weights(
    evidence: Evidence, analysis: Analysis, present: NDArray[np.bool_], options: Options, step: Step
) -> dict[str, Array]:
    """The weights that repair passes change, in the shapes of the pruned network."""
    if not options.repair or evidence.calibration is None:
        return {}
    kept_of = shrink_pass().kept_indices(analysis, present)
    twin = replace(analysis, graph=evidence.analysis.graph)
    patient = Patient(twin, present, shrink_pass().shrink(twin, present), kept_of, evidence.calibration.copy())
    for spec in options.repair:
        repair = registry.make("repair", spec)
        patient.tick = lambda share, name=repair.name: step(f"repairing ({name}): {share:.0%}")  # type: ignore[misc]
        repair.repair(patient)
    return rounded(analysis, patient.changed, kept_of)


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
    graph = _load_for_proof(source)
    analysis, present = replay(graph, plan)
    changed = dict(weights or {})
    check_weights(analysis, plan, present, changed)
    options = Options(seed=recorded_option(plan, "seed"), verify=verify)
    result = _finish(graph, analysis, plan.keep, changed, options, (), None, lambda text: None)
    return replace(result, options=plan.options, replayed=plan)


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
    graph = _load_for_proof(source)
    analysis, present = replay(graph, plan)
    if isinstance(pruned, ModelProto):
        check_at_hand(pruned)
    model = pruned if isinstance(pruned, ModelProto) else read_model(Path(pruned))
    changed = dict(weights or {})
    check_weights(analysis, plan, present, changed)
    kept_of = shrink_pass().kept_indices(analysis, present)
    reservation = check_normal_form(graph, contraction_results(analysis), seed, input_shapes)
    proof = prove(with_weights(analysis, changed, kept_of), present, model, kept_of, seed, input_shapes)
    return proof.with_reservation(reservation)


def _passed(proof: Proof) -> Proof:
    if not proof.passed:
        raise ProofError(f"{proof}; nothing was written. Please report this with the model")
    return proof
