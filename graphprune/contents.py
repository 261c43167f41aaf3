"""What a job's result depends on, as one hash: the contents of its files, its options and graphprune's version.

Start reading at `job_digest`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from functools import lru_cache
from pathlib import Path

from .configuration import PATHS, values_of
from .errors import InvalidModelError
from .model_file import all_tensors
from .provenance import file_digest
from .run import Job
from .sources import is_import_string
from .version import VERSION

_WORD = b"location"
"""What every tensor with external data has in its entry."""


def job_digest(job: Job) -> str:
    """The hash under which a job's result is kept.

    Raises InvalidModelError for a file that cannot be read, UsageError for an unknown recipe.
    """
    values = {key: value for key, value in values_of(job).items() if key not in PATHS}
    named = {"model": job.model, "eval": job.eval, "calibration": job.options.calibration}
    contents = {key: text if text == "random" else content_digest(text) for key, text in named.items() if text}
    text = json.dumps({"graphprune": VERSION, "options": values, "contents": contents}, sort_keys=True, default=list)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def content_digest(text: str) -> str:
    """The hash of a file with its external data, of a folder, or of an import string with its module's file.

    Raises InvalidModelError where it cannot be read.
    """
    path = Path(text)
    if is_import_string(text):
        module = Path(text.partition(":")[0].replace(".", "/") + ".py")
        return f"{text} {_digest(module) if module.is_file() else ''}"
    return _digest(path)


def _digest(path: Path) -> str:
    if not path.is_file() and not path.is_dir():
        raise InvalidModelError(f"{path}: there is no such file or folder")
    try:
        found = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else _with_external(path)
        parts = [f"{os.path.relpath(each, path)} {_file(each, each.stat().st_mtime_ns, each.stat().st_size)}" for each in found]
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


@lru_cache(maxsize=4096)
def _file(path: Path, time: int, size: int) -> str:
    """The hash of a file's bytes; read once as long as its time and size stay."""
    return file_digest(path)


def _with_external(path: Path) -> list[Path]:
    """A file and those that an ONNX model in it names for its weights."""
    if path.suffix != ".onnx" or not _mentions(path, _WORD):
        return [path]
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return [path]  # the job will say so
    names = {entry.value for tensor in all_tensors(model.graph) for entry in tensor.external_data if entry.key == "location"}
    folder = path.parent.resolve()
    inside = [each for each in ((folder / name).resolve() for name in sorted(names)) if each.is_relative_to(folder)]
    return [path, *(each for each in inside if each.is_file())]


def _mentions(path: Path, word: bytes) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(word) >= 0
