"""Samples that a network is run on: calibration data, labelled evaluation data, or random stand-ins.

Start reading at `read_samples`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from onnx import ModelProto, helper

from .errors import UsageError
from .graph import Array, Graph, declared_shape
from .runtime import random_inputs
from .shape_inference import InputShapes

LABELS = "labels"
"""The key of an .npz that holds class labels; every other key is an input's name."""

Samples = dict[str, Array]
"""Arrays by input name, the first axis of each being the samples."""


def read_samples(path: Path, graph: Graph) -> Samples:
    """Samples from an .npz whose keys are the model's input names (first axis: samples), cast to the inputs' types.

    A key `labels` is passed through.  Raises UsageError where the file or its keys do not fit.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path}: cannot read the samples: {error}") from error
    return checked_samples(arrays, graph, str(path))


def checked_samples(arrays: Mapping[str, Array], graph: Graph, source: str = "samples") -> Samples:
    """The arrays as samples for this graph.  Raises UsageError where names or counts do not fit."""
    samples = {name: np.asarray(array) for name, array in arrays.items()}
    names = [value.name for value in graph.inputs]
    missing = [name for name in names if name not in samples]
    if missing:
        raise UsageError(
            f"{source}: no samples for input {missing[0]!r}; the file has: {', '.join(sorted(samples)) or 'nothing'}"
        )
    counts = {len(array) if array.ndim else 0 for array in samples.values()}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(f"{source}: all arrays must have the same number of samples, at least one (found {sorted(counts)})")
    for value in graph.inputs:
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        samples[value.name] = samples[value.name].astype(dtype, copy=False)
    return samples


RANDOM_SAMPLES = 256
"""How many random samples stand in for data where there is none."""


def read_calibration(source: Any, graph: Graph, seed: int, shapes: InputShapes | None = None) -> Samples:
    """Calibration samples from a path, a mapping of arrays, or an iterator of such; random ones for None.

    Raises UsageError where they do not fit.
    """
    if source is None or source == "random":
        return random_samples(graph, RANDOM_SAMPLES, seed, shapes)
    if isinstance(source, str | Path):
        samples = read_samples(Path(source), graph)
    elif isinstance(source, Mapping):
        samples = checked_samples(source, graph)
    else:
        batches = [checked_samples(batch, graph) for batch in source]
        if not batches:
            raise UsageError("the calibration iterator gave no batch")
        samples = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return {value.name: samples[value.name] for value in graph.inputs}


def random_samples(graph: Graph, count: int, seed: int, shapes: InputShapes | None = None) -> Samples:
    """Seeded random samples shaped like the model's inputs: what data-free calibration runs on."""
    fixed = fixed_batch(graph)
    runs = [random_inputs(graph, seed + k, shapes, batch=count, scale=4) for k in range(-(-count // fixed) if fixed else 1)]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def fixed_batch(graph: Graph | ModelProto) -> int:
    """The number of samples that the inputs prescribe, or 0 where it is free."""
    inputs = graph.inputs if isinstance(graph, Graph) else Graph(graph).inputs
    first = [shape[0] for shape in map(declared_shape, inputs) if shape]
    return next((dim for dim in first if isinstance(dim, int)), 0)


def count(samples: Samples) -> int:
    """The number of samples."""
    return len(next(iter(samples.values())))


def batches(samples: Samples, names: list[str], size: int) -> Iterator[Samples]:
    """The samples in pieces of `size`; a remainder too small for a fixed batch is the caller's to avoid (`whole`)."""
    for start in range(0, count(samples), size):
        yield {name: samples[name][start : start + size] for name in names}


def whole(samples: Samples, graph: Graph, limit: int | None = None) -> Samples:
    """The first `limit` samples, cut to a multiple of the batch that the inputs prescribe.  Raises UsageError for too few."""
    total = min(count(samples), limit or count(samples))
    fixed = fixed_batch(graph)
    if fixed and total < fixed:
        if count(samples) < fixed:
            raise UsageError(f"the model runs on batches of {fixed}, but there are only {count(samples)} samples")
        total = fixed
    total -= total % fixed if fixed else 0
    return {name: array[:total] for name, array in samples.items()}


def batch_size(graph: Graph, values: list[str], limit: int, most: int = 64) -> int:
    """How many samples to run at once so that `values` (and the inputs) take at most `limit` bytes."""
    fixed = fixed_batch(graph)
    if fixed:
        return fixed
    shapes = [graph.sized.get(name) or () for name in [*values, *(value.name for value in graph.inputs)]]
    total = 4 * sum(prod(dim for dim in shape if isinstance(dim, int)) for shape in shapes)
    return int(min(most, max(1, limit // max(1, total))))
