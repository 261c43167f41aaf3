"""Whether what was exported computes what the ONNX model computes: on random inputs, in its own runtime.

Start reading at `compared`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import ModelProto

from graphprune.errors import ProofError, UsageError, first_line
from graphprune.graph import Array, Graph
from graphprune.proof import TOLERANCE
from graphprune.runtime import cannot_run, random_inputs, run

LEAST_TOLERANCE = 1e-4
"""Largest difference to ONNX Runtime, relative to the largest value of an output; coarse types have more, as in the proof."""

ROUNDING = 4
"""Where the network amplifies rounding: so many times how far an output moves by it, if that is more."""

NUDGE = 1e-6
"""Inputs moved by this share, a few units of the last place of float32, show how much a network amplifies rounding."""

Run = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Runs what was exported: inputs by name, in the model's order, give the outputs in the model's order."""

Rounding = Callable[[ModelProto, Mapping[str, Array], Mapping[str, Array]], Mapping[str, float]]
"""Says how far each output of a model moves, relative to scale, from what it computes for some inputs."""


def compared(graph: Graph, model: ModelProto, exported: Run, runtime: str, rounding: Rounding | None = None) -> float:
    """The largest difference to ONNX Runtime on random inputs, relative to the scale of each output.

    `model` is the network as it was exported, `graph` says what its inputs are, `runtime` is what messages call the other
    side, and `rounding` how far each output may move without a fault (by default `sensitivity`).  ONNX Runtime runs the graph
    as it is written.  Raises ProofError where the difference is above the tolerance, and UsageError where the
    model cannot be run on random inputs at all.
    """
    feeds = random_inputs(graph)
    try:
        expected = run(model, feeds)
        moves = (rounding or sensitivity)(model, feeds, expected)
    except cannot_run() as error:
        raise UsageError(
            f"ONNX Runtime cannot run the model on random inputs, to compare: {first_line(error)}. Check --input-shape"
        ) from error
    try:
        found = exported(feeds)
    except cannot_run() as error:
        raise ProofError(f"{runtime} cannot be run: {first_line(error)}; nothing was written") from error
    worst = 0.0
    for (name, right), value in zip(expected.items(), found, strict=True):
        allowed = max(LEAST_TOLERANCE, TOLERANCE.get(str(right.dtype), 0.0), ROUNDING * moves[name])
        difference = _difference(right, value)
        worst = max(worst, difference)
        if not difference <= allowed:
            raise ProofError(
                f"{runtime}'s output {name!r} differs from ONNX Runtime's by {difference:.1e} of scale "
                f"({allowed:.1e} is allowed); nothing was written"
            )
    return worst


def sensitivity(model: ModelProto, feeds: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """How far each output moves for rounding's sake: by ONNX Runtime's own optimisations, or by a nudge to the inputs."""
    optimised = run(model, feeds, optimize=True)
    moves = nudged(model, feeds, expected)
    return {name: max(moves[name], _difference(right, optimised[name])) for name, right in expected.items()}


def nudged(model: ModelProto, feeds: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """How far each output moves by a nudge to the inputs."""
    signs = np.random.default_rng(0)
    results = run(model, {name: _moved(value, signs) for name, value in feeds.items()})
    return {name: _difference(right, results[name]) for name, right in expected.items()}


def _moved(value: Array, signs: np.random.Generator) -> Array:
    """An input with a nudge to each of its numbers."""
    if value.dtype.kind != "f":
        return value
    return np.asarray(value * (1 + NUDGE * signs.choice([-1, 1], value.shape)), value.dtype)


def _difference(right: Array, value: Array) -> float:
    """The largest difference, relative to the largest value; infinite where shapes or the places of NaN differ."""
    if right.shape != value.shape:
        return float("inf")
    a, b = np.asarray(right, np.float64), np.asarray(value, np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    scale = float(np.abs(a[finite]).max(initial=0.0)) or 1.0
    difference = float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale
    return difference if np.isfinite(difference) else float("inf")
