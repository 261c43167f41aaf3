"""Accuracy of a classifier on labelled samples.  Start reading at `accuracy`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from onnx import ModelProto, helper

from .errors import UsageError
from .graph import Array, Graph
from .runtime import session

BATCH = 64


def read_samples(path: Path, graph: Graph) -> dict[str, Array]:
    """Samples from an .npz whose keys are the model's input names (first axis: samples), cast to the inputs' types.

    A key `labels` is passed through.  Raises UsageError where the file or its keys do not fit.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path}: cannot read the samples: {error}") from error
    names = [value.name for value in graph.inputs]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UsageError(f"{path}: no samples for input {missing[0]!r}; the file has: {', '.join(sorted(arrays)) or 'nothing'}")
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(f"{path}: all arrays must have the same number of samples, at least one (found {sorted(counts)})")
    for value in graph.inputs:
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays[value.name] = arrays[value.name].astype(dtype)
    return arrays


def accuracy(model: ModelProto, samples: dict[str, Array], tick: Callable[[], None] = lambda: None) -> float:
    """The share of samples whose label is the arg max of the first output.

    Raises UsageError where there are no labels, or the first output is no matrix of scores.
    """
    if "labels" not in samples:
        raise UsageError("evaluation needs a key 'labels' in the .npz file")
    graph = Graph(model)
    names = [value.name for value in graph.inputs]
    shape = graph.inputs[0].type.tensor_type.shape
    fixed = shape.dim[0].dim_value if shape.dim and shape.dim[0].HasField("dim_value") else 0
    active = session(model)
    total = len(samples["labels"])
    hits, batch = 0, fixed or BATCH
    for start in range(0, total - total % batch if fixed else total, batch):
        part = {name: samples[name][start : start + batch] for name in names}
        scores = np.asarray(active.run(None, part)[0])
        if scores.ndim < 2:
            raise UsageError(f"the first output has shape {list(scores.shape)}; accuracy needs one score per class")
        scores = scores.reshape(len(scores), -1)
        hits += int((scores.argmax(axis=1) == samples["labels"][start : start + batch]).sum())
        tick()
    return hits / max(1, total - total % batch if fixed else total)
