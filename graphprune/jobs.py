"""Files of batch jobs: models times a matrix of options, expanded as GitHub Actions expands a matrix.

Start reading at `read_jobs`.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt
from pydantic import AfterValidator, BaseModel, Field

from .configuration import checked, checked_type, configuration, fields_of, job_fields, job_of, located, model_of, validated
from .document import Document, read_document
from .errors import UsageError
from .result_folder import is_result
from .run import Job
from .sources import is_import_string
from .targets import UNITS

MOST_JOBS = 10_000
"""Jobs of one batch; a longer list is most likely a mistake in the matrix."""


@dataclass(frozen=True)
class Limits:
    """What one job may take."""

    time: Annotated[float, Gt(0)] | None = None
    """Seconds."""
    memory: str | None = None
    """Such as `4GB`."""
    retries: Annotated[int, Ge(0)] = 1
    """How often a job is begun again when its process died; errors are never tried again."""

    @property
    def memory_bytes(self) -> int | None:
        """The limit in bytes.  Raises UsageError where it is malformed."""
        return None if self.memory is None else parse_bytes(self.memory)


@dataclass(frozen=True)
class NamedJob:
    """A job and what it is called in tables."""

    name: str
    job: Job


@dataclass(frozen=True)
class Batch:
    """The jobs of a file, in order, and what each may take."""

    jobs: list[NamedJob]
    limits: Limits


def parse_bytes(text: str) -> int:
    """The bytes that a text such as `4GB` or `512MiB` means.  Raises UsageError."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        value = float(number) * UNITS[unit] if unit.endswith("B") else 0
    except (ValueError, KeyError):
        value = 0
    if not 2**20 <= value < 2**60:
        raise UsageError(f"{text!r} is no amount of memory such as 512MB or 4GiB (1 MiB at least)")
    return int(value)


def read_jobs(path: Path) -> Batch:
    """The jobs of a YAML or TOML file; paths are relative to its folder.

    Raises UsageError that names file, line and key, also where a pattern matches no file or there are too many jobs.
    """
    document = read_document(path)
    values = validated(document, batch_file())
    folder = path.parent.resolve()
    common = located(values.get("options", {}), folder)
    matrix = dict(values.get("matrix", {}))
    order = list(document.value["matrix"]) if matrix else []
    exclude, include = ([_entry(entry, folder) for entry in matrix.pop(key, ())] for key in ("exclude", "include"))
    axes = {
        key: [located({key: value}, folder)[key] for value in entries]
        for key, entries in sorted(matrix.items(), key=lambda item: order.index(item[0]))
    }
    models = _models(document, values.get("models", ()), folder)
    if models:
        axes = {"model": models} | axes
    _check_excluded(document, exclude, set(axes))
    if math.prod(len(entries) for entries in axes.values()) > MOST_JOBS:
        counts = " x ".join(f"{len(entries)} {key}" for key, entries in axes.items())
        raise UsageError(f"{document.where(('matrix',))}: {counts} are more than {MOST_JOBS} jobs")
    combinations = _included(_product(axes, exclude, folder), include, set(axes), folder)
    if not combinations:
        raise UsageError(f"{document.where(('models',))}: there is no job: name `models`, or a `model` in `matrix.include`")
    return Batch(_named(document, [common | values for values in combinations], set(axes)), Limits(**values.get("limits", {})))


# ---- the model of the file ----------------------------------------------------------------------


@cache
def batch_file() -> type[BaseModel]:
    """The model of a file of jobs."""
    job = job_fields()
    entry = model_of("Job", "Keys of one job.", job)
    options = model_of("Options", "Options of all jobs.", {name: field for name, field in job.items() if name != "model"})
    lists: dict[str, Any] = {
        name: (Annotated[list[hint], Field(min_length=1)], Field(None, alias=field.alias))  # type: ignore[valid-type]
        for name, (hint, field) in job.items()
        if name != "model"
    }
    lists["include"] = (list[entry], Field(None, description="More jobs, or more keys for those that match."))  # type: ignore[valid-type]
    lists["exclude"] = (list[entry], Field(None, description="Jobs that are left out: those that match."))  # type: ignore[valid-type]
    whole: dict[str, Any] = {
        "models": (
            checked_type("models", tuple[str, ...]),
            Field((), description="Files, patterns such as models/*.onnx, or import strings."),
        ),
        "options": (options, Field(None, description="Keys that all jobs have in common.")),
        "matrix": (
            model_of("Matrix", "One job for each combination.", lists),
            Field(None, description="Lists of values by key."),
        ),
        "limits": (_limits(), Field(None, description="What one job may take: time (seconds), memory (4GB), retries.")),
    }
    return model_of("Batch", "Jobs of `graphprune batch`.", whole)


def _limits() -> type[BaseModel]:
    found = fields_of(Limits)
    found["memory"] = (Annotated[str, AfterValidator(partial(checked, parse_bytes))] | None, found["memory"][1])
    return model_of("Limits", "What one job may take.", found)


# ---- expansion ----------------------------------------------------------------------------------


def _models(document: Document, patterns: tuple[str, ...], folder: Path) -> list[str]:
    """The files that patterns match, in order and once each.  Raises UsageError for a pattern that matches none."""
    found: dict[str, None] = {}
    for number, pattern in enumerate(patterns):
        if is_import_string(pattern) and not (folder / pattern).exists():
            found[pattern] = None
            continue
        if (folder / pattern).exists():
            hits = [pattern]
        else:
            names = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
            hits = [name for name in names if (folder / name).is_file() and not is_result(folder / name)]
        if not hits:
            raise UsageError(f"{document.where(('models', number))}: {pattern!r} matches no file in {folder}")
        found |= dict.fromkeys(os.path.normpath(folder / name) for name in hits)
    return list(found)


def _entry(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    values = located(entry, folder)
    return values | ({"model": os.path.normpath(values["model"])} if "/" in values.get("model", "") else {})


def _check_excluded(document: Document, exclude: list[dict[str, Any]], axes: set[str]) -> None:
    """Raise UsageError for an entry that matches no job, whatever the jobs are."""
    for number, entry in enumerate(exclude):
        for key in sorted(set(entry) - axes):
            where = document.where(("matrix", "exclude", number, key))
            raise UsageError(f"{where}: {key!r} is no key of the matrix ({', '.join(sorted(axes)) or 'which has none'})")


def _product(axes: Mapping[str, list[Any]], exclude: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Every combination of values that no entry of `exclude` matches."""
    if not axes:
        return []
    combinations = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return [each for each in combinations if not any(_matches(entry, each, set(entry), folder) for entry in exclude)]


def _matches(entry: Mapping[str, Any], values: Mapping[str, Any], keys: set[str], folder: Path) -> bool:
    """Whether the values are those of an entry, as far as `keys` go; a model may be a pattern."""
    return all(
        key in values and (values[key] == entry[key] or (key == "model" and _is_like(values[key], entry[key], folder)))
        for key in keys
    )


def _is_like(model: str, pattern: str, folder: Path) -> bool:
    """Whether a pattern of a file in `folder` matches a model; the folder's own name is no pattern, whatever is in it."""
    if is_import_string(model) or fnmatchcase(model, pattern):
        return fnmatchcase(model, pattern)
    return fnmatchcase(os.path.relpath(model, folder), os.path.relpath(pattern, folder))


def _included(
    combinations: list[dict[str, Any]], include: list[dict[str, Any]], axes: set[str], folder: Path
) -> list[dict[str, Any]]:
    """Entries add their keys to the combinations that they match, and are combinations of their own where there is none."""
    extended = [dict(each) for each in combinations]
    alone = []
    for entry in include:
        hits = [number for number, each in enumerate(combinations) if _matches(entry, each, set(entry) & axes, folder)]
        for number in hits:
            extended[number] |= {key: value for key, value in entry.items() if key not in axes}
        if not hits:
            alone.append(dict(entry))
    return extended + alone


def _named(document: Document, found: list[dict[str, Any]], axes: set[str]) -> list[NamedJob]:
    jobs = []
    keys = [field.alias or name for name, field in configuration().model_fields.items()]
    varied = [key for key in keys if key != "model" and len({repr(values.get(key)) for values in found}) > 1]
    for values in found:
        if "model" not in values:
            raise UsageError(f"{document.where(('matrix', 'include'))}: a job of `include` has no `model`, and matches no other")
        label = [_shown(values[key]) for key in varied if key in values]
        try:
            job = job_of(values)
            job.requirements  # noqa: B018 - raises where it cannot be measured
        except UsageError as error:
            raise UsageError(f"{document.where(('options',))}: {error}") from error
        jobs.append(NamedJob(" ".join([Path(job.model).stem, *label]), job))
    return jobs


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else os.path.basename(str(value))
