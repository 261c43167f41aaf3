"""What a framework's own model must give: the outputs of the pruned ONNX model.  Start reading at `largest_difference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from graphprune.errors import ProofError
from graphprune.graph import Array
from graphprune.pipeline import Result
from graphprune.plan import Plan, read_plan, read_weights
from graphprune.proof import difference
from graphprune.runtime import random_inputs, run

Feeds = Mapping[str, Array]

SEEDS = 2
"""Random inputs that the outcome is compared on, besides the example."""


def plan_of(plan: Plan | str | Path, weights: Mapping[str, Array] | None) -> tuple[Plan, Mapping[str, Array] | None]:
    """A plan with the repaired weights; those beside its file unless others are given."""
    if isinstance(plan, Plan):
        return plan, weights
    return read_plan(Path(plan)), read_weights(Path(plan)) if weights is None else weights


def largest_difference(
    result: Result, feeds: Feeds, call: Callable[[Feeds], Sequence[Array]], outputs: Sequence[tuple[str, int]], subject: str
) -> float:
    """The largest difference from the pruned ONNX model, on an example's inputs and on random ones, relative to the scale.

    `call` gives what the framework's model returns for the inputs of the ONNX model; `outputs` are names of outputs there, each
    with its place in that.  Raises ProofError, which names the `subject`.
    """
    shapes = {name: list(array.shape) for name, array in feeds.items() if array.ndim}
    largest = 0.0
    for each in [feeds, *(random_inputs(result.original, seed, shapes) for seed in range(SEEDS))]:
        expected, own = run(result.model, each), call(each)
        for name, place in outputs:
            error, tolerance = difference(expected[name], own[place])
            if error > tolerance:
                raise ProofError(
                    f"the shrunk {subject} differs from the pruned ONNX model at output {name!r} (error {error:.1e} of its "
                    "scale); yours is as it was. Please report this with the model"
                )
            largest = max(largest, error)
    return largest
