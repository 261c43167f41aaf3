"""Which files a model consists of, without reading its weights.  Start reading at `files_of`."""

from __future__ import annotations

import mmap
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from .model_file import LARGE, all_tensors, tensors_of
from .wire import MalformedError, outline

_ENTRY = b"location"
"""What every tensor with data in another file has in its entries (docs/ExternalData.md of the onnx package)."""


def files_of(path: Path) -> list[Path]:
    """A file and those beside it that an ONNX model in it names for its weights.  Raises OSError where it cannot be read."""
    if path.suffix != ".onnx" or not path.stat().st_size:
        return [path]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        text = _without_weights(view)
    if _ENTRY not in text:
        return [path]
    model = ModelProto()
    try:
        model.ParseFromString(text)
    except DecodeError:
        return [path]  # who reads it will say so
    functions = (each for function in model.functions for each in tensors_of(function.node))
    tensors = [*all_tensors(model.graph), *functions]
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    folder = path.parent.resolve()
    inside = [each for each in ((folder / name).resolve() for name in sorted(names)) if each.is_relative_to(folder)]
    return [path, *(each for each in inside if each.is_file())]


def _without_weights(data: memoryview) -> bytes:
    """A serialised model but for the raw data of its large initializers."""
    try:
        return outline(data, LARGE)[0]
    except MalformedError:
        return bytes(data)
