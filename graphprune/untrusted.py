"""Checks of a model that has just been parsed, before anything looks at what it says.

Protobuf takes any bytes for a name.  Here text must be UTF-8 without control characters (a terminal would obey them), and
tensors have at most as many axes as numpy can hold.  Start reading at `check_message`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from onnx import TensorProto, TensorShapeProto

from .errors import InvalidModelError

MOST_AXES = 64
"""As many as numpy's arrays can have."""

_PROSE = ("doc_string", "value")
"""Fields that may have several lines."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_PROSE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def check_message(message: Any, path: Path) -> None:
    """Refuse text that is not UTF-8 or has control characters, and shapes with too many axes.  Raises InvalidModelError."""
    if isinstance(message, TensorShapeProto):
        _check_rank(len(message.dim), path)
    if isinstance(message, TensorProto):
        _check_rank(len(message.dims), path)
    for name, repeated, is_text in _fields(message.__class__):
        if not repeated and not message.HasField(name):
            continue
        for value in getattr(message, name) if repeated else [getattr(message, name)]:
            if isinstance(value, bytes):  # what protobuf gives for text that is none
                raise InvalidModelError(f"{path}: a {name} in a {message.DESCRIPTOR.name} is not UTF-8 text")
            if is_text:
                _check_text(value, name, path)
            else:
                check_message(value, path)


@cache
def _fields(kind: type) -> list[tuple[str, bool, bool]]:
    """The fields of a message that hold text or further messages: name, whether repeated, whether text."""
    return [
        (field.name, hasattr(getattr(kind(), field.name), "extend"), field.cpp_type == field.CPPTYPE_STRING)
        for field in kind.DESCRIPTOR.fields  # type: ignore[attr-defined]
        if field.cpp_type == field.CPPTYPE_MESSAGE or field.type == field.TYPE_STRING
    ]


def _check_text(value: str, name: str, path: Path) -> None:
    if (_CONTROL_IN_PROSE if name in _PROSE else _CONTROL).search(value):
        raise InvalidModelError(f"{path}: the {name} {value[:40]!r} has control characters")


def _check_rank(rank: int, path: Path) -> None:
    if rank > MOST_AXES:
        raise InvalidModelError(f"{path}: a tensor has {rank} dimensions; more than {MOST_AXES} cannot be worked with")
