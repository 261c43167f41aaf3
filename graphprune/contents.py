"""What a job's result depends on, as one hash: the contents of its files, its options and graphprune's version.

Start reading at `job_digest`.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from .companion_files import files_of
from .configuration import PATHS, values_of
from .errors import InvalidModelError
from .provenance import file_digest
from .run import Job
from .sources import is_import_string
from .version import VERSION

PADDLE, PADDLE_WEIGHTS = (".pdmodel", ".json"), ".pdiparams"
"""What a Paddle model may be called, and where it has its weights."""


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
        found = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else _with_weights(path)
        parts = [f"{os.path.relpath(each, path)} {_file(each, each.stat().st_mtime_ns, each.stat().st_size)}" for each in found]
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


@lru_cache(maxsize=4096)
def _file(path: Path, time: int, size: int) -> str:
    """The hash of a file's bytes; read once as long as its time and size stay."""
    return file_digest(path)


def _with_weights(path: Path) -> list[Path]:
    """A file and those that hold its weights."""
    beside = path.with_suffix(PADDLE_WEIGHTS)
    return [*files_of(path), *([beside] if path.suffix in PADDLE and beside.is_file() else ())]
