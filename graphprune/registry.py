"""The door for passes, importers and exporters: entry points, for the built-ins as for plugins.

A pass is a frozen dataclass whose `name` is what the command line calls it and whose fields are its options.  A *spec* is
`name` or `name{option=value,...}`; printing a pass gives its spec and parsing that gives the pass back.  Start reading
at `make`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from .errors import UsageError
from .limits import paused

_SPEC = re.compile(r"([a-zA-Z0-9_-]+)(?:\{(.*)\})?")

NAMED = ("importance", "selection", "repair", "importers", "exporters", "engines")
"""Kinds that are classes which know the name that they are registered under."""


@cache
def _everything() -> Any:
    """All entry points of all packages: finding them takes milliseconds, whichever group is asked for."""
    return entry_points()


def installed(group: str) -> Iterable[EntryPoint]:
    """The entry points of one group."""
    found: Iterable[EntryPoint] = _everything().select(group=group)
    return found


@cache
def registered(kind: str) -> dict[str, Any]:
    """Everything registered under one kind, by name; loaded on first use only.

    Raises UsageError where two packages register different things under one name.
    """
    found: dict[str, Any] = {}
    for entry in installed(f"graphprune.{kind}"):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            both = f"{described(known)} and {described(entry)}"
            raise UsageError(f"two packages register {kind} {entry.name!r}: {both}; uninstall one of them")
    return found


def described(entry: Any) -> str:
    """`module:attribute of DISTRIBUTION VERSION`, for messages about an entry point."""
    return f"{entry.value} of {entry.dist.name} {entry.dist.version}" if entry.dist else str(entry.value)


def load(kind: str, name: str) -> Any:
    """The object registered as `name`.  Raises UsageError where there is none, or where it cannot be imported."""
    entries = registered(kind)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise UsageError(f"no {kind} is called {name!r}; there are: {known}")
    entry = entries[name]
    try:
        with paused():
            found = entry.load()
    except Exception as error:  # a plugin's module may raise anything
        text = f"{type(error).__name__}: {error}"
        raise UsageError(f"{kind} {name!r} ({described(entry)}) cannot be loaded: {text}; mend or uninstall it") from error
    if kind in NAMED and not (isinstance(found, type) and getattr(found, "name", None) == name):
        raise UsageError(f"{kind} {name!r} ({described(entry)}) must be a class whose `name` is {name!r}; it is {found!r:.80}")
    return found


def name_of(kind: str, spec: str) -> str:
    """The name in a spec.  Raises UsageError on syntax."""
    match = _SPEC.fullmatch(spec.strip())
    if not match:
        raise UsageError(f"{kind} {spec!r} is not of the form name or name{{option=value,...}}")
    return match[1]


def specs_of(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that are not in braces."""
    return [part.strip() for part in re.split(rf"{re.escape(separator)}(?![^{{}}]*\}})", text)]


def make(kind: str, spec: str) -> Any:
    """The pass that a spec describes.  Raises UsageError on syntax, unknown names, options and values."""
    cls = load(kind, name_of(kind, spec))
    inner = spec.strip().partition("{")[2].removesuffix("}")
    options = {}
    for part in filter(None, (part.strip() for part in inner.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{kind} {spec!r}: option {part!r} is not of the form option=value")
        options[key.strip()] = value.strip()
    return _construct(kind, cls, options)


def _construct(kind: str, cls: Any, options: dict[str, str]) -> Any:
    if not options:
        return cls()
    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for key, text in options.items():
        if key not in names:
            known = ", ".join(names) or "none"
            raise UsageError(f"{kind} {cls.name!r} has no option {key!r}; it has: {known}")
        try:
            values[key] = TypeAdapter(hints[key], config={"allow_inf_nan": False}).validate_python(_literal(text))
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UsageError(f"{kind} {cls.name!r}: option {key}={text!r}: {problem}") from error
    return cls(**values)


def _literal(text: str) -> object:
    """A number, truth value or null as JSON writes it; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def spec_of(instance: Any) -> str:
    """The spec of a pass: its name and those options that differ from the defaults."""
    changed = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if value != field.default:
            changed.append(f"{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return f"{instance.name}{{{','.join(changed)}}}" if changed else str(instance.name)


def describe(kind: str, name: str) -> tuple[str, str]:
    """The spec of a registered pass with all options, and the first line of its docstring."""
    cls = load(kind, name)
    if not dataclasses.is_dataclass(cls):
        return name, ((cls.__doc__ or "").strip().splitlines() or [""])[0]
    options = ",".join(f"{field.name}={field.default}" for field in dataclasses.fields(cls))
    return (f"{name}{{{options}}}" if options else name), ((cls.__doc__ or "").strip().splitlines() or [""])[0]
