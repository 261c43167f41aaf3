"""One pruning job from beginning to end: prune, measure, compare with what is required, write the files.

`graphprune prune` and every job of `graphprune batch` are this.  Start reading at `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RequirementError, UsageError
from .options import Options
from .requirements import Checked, Requirement, check, needs, parse_requirements
from .terminal import sizes_of_inputs, source_size, total_size, write_text

if TYPE_CHECKING:
    from onnx import ModelProto

    from .bench import Latency
    from .pipeline import Result
    from .problem import Step
    from .profiling import NodeTimes


@dataclass(frozen=True)
class Job:
    """What to prune, how, what to measure and what to require."""

    model: str = ""
    options: Options = field(default_factory=Options)
    input_shape: tuple[str, ...] = ()
    eval: str | None = None
    """An .npz with labels, or an import string of a function that scores a model."""
    measure: bool = False
    require: str = ""
    """Requirements, joined by commas (`graphprune.requirements`)."""

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """What is required.  Raises UsageError where that is malformed or cannot be measured."""
        wanted = parse_requirements(self.require) if self.require else ()
        if needs(wanted, "accuracy") and not self.eval:
            raise UsageError("--require: accuracy needs --eval: an .npz with labels, or module:function")
        return wanted

    @property
    def measures(self) -> bool:
        """Whether latency is measured."""
        return self.measure or (bool(self.require) and needs(parse_requirements(self.require), "latency"))


@dataclass(frozen=True)
class Outcome:
    """A pruned model with what was measured; figures are those of the original and of the pruned model."""

    result: Result
    source_bytes: int
    latency: Sequence[Latency]
    accuracies: Sequence[float]
    requirements: Sequence[Checked]

    @property
    def unmet(self) -> list[Checked]:
        """The requirements that are not met."""
        return [item for item in self.requirements if not item.passed]

    def write(self, output: Path, plan: Path | None) -> Sequence[Path]:
        """Write the model, with its provenance, and the plan with repaired weights; the model's files.  Raises UsageError."""
        from .plan import write_weights

        files = write_pruned(self.result, output)
        if plan is not None:
            write_weights(plan, self.result.weights)
            write_text(plan, self.result.plan.to_json())
        return files

    def sizes(self, files: Sequence[Path]) -> tuple[int, int]:
        """Bytes of the source and of the files that were written; what those would have where none was."""
        if files:
            return self.source_bytes, total_size(files)
        from .model_file import serialised_size
        from .provenance import record

        return self.source_bytes, serialised_size(record(self.result.cut, self.result.plan))

    def as_json(self, sizes: tuple[int, int]) -> dict[str, Any]:
        """For scripts."""
        from .tables import prune_json

        return prune_json(self.result, sizes, self.latency, self.accuracies, self.requirements)

    def check(self) -> None:
        """Raise RequirementError where something required is not met."""
        if self.unmet:
            failed = ", ".join(str(item) for item in self.unmet)
            raise RequirementError(f"{len(self.unmet)} of {len(self.requirements)} requirements not met: {failed}")


def write_pruned(result: Result, output: Path) -> Sequence[Path]:
    """Write a pruned model with its provenance, while the source may still be hashed; the model's files.  Raises UsageError."""
    from . import registry
    from .provenance import entries, forget

    files: Sequence[Path] = (
        registry.load("exporters", "onnx")().write(forget(result.cut), output, lambda: entries(result.plan)).files
    )
    return files


def run(job: Job, step: Step = lambda text: None) -> Outcome:
    """Prune and measure; writes nothing.

    Raises what `graphprune.pipeline.prune` raises, and UsageError where samples or requirements do not fit.
    """
    from . import pipeline
    from .branches import with_branches
    from .digest import begin
    from .evaluation import evaluator

    wanted, shapes = job.requirements, sizes_of_inputs(job.input_shape)
    source = pipeline.load(job.model, shapes)
    begin(source)  # the plan will name it
    score = evaluator(job.eval, source) if job.eval else None
    result = pipeline.prune(source, job.options, shapes, step)
    models = [with_branches(result.original.model), result.cut]
    latency = _latency(models, job.options.threads, shapes, step) if job.measures else []
    if score is not None:
        step("measuring accuracy")
    accuracies = [score(model) for model in models] if score is not None else []
    size = source_size(Path(job.model), result.original.model)
    return Outcome(result, size, latency, accuracies, check(wanted, _figures(result, latency, accuracies)))


def layer_times(job: Job, outcome: Outcome, step: Step = lambda text: None) -> tuple[NodeTimes, NodeTimes] | None:
    """What each layer takes before and after, for reports; None where the job measures no latency.  Raises UsageError."""
    from .branches import with_branches
    from .layers import layers_of
    from .profiling import node_times

    if not job.measures:
        return None
    step("measuring layers")
    result, shapes = outcome.result, sizes_of_inputs(job.input_shape)
    wanted = [layer.node for layer in layers_of(result.analysis, result.analysis.present({}))]
    before = node_times(with_branches(result.original.model), wanted, job.options.threads, shapes)
    return before, node_times(result.cut, wanted, job.options.threads, shapes)


def _latency(models: list[ModelProto], threads: int, shapes: dict[str, list[int]], step: Step) -> list[Latency]:
    from . import bench

    step("measuring latency")
    return bench.measure(models, threads, 1, shapes)


def _figures(result: Result, latency: Sequence[Latency], accuracies: Sequence[float]) -> dict[str, tuple[float, float]]:
    """What requirements are about: the figures of original and pruned model by metric."""
    from .cost import KINDS

    figures: dict[str, tuple[float, float]] = {kind: (result.before.of(kind), result.after.of(kind)) for kind in KINDS}
    if latency:
        figures["latency"] = latency[0].median_ms, latency[1].median_ms
    if accuracies:
        figures["accuracy"] = accuracies[0], accuracies[1]
    return figures
