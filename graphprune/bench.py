"""Measuring latency: models interleaved, so that a noisy machine disturbs all of them alike.

Start reading at `measure`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from . import registry
from .graph import Array, Graph
from .runtime import random_inputs, trial
from .shape_inference import InputShapes

ROUNDS = 30
"""Samples for each model."""

SAMPLE_SECONDS = 0.02
"""Each sample repeats the network for about this long."""

WARM_SECONDS = 0.3
"""A network that takes longer needs no warming up."""

MOST_SECONDS, LEAST_ROUNDS = 8, 3
"""Networks that take long get fewer samples."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one run: median over the samples, and the 10th and 90th percentile."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    samples: int
    threads: int
    batch: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(
    models: Sequence[ModelProto],
    threads: int = 1,
    batch: int = 1,
    input_shapes: InputShapes | None = None,
    rounds: int = ROUNDS,
    tick: Callable[[], None] = lambda: None,
    backend: str = "onnxruntime",
) -> list[Latency]:
    """The latency of each model; samples of all models alternate.

    `backend` is registered under `graphprune.backends`: a function that makes, from a model, its inputs and a number of threads,
    a function that runs the model once.  Raises UsageError where the backend cannot run a model.
    """
    prepare = registry.load("backends", backend)
    for model in models:
        trial(Graph(model), input_shapes)
    feeds = [random_inputs(Graph(model), shapes=input_shapes, batch=batch, scale=4) for model in models]
    runs = [prepare(model, each, threads) for model, each in zip(models, feeds, strict=True)]
    seconds = [_seconds(run) for run in runs]
    repeats = [max(1, round(SAMPLE_SECONDS / each)) for each in seconds]
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(max(LEAST_ROUNDS, min(rounds, round(MOST_SECONDS / sum(seconds))))):
        for run, repeat, taken in zip(runs, repeats, samples, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            taken.append((time.perf_counter() - start) / repeat * 1e3)
        tick()
    return [_latency(taken, threads, _batch(each)) for taken, each in zip(samples, feeds, strict=True)]


def _batch(feeds: Mapping[str, Array]) -> int:
    """The size that the first input with axes has along the first of them, whatever was asked for."""
    return next((array.shape[0] for array in feeds.values() if array.ndim), 1)


def _seconds(run: Callable[[], object]) -> float:
    """What one run takes, after some to warm up where they are short."""
    for _ in range(4):
        start = time.perf_counter()
        run()
        taken = max(time.perf_counter() - start, 1e-6)
        if taken > WARM_SECONDS:
            break
    return taken


def _latency(taken: Sequence[float], threads: int, batch: int) -> Latency:
    low, middle, high = np.percentile(taken, [10, 50, 90])
    return Latency(float(middle), float(low), float(high), len(taken), threads, batch)
