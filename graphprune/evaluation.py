"""How good a model is: accuracy on labelled samples, or what a function of the user's says.

Start reading at `evaluator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto

from .errors import UsageError
from .graph import Array, Graph
from .limits import lift
from .model_file import whole
from .runtime import session, trial
from .samples import LABELS, checked_samples, labelled, read_samples, runs_of, sample_count
from .sources import imported, is_import_string
from .widening import as_run

BATCH = 64


def evaluator(source: str, graph: Graph) -> Callable[[ModelProto], float]:
    """What scores a model: accuracy on an .npz with labels, or the function that an import string names.

    The function gets the ONNX model and returns a number, the higher the better; importing and calling it runs that code.
    Raises UsageError where there are no labels or no such function, and where it fails or gives no number.
    """
    if not is_import_string(source):
        samples = labelled_samples(Path(source), graph)
        return lambda model: accuracy(model, samples)
    function = imported(source)
    if not callable(function):
        raise UsageError(f"{source}: it is of type {type(function).__name__}; --eval takes a function of an ONNX model")
    return lambda model: _score(source, function, model)


def labelled_samples(path: Path, graph: Graph) -> dict[str, Array]:
    """Samples with labels from an .npz.  Raises UsageError where there are none."""
    samples = read_samples(path, graph)
    if LABELS not in samples:
        raise UsageError(f"{path}: --eval needs a key 'labels'")
    return samples


def _score(source: str, function: Callable[[ModelProto], float], model: ModelProto) -> float:
    lift()
    try:
        score = float(function(whole(model)))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UsageError(f"{source} failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(score):
        raise UsageError(f"{source} gave {score}; a finite number is needed")
    return score


def accuracy(model: ModelProto, samples: dict[str, Array]) -> float:
    """The share of samples, with `labels`, whose label is the arg max of the first output.

    Where the inputs prescribe a batch, samples that do not fill one are left out; bfloat16 is run in float32.  Raises UsageError
    where there are too few for one, where the first output is no matrix of scores, and for labels of classes that have none.
    """
    graph = as_run(Graph(model))
    runs = runs_of(checked_samples(samples, graph), graph, BATCH)
    trial(graph)
    active = session(graph.model)
    hits = 0
    for feeds, labels in labelled(runs, samples[LABELS]):
        scores = np.asarray(active.run(None, feeds)[0])
        if scores.ndim < 2:
            raise UsageError(f"the first output has shape {list(scores.shape)}; accuracy needs one score per class")
        scores = scores.reshape(len(scores), -1)
        _check_labels(labels, scores.shape[1])
        hits += int((scores.argmax(axis=1) == labels).sum())
    return hits / sample_count(runs)


def _check_labels(labels: Array | None, classes: int) -> None:
    values = np.asarray(labels, np.float64)
    strange = values[~np.isin(values, np.arange(classes))]
    if len(strange):
        raise UsageError(f"a label is {strange[0]:g}, but the model has scores for {classes} classes, 0 to {classes - 1}")
