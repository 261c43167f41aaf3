"""Several recipes at several targets, side by side, with the honest baselines always among them.

Channels are chosen on calibration data and accuracy is measured on other data; a sample that is in both is an error.  Start
reading at `compare`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto

from . import pipeline
from .bench import Latency, measure
from .branches import with_branches
from .errors import UnreachableError, UsageError
from .evaluation import BATCH, accuracy
from .graph import Array, Graph
from .options import Options
from .problem import Step
from .recipes import RECIPES
from .registry import specs_of
from .samples import LABELS, runs_of, sample_count
from .shape_inference import InputShapes
from .targets import parse_target

BASELINES = {"random": "random/uniform", "uniform magnitude": "magnitude/uniform"}
"""Always compared with: what a recipe must beat to be worth its time."""


@dataclass
class Point:
    """One recipe at one target."""

    recipe: str
    target: str
    macs: float = 1.0
    """Share of the original, as that of `params`."""
    params: float = 1.0
    accuracy: float = 0.0
    seconds: float = 0.0
    """What this point takes alone, scoring included."""
    proven: bool = False
    problem: str = ""
    """Why there is no result, if there is none."""
    latency: Latency | None = None


@dataclass
class Comparison:
    """The original's figures and all points."""

    accuracy: float
    samples: int
    points: list[Point] = field(default_factory=list)
    latency: Latency | None = None


def contestants(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options by the name that is shown: recipes, or IMPORTANCE/SELECTION[/REPAIR...]; baselines come first.

    Raises UsageError for a name that is neither.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, spec in [*BASELINES.items(), *((name, name) for name in names)]:
        importance, *rest = specs_of(spec, "/")
        if not rest and spec not in RECIPES:
            raise UsageError(f"{spec!r} is neither a recipe ({', '.join(RECIPES)}) nor IMPORTANCE/SELECTION[/REPAIR...]")
        passes = {"recipe": "fast", "importance": importance, "selection": rest[0], "repair": tuple(rest[1:])} if rest else {}
        found[name] = passes or {"recipe": spec}
    return found


def compare(
    graph: Graph,
    recipes: Sequence[str],
    targets: Sequence[str],
    samples: Mapping[str, Array],
    options: Options,
    input_shapes: InputShapes | None = None,
    threads: int = 1,
    step: Step = lambda text: None,
) -> Comparison:
    """Prune by every recipe to every target and measure accuracy on `samples`, which have labels, and latency, interleaved.

    `options` has what all have in common.  Each recipe scores once for all its targets.  Raises UsageError for unknown recipes
    and malformed targets, and where a sample is used for both.
    """
    for target in targets:
        parse_target(target)
    if isinstance(options.calibration, Mapping):
        check_apart(options.calibration, samples)
    everybody = contestants(recipes)
    original = with_branches(graph.model)
    step("the original: accuracy")
    result = Comparison(accuracy(original, dict(samples)), sample_count(runs_of(dict(samples), graph, BATCH)))
    models: list[ModelProto] = [original]
    for name, own in everybody.items():
        for point, model in _pruned(graph, name, targets, options.updated(own), input_shapes, step):
            result.points.append(point)
            if model is not None:
                point.accuracy = accuracy(model, dict(samples))
                models.append(model)
    step("latency, all models interleaved")
    result.latency, *latencies = measure(models, threads, 1, input_shapes)
    for point, latency in zip((point for point in result.points if not point.problem), latencies, strict=True):
        point.latency = latency
    return result


def _pruned(
    graph: Graph, name: str, targets: Sequence[str], options: Options, input_shapes: InputShapes | None, step: Step
) -> Iterator[tuple[Point, ModelProto | None]]:
    """One recipe at every target, with the model where there is one."""
    step(f"{name}: scoring channels")
    start = time.perf_counter()
    try:
        scored = pipeline.score(graph, options, input_shapes)
    except UnreachableError as error:
        yield from ((Point(name, target, problem=str(error)), None) for target in targets)
        return
    scoring = time.perf_counter() - start
    for target in targets:
        step(f"{name} at {target}")
        point, model = _pruned_to(scored, name, target)
        point.seconds += scoring
        yield point, model


def _pruned_to(scored: pipeline.Scored, name: str, target: str) -> tuple[Point, ModelProto | None]:
    start = time.perf_counter()
    try:
        result = pipeline.prune_scored(scored, target)
    except UnreachableError as error:
        return Point(name, target, problem=str(error)), None
    before, after = result.before, result.after
    point = Point(name, target, after.macs / max(1, before.macs), after.params / max(1, before.params))
    point.seconds = time.perf_counter() - start
    point.proven = result.proof is not None and result.proof.passed
    return point, result.model


def check_apart(calibration: Mapping[str, Array], samples: Mapping[str, Array]) -> None:
    """Raise UsageError where a sample that channels are chosen on is also one that accuracy is measured on."""
    names = sorted(set(calibration) & set(samples) - {LABELS})
    shared = _digests(calibration, names) & _digests(samples, names)
    if shared:
        raise UsageError(
            f"{len(shared)} samples are in both the calibration and the evaluation data: that flatters accuracy; take them out"
        )


def _digests(samples: Mapping[str, Array], names: Sequence[str]) -> set[bytes]:
    arrays = [np.ascontiguousarray(samples[name]) for name in names if samples[name].ndim]
    if not arrays:
        return set()
    return {hashlib.sha256(b"".join(array[k].tobytes() for array in arrays)).digest() for k in range(len(arrays[0]))}
