"""Giving initializers the names that parameters have in their framework, where the converter did not keep them.

A parameter is recognised by its values, transposed or not; one that is not unique keeps the converter's name.  Start reading at
`name_initializers`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from graphprune.branches import rename

Array = NDArray[np.generic]


def name_initializers(model: ModelProto, parameters: Iterable[tuple[str, Array]]) -> None:
    """Rename every initializer that holds the values of exactly one parameter, in place."""
    known = defaultdict(list)
    for name, array in parameters:
        known[_fingerprint(array)].append((name, array))
    found: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16) and len(tensor.dims) > 0:
            array = numpy_helper.to_array(tensor)
            names = [name for name, other in known[_fingerprint(array)] if _same(array, other)]
            if len(names) == 1:
                found[tensor.name] = names[0]
    counts = Counter(found.values())
    taken = {tensor.name for tensor in model.graph.initializer} | {name for node in model.graph.node for name in node.output}
    _rename(model, {old: new for old, new in found.items() if counts[new] == 1 and new not in taken})


def _fingerprint(array: Array) -> tuple[tuple[int, ...], float]:
    """Equal for arrays that are transposed forms of each other."""
    return tuple(sorted(array.shape)), float(np.sort(np.asarray(array, np.float64), axis=None)[:64].sum())


def _same(array: Array, other: Array) -> bool:
    if array.ndim > 4:
        return array.shape == other.shape and bool(np.array_equal(array, other))
    return any(
        tuple(other.shape[k] for k in order) == array.shape and bool(np.array_equal(array, np.transpose(other, order)))
        for order in permutations(range(array.ndim))
    )


def _rename(model: ModelProto, names: dict[str, str]) -> None:
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        rename(node, names)
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        value.name = names.get(value.name, value.name)
