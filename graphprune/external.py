"""Weights that stay in their file: mapped where they are needed, cut when they are written.

A tensor with external data names its file by an absolute path here.  A *cut* one also names the shape that it has in the file and
the indices that are kept of each axis, so that pruning a model of any size touches a weight once, when it goes to the output.
Only graphprune writes those entries: reading a model drops all but ONNX's own.  Start reading at `pieces`.
"""

from __future__ import annotations

import atexit
import mmap
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .cutting import taken

Indices = NDArray[np.int64]

KEPT, SHAPE = "graphprune.kept.", "graphprune.shape"

OWN_ENTRIES = ("location", "offset", "length", "checksum")
"""What ONNX defines (docs/ExternalData.md of the onnx package)."""

MOST_HELD = 256
"""Files that may be held: a process may open some thousand."""

MAPPED_WHOLE = 2**28
"""Bytes of a held file that stays mapped as a whole: each new mapping of a weight takes as long as reading it."""

PIECE = 2**18
"""Elements that are in memory at a time while a weight is copied: they stay in the processor's cache until they are written."""


_HELD: dict[str, BinaryIO] = {}
"""Files that are kept open, by location."""


def is_external(tensor: TensorProto) -> bool:
    """Whether the data of a tensor is in a file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def mapped(tensor: TensorProto) -> NDArray[Any]:
    """The data of an external tensor: mapped, not read; of a cut one, a copy of what is kept."""
    return taken(_in_file(tensor), _kept(tensor))


def pieces(tensor: TensorProto) -> Iterator[NDArray[Any]]:
    """The data of an external tensor along its first axis, some of it at a time."""
    whole, kept = np.atleast_1d(_in_file(tensor)), _kept(tensor)
    rows = kept.pop(0, None)
    step = max(1, PIECE * len(whole) // max(1, whole.size))
    for start in range(0, len(whole) if rows is None else len(rows), step):
        part = slice(start, start + step)
        yield np.ascontiguousarray(taken(whole[part], kept) if rows is None else taken(whole, kept | {0: rows[part]}))


def cut(tensor: TensorProto, cuts: Mapping[int, Indices]) -> TensorProto:
    """An external tensor of which only some indices of some axes are kept; no data is touched."""
    result = TensorProto()
    result.CopyFrom(tensor)
    dims = list(tensor.dims)
    before = {entry.key for entry in tensor.external_data}
    if SHAPE not in before:
        result.external_data.add(key=SHAPE, value=" ".join(map(str, dims)))
    earlier = _kept(tensor)
    for axis, indices in cuts.items():
        dims[axis] = len(indices)
        total = earlier[axis][indices] if axis in earlier else indices
        _set_entry(result, f"{KEPT}{axis}", " ".join(map(str, total.tolist())))
    del result.dims[:]
    result.dims.extend(dims)
    return result


def point_to(tensor: TensorProto, location: str) -> None:
    """Name the file of an external tensor by its absolute path, in place, and forget entries that ONNX does not define."""
    kept = [entry for entry in tensor.external_data if entry.key in OWN_ENTRIES[1:]]
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.extend(kept)


def may_hold() -> bool:
    """Whether another file may be held."""
    return len(_HELD) < MOST_HELD


def held(path: Path) -> str:
    """A location that stands for a file as it is now, whatever takes its place later; it stays open until the process ends."""
    state = path.stat()
    location = f"{path.resolve()}?{state.st_dev}:{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"
    if location not in _HELD:
        _HELD[location] = path.open("rb")
        atexit.register(_HELD[location].close)
    return location


def memory_map(tensor: TensorProto, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The file of an external tensor from where its data begins, as an array that cannot be written."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset = entries["location"], int(entries.get("offset", 0))
    whole = _whole(location)
    if whole is not None:
        return np.ndarray(shape, dtype, whole, offset)
    return np.memmap(_HELD.get(location, location), dtype, "r", offset, shape)


@lru_cache(maxsize=2)
def _whole(location: str) -> mmap.mmap | None:
    """A small file that is held, mapped for all of its weights; None for others, whose pages must not pile up in memory."""
    file = _HELD.get(location)
    if file is None or os.fstat(file.fileno()).st_size > MAPPED_WHOLE:
        return None
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _in_file(tensor: TensorProto) -> NDArray[Any]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    shape = tuple(map(int, entries[SHAPE].split())) if SHAPE in entries else tuple(tensor.dims)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if not prod(shape):
        return np.zeros(shape, dtype)
    return memory_map(tensor, dtype, shape)


def _kept(tensor: TensorProto) -> dict[int, Indices]:
    found = {entry.key: entry.value for entry in tensor.external_data if entry.key.startswith(KEPT)}
    return {int(key.removeprefix(KEPT)): np.fromstring(value, np.int64, sep=" ") for key, value in sorted(found.items())}


def _set_entry(tensor: TensorProto, key: str, value: str) -> None:
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
            return
    tensor.external_data.add(key=key, value=value)
