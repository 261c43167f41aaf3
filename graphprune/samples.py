"""Samples that a network is run on: calibration data or labelled evaluation data.

Start reading at `read_samples`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from onnx import ValueInfoProto, helper

from .archives import check_regular
from .errors import UsageError
from .graph import Array, Graph, declared_shape
from .limits import check_memory

LABELS = "labels"
"""The key of an .npz that holds class labels; every other key is an input's name."""

Samples = dict[str, Array]
"""Arrays by input name, the first axis of each being the samples (inputs of rank 0 have none)."""

Runs = list[dict[str, Array]]
"""What the network is fed, run by run."""


def read_samples(path: Path, graph: Graph) -> Samples:
    """Samples from an .npz whose keys are the model's input names (first axis: samples), cast to the inputs' types.

    A key `labels` is passed through.  Raises UsageError where the file or its keys do not fit.
    """
    check_regular(path, UsageError)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            packed = sum(entry.file_size for entry in archive.zip.infolist())
            check_memory(packed, path.stat().st_size, f"{path}: what is packed in it")
            arrays = {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise UsageError(f"{path}: cannot read the samples: {error}") from error
    return checked_samples(arrays, graph, str(path))


_UNREADABLE = (
    OSError, ValueError, EOFError, AttributeError, KeyError, TypeError, SyntaxError, RuntimeError, MemoryError, OverflowError,
    TokenError, BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy and zipfile raise for archives that are none, and for headers that lie."""


def checked_samples(arrays: Mapping[str, Array], graph: Graph, source: str = "samples") -> Samples:
    """The arrays as samples for this graph.  Raises UsageError where names, shapes or counts do not fit."""
    samples = {name: np.asarray(array) for name, array in arrays.items()}
    names = [value.name for value in graph.inputs]
    missing = [name for name in names if name not in samples]
    if missing:
        raise UsageError(
            f"{source}: no samples for input {missing[0]!r}; the file has: {', '.join(sorted(samples)) or 'nothing'}"
        )
    scalars = {value.name for value in graph.inputs if declared_shape(value) == ()}
    counts = {len(array) if array.ndim else 0 for name, array in samples.items() if name not in scalars}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(f"{source}: all arrays must have the same number of samples, at least one (found {sorted(counts)})")
    labels = samples.get(LABELS)
    if labels is not None and LABELS not in names and (labels.ndim != 1 or labels.dtype.kind not in "biuf"):
        raise UsageError(f"{source}: labels are {labels.dtype} of shape {list(labels.shape)}; one number per sample is needed")
    for value in graph.inputs:
        samples[value.name] = _fitting(samples[value.name], value, source)
    return samples


def _fitting(array: Array, value: ValueInfoProto, source: str) -> Array:
    shape = declared_shape(value)
    inner = None if shape is None else [dim if isinstance(dim, int) else None for dim in shape[1:]]
    if inner is not None and (
        array.ndim != len(shape or ()) or any(b is not None and a != b for a, b in zip(array.shape[1:], inner, strict=True))
    ):
        raise UsageError(f"{source}: {value.name!r} has shape {list(array.shape)}, but the input is {list(shape or ())}")
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if array.dtype.kind not in "biufV":
        raise UsageError(f"{source}: {value.name!r} has type {array.dtype}, but the input takes {np.dtype(dtype)}")
    typed = array.astype(dtype, copy=False)
    if typed.dtype.kind == "f" and not np.isfinite(typed).all():
        worst = int(np.argwhere(~np.isfinite(typed))[0][0]) if typed.ndim else 0
        raise UsageError(f"{source}: {value.name!r} has values that are not finite, first in sample {worst}")
    return typed


def read_calibration(source: Any, graph: Graph, size: int) -> tuple[Runs, Array | None]:
    """Runs of `size` samples, and their labels, from a path, a mapping of arrays or an iterator of such.

    Raises UsageError if they do not fit.
    """
    if isinstance(source, str | Path):
        batches = [read_samples(Path(source), graph)]
    elif isinstance(source, Mapping):
        batches = [checked_samples(source, graph)]
    else:
        batches = [checked_samples(batch, graph) for batch in source]
    if not batches:
        raise UsageError("the calibration iterator gave no batch")
    pieces = [runs_of(batch, graph, size) for batch in batches]
    labels = [batch[LABELS][: sample_count(runs)] for batch, runs in zip(batches, pieces, strict=True) if LABELS in batch]
    return [run for runs in pieces for run in runs], np.concatenate(labels) if len(labels) == len(batches) else None


def runs_of(samples: Samples, graph: Graph, size: int) -> Runs:
    """The samples in pieces of `size`; of as many as the inputs prescribe where they prescribe a batch.

    Raises UsageError where there are too few for one batch.
    """
    names = [value.name for value in graph.inputs]
    total = max((len(samples[name]) for name in names if samples[name].ndim), default=1)
    fixed = fixed_batch(graph)
    if fixed > total:
        raise UsageError(f"the model runs on batches of {fixed}, but there are only {total} samples")
    size = fixed or size
    starts = range(0, total - total % fixed if fixed else total, size)
    return [
        {name: samples[name][start : start + size] if samples[name].ndim else samples[name] for name in names} for start in starts
    ]


def fixed_batch(graph: Graph) -> int:
    """The number of samples that the inputs prescribe, or 0 where it is free."""
    first = [shape[0] for shape in map(declared_shape, graph.inputs) if shape]
    return next((dim for dim in first if isinstance(dim, int)), 0)


def sample_count(runs: Iterable[Mapping[str, Array]]) -> int:
    """The number of samples in some runs."""
    return sum(max((len(array) for array in run.values() if array.ndim), default=1) for run in runs)


def labelled(runs: Runs, labels: Array | None) -> Iterator[tuple[dict[str, Array], Array | None]]:
    """Each run with the labels of its samples; None where there are none."""
    start = 0
    for feeds in runs:
        end = start + sample_count([feeds])
        yield feeds, None if labels is None else labels[start:end]
        start = end


def run_size(graph: Graph, values: Iterable[str], limit: int, most: int = 64) -> int:
    """How many samples to run at once so that the largest of `values` together take at most `limit` bytes."""
    shapes = [graph.sized.get(name) or () for name in dict.fromkeys(values)]
    total = 4 * sum(prod(dim for dim in shape if isinstance(dim, int)) for shape in shapes)
    return int(min(most, max(1, limit // max(1, total // max(1, fixed_batch(graph))))))
