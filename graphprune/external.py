"""Weights that stay in their file: mapped where they are needed, cut when they are written.

A tensor with external data names its file by an absolute path here.  Further entries say what becomes of it on the way out: the
shape and the data type that it has in the file, the order of its axes, and the indices that are kept of each.  So pruning a model
of any size touches a weight once, when it goes to the output.  Only graphprune writes those entries: reading a model drops all
but ONNX's own.  Start reading at `pieces`.
"""

from __future__ import annotations

import atexit
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .cutting import sideways, taken, taken_sideways
from .errors import InvalidModelError
from .lent import is_kept, is_lent, lent_data

Indices = NDArray[np.int64]

SHAPE, TYPE = "graphprune.shape", "graphprune.type"
"""Those in the file, where others are wanted."""

NAME = "graphprune.name"
"""The name of a tensor before it was cast."""

ORDER = "graphprune.order"
"""The axis in the file for each axis that is wanted."""

KEPT = "graphprune.kept."
"""With the number of an axis (as wanted): the indices that stay of it."""

OWN_ENTRIES = ("location", "offset", "length", "checksum")
"""What ONNX defines (docs/ExternalData.md of the onnx package)."""

MOST_HELD = 256
"""Files that may be held: a process may open some thousand."""

MAPPED_WHOLE = 2**28
"""Bytes of a held file that stays mapped as a whole: each new mapping of a weight takes as long as reading it."""

PIECE = 2**18
"""Elements that are in memory at a time while a weight is copied: they stay in the processor's cache until they are written."""

SIDEWAYS = 16
"""So many times more of a weight whose rows are columns in the file: each then reads a line of the cache as a whole, and more."""

READ_AHEAD = 2
"""Where rows are cut, up to so many times what is kept of a stretch is read of it at once."""

LONGEST_ROW = 2**22
"""Bytes of a row that may be read: the memory for it stays until its thread ends."""

Pieces = Callable[[TensorProto], Iterator[NDArray[Any]]]
"""Gives the data of a tensor, some of it at a time: `pieces` or `fleeting_pieces`."""

Reader = Callable[[int, int], NDArray[Any]]
"""Gives the rows from one to before another, in memory that the next call in the same thread writes over."""

_HELD: dict[str, BinaryIO] = {}
"""Files that are kept open, by location."""

_NAMED: set[str] = set()
"""Locations that tensors were pointed to, once they were known to be in the model's folder."""

_READ = threading.local()
"""What a thread read last, as `bytes`."""


def is_external(tensor: TensorProto) -> bool:
    """Whether the data of a tensor is in a file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def mapped(tensor: TensorProto) -> NDArray[Any]:
    """The data of an external tensor: mapped, not read; a copy of what is kept of a cut one, or where another type is wanted."""
    return taken(_in_file(tensor), _kept(tensor)).astype(_dtype(tensor.data_type), copy=False)


def pieces(tensor: TensorProto) -> Iterator[NDArray[Any]]:
    """The data of an external tensor along its first axis, some of it at a time."""
    return _pieces(tensor, _reader(tensor) if _kept(tensor) else None)


def fleeting_pieces(tensor: TensorProto) -> Iterator[NDArray[Any]]:
    """What `pieces` gives, for readers that are done with each when they ask for the next, which may be written over it."""
    return _pieces(tensor, _reader(tensor))


def _pieces(tensor: TensorProto, read: Reader | None) -> Iterator[NDArray[Any]]:
    rows = _Rows(tensor, read)
    step = max(1, (SIDEWAYS if rows.turned else 1) * PIECE // max(1, rows.width))
    for start in range(0, rows.count, step):
        yield rows.made(start, start + step)


class _Rows:
    """What is kept of an external tensor, made some rows at a time."""

    def __init__(self, tensor: TensorProto, read: Reader | None) -> None:
        self.whole, self.cuts, self.dtype = np.atleast_1d(_in_file(tensor)), _kept(tensor), _dtype(tensor.data_type)
        self.read = read
        self.rows = self.cuts.pop(0, None)
        self.turned = sideways(self.whole)
        self.count = len(self.whole) if self.rows is None else len(self.rows)
        self.width = self.whole.size // max(1, len(self.whole))

    def made(self, start: int, stop: int) -> NDArray[Any]:
        """These of the kept rows, contiguous."""
        source, cuts = self._around(start, min(stop, self.count))
        return taken_sideways(source, cuts, self.dtype) if self.turned else np.ascontiguousarray(taken(source, cuts), self.dtype)

    def _around(self, start: int, stop: int) -> tuple[NDArray[Any], dict[int, Indices]]:
        """An array that has these rows, and what to take of it."""
        if self.rows is None:
            return self.whole[start:stop] if self.read is None else self.read(start, stop), self.cuts
        rows = self.rows[start:stop]
        first, last = int(rows.min()), int(rows.max()) + 1
        if self.read is None or last - first > READ_AHEAD * len(rows):
            return self.whole, self.cuts | {0: rows}
        return self.read(first, last), self.cuts | {0: rows - first}


def row_reader(tensor: TensorProto) -> Reader | None:
    """Reads rows of an external tensor of which nothing is cut; None where something is, or rows cannot be read so.

    For rows that are looked at once this takes half the time of mapping them.
    """
    read, wanted = None if _kept(tensor) else _reader(tensor), _dtype(tensor.data_type)
    return None if read is None else lambda start, stop: read(start, stop).astype(wanted, copy=False)


def _reader(tensor: TensorProto) -> Reader | None:
    """Reads rows of what a tensor's file has; None where they are not one after the other, or the file is mapped, or not held."""
    entries = entries_of(tensor)
    location, (shape, dtype) = entries["location"], _stored(tensor, entries)
    width = prod(shape[1:]) * dtype.itemsize
    if location not in _HELD or _whole(location) is not None or ORDER in entries or not 0 < width <= LONGEST_ROW:
        return None
    file, offset = _HELD[location], int(entries.get("offset", 0))

    def read(start: int, stop: int) -> NDArray[Any]:
        size = (stop - start) * width
        if len(getattr(_READ, "bytes", b"")) < size:
            _READ.bytes = np.empty(size, np.uint8)
        rows: NDArray[Any] = _READ.bytes[:size]
        done = 0
        while done < size:
            more = os.preadv(file.fileno(), [rows[done:].data], offset + start * width + done)
            if not more:
                raise InvalidModelError(f"the file of {tensor.name!r} became shorter while it was read")
            done += more
        return rows.view(dtype).reshape(stop - start, *shape[1:])

    return read


def cut(tensor: TensorProto, cuts: Mapping[int, Indices]) -> TensorProto:
    """An external tensor of which only some indices of some axes are kept; no data is touched."""
    dims, earlier = list(tensor.dims), _kept(tensor)
    for axis, indices in cuts.items():
        dims[axis] = len(indices)
    total = {axis: earlier[axis][indices] if axis in earlier else indices for axis, indices in cuts.items()}
    return _changed(tensor, dims, entries_of(tensor) | {f"{KEPT}{axis}": _hex(kept) for axis, kept in total.items()})


def turned(tensor: TensorProto, order: Sequence[int]) -> TensorProto:
    """An external tensor with its axes in another order, as Transpose gives it; no data is touched."""
    entries, kept = entries_of(tensor), _kept(tensor)
    axes = _sizes(entries[ORDER]) if ORDER in entries else range(len(order))
    moved = {f"{KEPT}{place}": _hex(kept[axis]) for place, axis in enumerate(order) if axis in kept}
    rest = {key: value for key, value in entries.items() if not key.startswith(KEPT)}
    return _changed(tensor, [tensor.dims[axis] for axis in order], rest | {ORDER: _text(axes[axis] for axis in order)} | moved)


def reshaped(tensor: TensorProto, dims: Sequence[int]) -> TensorProto | None:
    """An external tensor of another shape; no data is touched.  None where its elements are in another order than in the file."""
    entries = entries_of(tensor)
    if list(dims) == list(tensor.dims):
        return _changed(tensor, dims, entries)
    if ORDER in entries or any(key.startswith(KEPT) for key in entries):
        return None
    return _changed(tensor, dims, entries | {SHAPE: _text(dims)})


def cast(tensor: TensorProto, data_type: int) -> TensorProto:
    """An external tensor of another data type, as Cast gives it; no data is touched."""
    result = _changed(tensor, tensor.dims, entries_of(tensor) | {TYPE: str(tensor.data_type), NAME: tensor.name})
    result.data_type = data_type
    return result


def uncast(tensor: TensorProto) -> TensorProto:
    """What `cast` was given, with all that came after: turned and cut as the tensor is."""
    entries = entries_of(tensor)
    result = _changed(tensor, tensor.dims, {key: value for key, value in entries.items() if key not in (TYPE, NAME)})
    result.name, result.data_type = entries[NAME], int(entries[TYPE])
    return result


def type_in_file(tensor: TensorProto) -> int:
    """The data type of what an external tensor names, which need not be its own."""
    return int(entries_of(tensor).get(TYPE, tensor.data_type))


def point_to(tensor: TensorProto, location: str) -> None:
    """Name the file of an external tensor, which was looked at, by its absolute path, and forget what ONNX does not define."""
    _NAMED.add(location)
    set_location(tensor, location)


def set_location(tensor: TensorProto, location: str) -> None:
    """Let an external tensor name a location, in place, and forget entries that ONNX does not define."""
    kept = [entry for entry in tensor.external_data if entry.key in OWN_ENTRIES[1:]]
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.extend(kept)


def is_known(location: str) -> bool:
    """Whether a location stands for what is in memory, or for a file that was looked at."""
    return is_kept(location) or location in _HELD or location in _NAMED


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
    entries = entries_of(tensor)
    location, offset = entries["location"], int(entries.get("offset", 0))
    whole = lent_data(location) if is_lent(location) else _whole(location)
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
    """All that the file has of a tensor, in its data type there, with the axes in the order that is wanted."""
    entries = entries_of(tensor)
    shape, dtype = _stored(tensor, entries)
    array = memory_map(tensor, dtype, shape) if prod(shape) else np.zeros(shape, dtype)
    return array.transpose(_sizes(entries[ORDER])) if ORDER in entries else array


def _stored(tensor: TensorProto, entries: Mapping[str, str]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the data type that a tensor has in its file."""
    return _sizes(entries[SHAPE]) if SHAPE in entries else tuple(tensor.dims), _dtype(type_in_file(tensor))


def _kept(tensor: TensorProto) -> dict[int, Indices]:
    found = sorted(item for item in entries_of(tensor).items() if item[0].startswith(KEPT))
    return {int(key.removeprefix(KEPT)): np.frombuffer(bytes.fromhex(value), np.int64) for key, value in found}


def _changed(tensor: TensorProto, dims: Sequence[int], entries: Mapping[str, str]) -> TensorProto:
    """A copy of other dimensions with these entries, and with the shape that the file has."""
    result = TensorProto()
    result.CopyFrom(tensor)
    del result.external_data[:], result.dims[:]
    for key, value in ({SHAPE: _text(tensor.dims)} | dict(entries)).items():
        result.external_data.add(key=key, value=value)
    result.dims.extend(dims)
    return result


def entries_of(tensor: TensorProto) -> dict[str, str]:
    """What a tensor says of where its data is, ONNX's entries and ours."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _dtype(data_type: int) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _text(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def _hex(indices: Indices) -> str:
    """Many numbers as text: ten times faster than in decimals."""
    return indices.astype(np.int64, copy=False).tobytes().hex()
