"""Measuring latency in ONNX Runtime: models interleaved, so that a noisy machine disturbs all of them alike.

Start reading at `measure`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from .errors import UsageError
from .graph import Graph
from .runtime import random_inputs, session
from .shape_inference import InputShapes

ROUNDS = 30
"""Samples for each model."""

SAMPLE_SECONDS = 0.02
"""Each sample repeats the network for about this long."""


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
) -> list[Latency]:
    """The latency of each model; samples of all models alternate.

    Raises UsageError where ONNX Runtime cannot run a model.
    """
    runs = [_runner(model, threads, batch, input_shapes) for model in models]
    repeats = [_repeats(run) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, repeat, taken in zip(runs, repeats, samples, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                run()
            taken.append((time.perf_counter() - start) / repeat * 1e3)
        tick()
    return [_latency(taken, threads, batch) for taken in samples]


def _runner(model: ModelProto, threads: int, batch: int, input_shapes: InputShapes | None) -> Callable[[], object]:
    feeds = random_inputs(Graph(model), shapes=input_shapes, batch=batch, scale=4)
    try:
        active = session(model, threads)
        active.run(None, feeds)
    except Exception as error:  # onnxruntime raises many unrelated types
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"ONNX Runtime cannot run the model: {first}. Check --input-shape") from error
    return lambda: active.run(None, feeds)


def _repeats(run: Callable[[], object]) -> int:
    for _ in range(3):
        run()
    start = time.perf_counter()
    run()
    return max(1, round(SAMPLE_SECONDS / max(time.perf_counter() - start, 1e-6)))


def _latency(taken: Sequence[float], threads: int, batch: int) -> Latency:
    low, middle, high = np.percentile(taken, [10, 50, 90])
    return Latency(float(middle), float(low), float(high), len(taken), threads, batch)
