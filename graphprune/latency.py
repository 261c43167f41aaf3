"""Latency targets: choose by a model of what every node costs on this machine, measure, correct, repeat.

What a node takes is measured in the network as it is and taken to shrink with its work; that is only near the truth (kernels work
in blocks), so every candidate is measured against the original, and the next one is chosen with what its nodes took.  The figure
that counts is always measured.  Start reading at `fastest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from . import bench
from .branches import with_branches
from .budget import Keep, Problem
from .cost import CostModel, Times
from .errors import NotFasterError, UnreachableError
from .filling import filled
from .graph import Graph
from .inference import Analysis
from .profiling import node_times
from .reorder import reordered
from .shape_inference import InputShapes
from .targets import Target

CLOSE = 0.03
"""A result is done when it is within this share below its target."""

AIM = 0.985
"""Candidates are chosen for this share of the target, the middle of what counts as done."""

TRIES = 9
"""Candidates that are measured at most."""

ROUNDS = 15
"""Samples for each candidate; the final figure takes `bench.ROUNDS`."""

Choose = Callable[[Problem], Keep]
Build = Callable[[Keep], ModelProto]


@dataclass(frozen=True)
class Stopwatch:
    """Measures networks against the original, with one thread count and one set of inputs."""

    original: ModelProto
    threads: int
    shapes: InputShapes | None

    def compare(self, candidate: ModelProto, rounds: int = ROUNDS) -> tuple[float, float]:
        """Nanoseconds of the original and of a candidate, measured in turns: the 10th percentile, which noise hardly reaches."""
        latencies = bench.measure([self.original, candidate], self.threads, 1, self.shapes, rounds)
        before, after = (latency.p10_ms * 1e6 for latency in latencies)
        return before, after

    def node_times(self, model: ModelProto, contractions: set[str]) -> dict[str, float]:
        """Nanoseconds for each node, by name; what cannot be told apart (changes of layout) is shared out over all."""
        names = [node.name for node in model.graph.node]
        found = node_times(model, contractions & set(names), self.threads, self.shapes, names)
        known = sum(found.nodes.values())
        return {name: time * 1e6 * found.total / known for name, time in found.nodes.items()} if known else {}


def fastest(problem: Problem, stopwatch: Stopwatch, choose: Choose, build: Build, step: Callable[[str], None]) -> Keep:
    """What to keep so that the measured latency meets its target, as closely as `CLOSE`; other targets hold as well.

    Raises UnreachableError where nothing that was measured meets it.
    """
    target = next(target for target in problem.targets if target.kind == "latency")
    others = [each for each in problem.targets if each is not target]
    analysis = problem.model.analysis
    contractions = {analysis.graph.nodes[term.node].name for term in analysis.mac_terms}
    step("measuring the nodes")
    before, _ = stopwatch.compare(stopwatch.original)
    model = CostModel(analysis, _by_position(analysis, stopwatch.node_times(stopwatch.original, contractions)))
    limit = model.original.latency * AIM * _share(target, before)
    best: tuple[float, Keep | None] = (0.0, None)
    for number in range(TRIES):
        step(f"measuring candidate {number + 1}")
        keep = choose(replace(problem, model=model, targets=[*others, Target("latency", limit, absolute=True)], required={}))
        candidate = build(keep)
        before, after = stopwatch.compare(candidate)
        if _is_close(after, before, target):
            before, after = stopwatch.compare(candidate, bench.ROUNDS)
        wanted, share = _share(target, before), after / before
        if best[0] < share <= wanted:
            best = share, keep
        if _is_close(after, before, target):
            break
        present = analysis.present(keep)
        model = CostModel(analysis, _by_position(analysis, stopwatch.node_times(candidate, contractions)), present)
        limit = model.cost(present).latency * AIM * wanted / share
    if best[1] is None:
        raise UnreachableError(f"the target cannot be reached: {target}; of {TRIES} networks, the last took {share:.0%}")
    return _without_dear_copies(analysis, best[1], stopwatch, contractions, build, target) if analysis.ledger.taken else best[1]


def _without_dear_copies(
    analysis: Analysis, keep: Keep, stopwatch: Stopwatch, contractions: set[str], build: Build, target: Target
) -> Keep:
    """What to keep when channels that would cost more to leave out are read along; the same where that misses the target."""
    moved, _ = reordered(analysis, analysis.present(keep))
    present, times = moved.present(keep), stopwatch.node_times(build(keep), contractions)
    wider = filled(moved, present, CostModel(moved, _by_position(moved, times), present), times)
    if np.array_equal(wider, present):
        return keep
    fuller = analysis.kept(wider)
    before, after = stopwatch.compare(build(fuller), bench.ROUNDS)
    return fuller if after / before <= _share(target, before) else keep


def _share(target: Target, before: float) -> float:
    """The target as a share of what the original takes, in nanoseconds."""
    return target.value / before if target.absolute else target.value


def _is_close(after: float, before: float, target: Target) -> bool:
    wanted = _share(target, before)
    return wanted * (1 - CLOSE) <= after / before <= wanted


def _by_position(analysis: Analysis, times: Mapping[str, float]) -> Times:
    named = {node.name: position for position, node in enumerate(analysis.graph.nodes)}
    return {named[name]: time for name, time in times.items() if name in named}


def check_faster(stopwatch: Stopwatch, result: ModelProto) -> tuple[int, int]:
    """Nanoseconds of the original and the result.  Raises NotFasterError where the result is not faster."""
    before, after = stopwatch.compare(result, bench.ROUNDS)
    if after >= before:
        raise NotFasterError(f"the result takes {after / before:.0%} of the original's time; nothing was written")
    return round(before), round(after)


def stopwatch_for(graph: Graph, threads: int, shapes: InputShapes | None) -> Stopwatch:
    """A stopwatch for a normalised graph."""
    return Stopwatch(with_branches(graph.model), threads, shapes)
