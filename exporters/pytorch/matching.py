"""What a plan for one graph means in another graph of the same network.

Values that are equal on the same inputs are the same value, whatever they are called and whichever nodes made them; so what is
kept of one is kept of the other.  What is known of some values says what is kept of all others, by the analysis of the
other graph.  Nothing is assumed: values that look alike but are kept differently say nothing, contradictions and groups that
are nowhere to be found are errors.  Start reading at `transferred`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from graphprune.errors import ProofError, UsageError, first_line
from graphprune.graph import Array, Graph, with_outputs
from graphprune.inference import Analysis
from graphprune.labels import Ids
from graphprune.runtime import run

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

TOLERANCE = {2: 1e-2, 4: 1e-4, 8: 1e-9}
"""Differences between equal values, relative to the largest magnitude, by the bytes of the type."""

PROJECTIONS = 4


@dataclass(frozen=True)
class Reading:
    """A graph's float values, weights included, on some inputs."""

    graph: Graph
    values: Mapping[str, Array]


def read_values(graph: Graph, feeds: Mapping[str, Array], what: str) -> Reading:
    """Run a graph and note all that it computes.  Raises ProofError where ONNX Runtime cannot run it."""
    types = graph.element_types
    names = [name for node in graph.nodes for name in node.output if types.get(name) in FLOATS]
    try:
        found = run(with_outputs(graph.model, names, types), feeds)
    except Exception as error:  # onnxruntime raises many unrelated types
        raise ProofError(f"ONNX Runtime cannot run {what}: {first_line(error)}") from error
    weights = {name: graph.constant(name) for name, tensor in graph.initializers.items() if tensor.data_type in FLOATS}
    return Reading(graph, {name: np.asarray(value) for name, value in {**weights, **found}.items() if value is not None})


def equal_values(a: Reading, b: Reading) -> Iterator[tuple[str, list[str]]]:
    """For each value of `b` the values of `a` that it equals.  What is the same everywhere tells nothing and is left out."""
    known: dict[tuple[tuple[int, ...], np.dtype], list[str]] = defaultdict(list)
    for name, array in a.values.items():
        if _tells(array):
            known[array.shape, array.dtype].append(name)
    wanted: dict[tuple[tuple[int, ...], np.dtype], list[str]] = defaultdict(list)
    for name, array in b.values.items():
        if (array.shape, array.dtype) in known and _tells(array):
            wanted[array.shape, array.dtype].append(name)
    for kind, names in wanted.items():
        prints, others = _fingerprints(a, known[kind]), _fingerprints(b, names)
        for name, each in zip(names, others, strict=True):
            near = np.abs(prints - each).max(axis=1) <= 100 * TOLERANCE[kind[1].itemsize] * max(1e-30, np.abs(each).max())
            found = [known[kind][k] for k in np.flatnonzero(near) if _same(a.values[known[kind][k]], b.values[name])]
            if found:
                yield name, found


def _tells(array: Array) -> bool:
    return array.dtype.kind == "f" and array.size > 1 and bool(np.isfinite(array).all()) and bool(np.ptp(array) > 0)


def _fingerprints(reading: Reading, names: list[str]) -> NDArray[np.float64]:
    size = reading.values[names[0]].size
    directions = np.random.default_rng(0).standard_normal((PROJECTIONS, size)).astype(np.float32)
    rows = [directions @ reading.values[name].reshape(-1).astype(np.float32) for name in names]
    norms = [np.linalg.norm(reading.values[name].astype(np.float32)) for name in names]
    return np.column_stack([np.asarray(rows, np.float64), np.asarray(norms, np.float64)])


def _same(a: Array, b: Array) -> bool:
    scale = float(np.abs(a).max())
    return float(np.abs(a.astype(np.float64) - b).max()) <= TOLERANCE[a.dtype.itemsize] * scale


def transferred(
    source: Analysis, stay: NDArray[np.bool_], pairs: list[tuple[str, list[str]]], target: Analysis
) -> NDArray[np.bool_]:
    """The labels of `target` that stay, where `stay` tells it of the labels of `source`.

    `pairs` are values of `target`, each with those of `source` that it equals.  Raises UsageError where the two contradict each
    other, or where a pruned group of `source` has no value in `target`.
    """
    known = list(_known(source, stay, pairs, target))
    _check_covered(source, stay, pairs, known)
    labels = target.ledger.labels
    present = np.ones(len(labels), dtype=bool)
    for _, _, ids, _ in known:
        present[labels.leaves(ids)] = False
    for _, _, ids, mask in known:
        present[labels.leaves(ids[mask])] = True
    present |= labels.are_pinned_roots(np.arange(len(labels), dtype=np.int32)) if len(labels) else present
    for name, axis, ids, mask in known:
        found = target.index_mask(ids, present)
        if not np.array_equal(found, mask):
            wrong = int(np.flatnonzero(found != mask)[0])
            verb = "need" if found[wrong] else "lose"
            raise UsageError(
                f"the plan does not fit the module: other parts of it {verb} index {wrong} of {name!r}, axis {axis}, which the "
                f"plan {'removes' if found[wrong] else 'keeps'}"
            )
    return present


def _known(
    source: Analysis, stay: NDArray[np.bool_], pairs: list[tuple[str, list[str]]], target: Analysis
) -> Iterator[tuple[str, int, Ids, NDArray[np.bool_]]]:
    """(value, axis, its labels, which indices stay) of `target`, wherever the equal values of `source` agree."""
    for name, equals in pairs:
        free = [dict(source.free_axes(other)) for other in equals]
        for axis, ids in target.free_axes(name):
            everything = np.ones(len(ids), dtype=bool)
            masks = [source.index_mask(axes[axis], stay) if axis in axes else everything for axes in free]
            if len(ids) and all(np.array_equal(masks[0], mask) for mask in masks[1:]):
                yield name, axis, ids, masks[0]


def _check_covered(
    source: Analysis,
    stay: NDArray[np.bool_],
    pairs: list[tuple[str, list[str]]],
    known: list[tuple[str, int, Ids, NDArray[np.bool_]]],
) -> None:
    """Every label that leaves must lie on an axis that was found."""
    labels, told = source.ledger.labels, {(name, axis) for name, axis, _, _ in known}
    covered = np.zeros(len(labels), dtype=bool)
    for name, equals in pairs:
        for other in equals:
            for axis, ids in source.free_axes(other):
                if len(ids) and (name, axis) in told:
                    covered[labels.leaves(ids)] = True
    for group in source.groups:
        if not (covered | stay)[group.labels].all():
            raise UsageError(
                f"nothing in the module corresponds to the plan's group {group.id!r}: "
                "the ONNX model computes what the module does not"
            )
