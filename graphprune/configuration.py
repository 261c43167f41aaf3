"""Configurations: the options of `prune` in a YAML or TOML file, under the names that they have on the command line.

Keys, types and defaults are those of `graphprune.options.Options` and `graphprune.run.Job`.  Start reading at
`read_configuration`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, create_model

from . import registry
from .document import Document, Place, read_document, writer
from .errors import UsageError
from .options import Options
from .recipes import RECIPES, resolved
from .requirements import parse_requirements
from .run import Job
from .sources import is_import_string
from .targets import parse_target
from .terminal import named_repairs, sizes_of_inputs

STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Destinations:
    """What `prune` writes, and where; in a batch this is not the user's to choose."""

    output: str = ""
    plan: str = ""
    report: str = ""
    json_to: str = ""
    save_config: str = ""
    events: str = ""
    mlflow: str = ""
    """A tracking URI."""
    mlflow_experiment: str = "graphprune"


PATHS = ("model", "output", "plan", "report", "json", "save-config", "events", "eval", "calibration")
"""Keys that name files, relative to the folder of the file they stand in."""

_OTHER_NAMES = {"targets": "target", "ratios": "ratio", "json_to": "json"}
_SHOWN = 10
"""Problems that one error names."""


def key_of(field: str) -> str:
    """What a field of Options, Job or Destinations is called in files: its option's name on the command line."""
    return _OTHER_NAMES.get(field, field.replace("_", "-"))


def read_configuration(path: Path) -> dict[str, Any]:
    """The keys that a configuration sets, with their values; lists are tuples, paths begin at the current folder.

    Raises UsageError that names file, line and key.
    """
    return located(validated(read_document(path), configuration()), path.parent)


def validated(document: Document, model: type[BaseModel]) -> dict[str, Any]:
    """What a document sets of a model's keys.  Raises UsageError that names file, line and key of everything wrong."""
    value = {} if document.value is None else document.value
    if not isinstance(value, dict):
        raise UsageError(f"{document.where(())}: the top level must be keys with values, such as `target: macs=0.5`")
    try:
        return model.model_validate(value).model_dump(by_alias=True, exclude_unset=True)
    except ValidationError as error:
        problems: dict[Place, list[str]] = {}
        for item in error.errors(include_url=False):
            place = document.known(item["loc"])
            if len(problems) >= _SHOWN and place not in problems:
                break
            problems.setdefault(place or item["loc"][:1], []).append(_problem(item, model))
        texts = [_described(document, place, messages) for place, messages in problems.items()]
        raise UsageError("\n".join(texts)) from error


def _described(document: Document, place: Place, messages: list[str]) -> str:
    key = ".".join(str(part) for part in place)
    return f"{document.where(place)}: {key + ': ' if key else ''}{' or '.join(dict.fromkeys(messages))}"


def _problem(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in configuration().model_fields.items()]
        known += [field.alias or name for name, field in model.model_fields.items()]
        near = difflib.get_close_matches(str(item["loc"][-1]), known, 1)
        return "unknown key" + (f"; is {near[0]!r} meant?" if near and near[0] != item["loc"][-1] else " here")
    if item["type"] == "missing":
        return f"the key {item['loc'][-1]!r} is missing"
    text: str = item["msg"].removeprefix("Value error, ")
    return text if item["type"] == "value_error" else f"{text}, not {str(item['input'])[:60]!r}"


# ---- the model ----------------------------------------------------------------------------------


@cache
def configuration() -> type[BaseModel]:
    """The model of a configuration file: one field for each option of `prune`."""
    return model_of("Configuration", "Options of `graphprune prune`.", job_fields() | fields_of(Destinations))


def job_fields() -> dict[str, Any]:
    """The fields of a job, for pydantic's `create_model`."""
    return fields_of(Options) | fields_of(Job, without=("options",))


def fields_of(cls: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass as those of a pydantic model, with lists, checks and the names of the command line."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        if field.name not in without:
            default = None if field.default is MISSING else field.default
            found[field.name] = (checked_type(field.name, hints[field.name]), Field(default, alias=key_of(field.name)))
    return found


def model_of(name: str, text: str, found: Mapping[str, Any]) -> type[BaseModel]:
    """A strict model of a part of a file."""
    model: type[BaseModel] = create_model(name, __config__=STRICT, __doc__=text, **found)
    return model


def checked_type(name: str, hint: Any) -> Any:
    """A field's type as files have it: one string for a list of one, and checked beyond its type."""
    if name == "calibration":
        hint = str | None
    if hint in (tuple[str, ...], tuple[str, ...] | None):
        several = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        hint = Annotated[tuple[str, ...], BeforeValidator(_listed), WithJsonSchema(several)]
    return Annotated[hint, AfterValidator(partial(checked, _CHECKS[name]))] if name in _CHECKS else hint


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def checked(check: Callable[[Any], object], value: Any) -> Any:
    """The value, for pydantic; what `check` refuses by a UsageError is refused by a ValueError."""
    try:
        check(value)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return value


def _each(check: Callable[[str], object], values: tuple[str, ...]) -> None:
    for value in values:
        check(value)


def _regex(text: str) -> None:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{text!r} is not a regular expression: {error}") from error


def _recipe(name: str) -> None:
    if name and name not in RECIPES:
        raise UsageError(f"no recipe is called {name!r}; there are: {', '.join(RECIPES)}")


def _ratio(text: str) -> None:
    if "=" not in text:
        raise UsageError(f"{text!r} is not of the form REGEX=VALUE")
    _regex(text.rpartition("=")[0])


def _align(value: int | str) -> None:
    if value != "auto" and not (str(value).isdigit() and int(value) > 0):
        raise UsageError(f"{value!r}: give 'auto' or a number from 1")


def _text(value: str | None) -> None:
    if value is not None and (not value or "\0" in value):
        raise UsageError("a name of a file is needed")


_CHECKS: dict[str, Callable[[Any], object]] = {
    "targets": partial(_each, parse_target),
    "keep": partial(_each, _regex),
    "ratios": partial(_each, _ratio),
    "recipe": _recipe,
    "importance": lambda spec: registry.make("importance", spec) if spec else None,
    "selection": lambda spec: registry.make("selection", spec) if spec else None,
    "repair": lambda specs: _each(partial(registry.make, "repair"), named_repairs(specs) or ()),
    "align": _align,
    "require": parse_requirements,
    "input_shape": sizes_of_inputs,
    "model": _text,
    "output": _text,
    "plan": _text,
    "report": _text,
    "json_to": _text,
    "save_config": _text,
    "events": _text,
    "mlflow": _text,
    "mlflow_experiment": _text,
    "eval": _text,
    "calibration": _text,
}


# ---- values -------------------------------------------------------------------------------------


def located(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same with paths that begin at `folder`; import strings, `random` and `-` stay."""
    return {key: _located(key, value, folder) for key, value in values.items()}


def _located(key: str, value: Any, folder: Path) -> Any:
    if key not in PATHS or not value or _is_word(key, value):
        return value
    path = folder / value
    return value if is_import_string(value) and not path.exists() else str(path)


def _is_word(key: str, value: str) -> bool:
    return (key, value) in (("calibration", "random"), ("json", "-"))


def job_of(values: Mapping[str, Any]) -> Job:
    """The job that the keys of a configuration describe."""
    options = {field.name: values[key_of(field.name)] for field in fields(Options) if key_of(field.name) in values}
    if "align" in options:
        options["align"] = str(options["align"])  # as the command line has it, so that plans are the same bytes
    if "repair" in options:
        options["repair"] = named_repairs(tuple(options["repair"] or ()))
    rest = {f.name: values[key_of(f.name)] for f in fields(Job) if f.name != "options" and key_of(f.name) in values}
    return Job(options=Options(**options), **rest)


def values_of(job: Job) -> dict[str, Any]:
    """A job as a configuration: every option, those that the recipe chooses included."""
    options = resolved(job.options)
    values = {key_of(field.name): getattr(options, field.name) for field in fields(Options)}
    values |= {key_of(field.name): getattr(job, field.name) for field in fields(Job) if field.name != "options"}
    return values | {"repair": options.repair or ("none",)}


def rendered(values: Mapping[str, Any], path: Path) -> str:
    """A configuration file at `path` that sets these keys (those without a value left out), paths relative to its folder."""
    line = writer(path)
    folder = path.parent.resolve()
    lines = [line(key, relative(key, value, folder)) for key, value in values.items() if value not in (None, "", ())]
    return "# Written by graphprune: every option of a run, defaults included.\n" + "".join(f"{text}\n" for text in lines)


def relative(key: str, value: Any, folder: Path) -> Any:
    """A value as it is written into a file in `folder`."""
    if key not in PATHS or _is_word(key, value) or is_import_string(value):
        return value
    return os.path.relpath(Path(value).resolve(), folder)
