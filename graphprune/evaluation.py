"""Accuracy of a classifier on labelled samples.  Start reading at `accuracy`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from .errors import UsageError
from .graph import Array, Graph
from .runtime import session

BATCH = 64


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
