"""Protobuf's wire format, as far as it takes to leave large weights in the file of a model and to write them without a copy.

    ModelProto { 7: GraphProto { 5: TensorProto { 9: raw_data } ... } }

`outline` takes the raw data of large initializers out of a serialised model and says where in the file it is; `assembled` puts
data in.  What is there beside that data is copied as it is, so the order of fields and fields that nobody knows stay.  Compare
https://protobuf.dev/programming-guides/encoding.  Start reading at `outline`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Field numbers of onnx.proto."""

_FIXED = {1: 8, 5: 4}
"""Bytes of the values of wire types that have no length."""


class MalformedError(ValueError):
    """Not the wire format, or an unusual form of it that only a full parser should read."""


@dataclass(frozen=True)
class Place:
    """Where the raw data of initializer `index` is: for `outline` in the file, for `assembled` what is to come there."""

    index: int
    offset: int
    length: int


Part = bytes | memoryview | Place
Replacement = Callable[[Place], list[Part] | None]
"""From the place of some raw data to what the whole field becomes; None where it stays."""


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    body: int
    end: int


def outline(data: memoryview, least: int) -> tuple[bytes, list[Place]]:
    """A serialised model without the raw data of initializers that have at least so many bytes of it, and where that is.

    Raises MalformedError where a full parser should have a look.
    """
    places: list[Place] = []

    def left_out(place: Place) -> list[Part] | None:
        if place.length < least:
            return None
        if places and places[-1].index == place.index:
            raise MalformedError("an initializer with two fields of raw data")
        places.append(place)
        return []

    parts = _model(data, left_out)
    return b"".join(part for part in parts if not isinstance(part, Place)), places


def assembled(data: bytes, lengths: dict[int, int]) -> Iterator[bytes | memoryview | int]:
    """A serialised model with raw data of other lengths in some initializers: bytes, or the initializer's index where data goes.

    Those initializers, the keys of `lengths`, must have one field of raw data already, whatever is in it.
    """

    def put_in(place: Place) -> list[Part] | None:
        if place.index not in lengths:
            return None
        length = lengths[place.index]
        return [_tag(RAW_DATA) + _varint(length), Place(place.index, 0, length)]

    for part in _model(memoryview(data), put_in):
        yield part.index if isinstance(part, Place) else part


def _model(data: memoryview, replace: Replacement) -> list[Part]:
    fields = list(_fields(data, 0, len(data)))
    if sum(field.number == GRAPH for field in fields) > 1:
        raise MalformedError("a model with two graphs")
    parts: list[Part] = []
    for field in fields:
        inner = _graph(data, field, replace) if (field.number, field.kind) == (GRAPH, 2) else None
        parts += [data[field.start : field.end]] if inner is None else _nested(GRAPH, inner)
    return parts


def _graph(data: memoryview, graph: _Field, replace: Replacement) -> list[Part]:
    parts: list[Part] = []
    index = 0
    for field in _fields(data, graph.body, graph.end):
        inner = None
        if (field.number, field.kind) == (INITIALIZER, 2):
            inner = _tensor(data, field, index, replace)
            index += 1
        parts += [data[field.start : field.end]] if inner is None else _nested(INITIALIZER, inner)
    return parts


def _tensor(data: memoryview, tensor: _Field, index: int, replace: Replacement) -> list[Part] | None:
    """The fields of a tensor; None where none of them is replaced."""
    parts: list[Part] = []
    changed = False
    for field in _fields(data, tensor.body, tensor.end):
        raw = (field.number, field.kind) == (RAW_DATA, 2)
        new = replace(Place(index, field.body, field.end - field.body)) if raw else None
        changed |= new is not None
        parts += [data[field.start : field.end]] if new is None else new
    return parts if changed else None


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields between two positions."""
    while start < end:
        tag, body = _read_varint(data, start, end)
        kind = tag & 7
        if kind == 0:
            after = _read_varint(data, body, end)[1]
        elif kind == 2:
            length, body = _read_varint(data, body, end)
            after = body + length
        elif kind in _FIXED:
            after = body + _FIXED[kind]
        else:
            raise MalformedError("a group")
        if after > end:
            raise MalformedError("a field that is longer than what holds it")
        yield _Field(tag >> 3, kind, start, body, after)
        start = after


def _nested(number: int, parts: list[Part]) -> list[Part]:
    """A field with a message in it."""
    length = sum(part.length if isinstance(part, Place) else len(part) for part in parts)
    return [_tag(number) + _varint(length), *parts]


def _tag(number: int) -> bytes:
    return _varint(number << 3 | 2)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _read_varint(data: memoryview, start: int, end: int) -> tuple[int, int]:
    """A number and the position behind it."""
    value = 0
    for k in range(10):
        if start + k >= end:
            break
        byte = data[start + k]
        value |= (byte & 127) << 7 * k
        if byte < 128:
            return value, start + k + 1
    raise MalformedError("a number without an end")
