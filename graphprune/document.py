"""Files that people write, in YAML or TOML, with the line of every key, so that an error can name it.

Files are untrusted: no tags that build objects, a limit on size, nesting and aliases.  Start reading at `read_document`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .archives import check_regular
from .errors import UsageError

MOST_BYTES = {"YAML": 2**18, "TOML": 2**16}
"""The readers take seconds for files of this size."""

MOST_VALUES = 100_000
"""Values in one file, those that aliases repeat counted each time."""

Place = tuple[str | int, ...]
"""Keys and positions that lead from the top level to a value."""


@dataclass(frozen=True)
class Document:
    """What a file says, and on which line (from 1) each value begins."""

    path: Path
    value: Any
    lines: Mapping[Place, int]

    def known(self, place: Place) -> Place:
        """The longest beginning of a place that is in the file."""
        return next((place[:size] for size in range(len(place), 0, -1) if place[:size] in self.lines), ())

    def where(self, place: Place) -> str:
        """`FILE:LINE` of a value, or of what is nearest to it."""
        line = self.lines.get(self.known(place))
        return f"{self.path}:{line}" if line else str(self.path)


def read_document(path: Path) -> Document:
    """Read a file, TOML for the suffix `.toml` and YAML otherwise.

    Raises UsageError with file and line where it cannot be read, is malformed, too large or names a key twice.
    """
    check_regular(path, UsageError)
    language = "TOML" if path.suffix == ".toml" else "YAML"
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES[language] + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot read the file: {getattr(error, 'strerror', error)}") from error
    if len(data) > MOST_BYTES[language]:
        raise UsageError(f"{path}: larger than {MOST_BYTES[language] >> 10} KiB, which is the limit for {language}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        return _toml(path, text) if language == "TOML" else _yaml(path, text)
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply") from error


# ---- YAML ---------------------------------------------------------------------------------------


def _yaml(path: Path, text: str) -> Document:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UsageError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    lines: dict[Place, int] = {}
    value = None if root is None else _value(path, loader, root, (), lines)
    return Document(path, value, lines)


def _value(path: Path, loader: Any, node: Node, place: Place, lines: dict[Place, int]) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if len(lines) > MOST_VALUES:
        raise UsageError(f"{path}: more than {MOST_VALUES} values; aliases repeat what they name")
    if isinstance(node, SequenceNode):
        return [_value(path, loader, item, (*place, number), lines) for number, item in enumerate(node.value)]
    if isinstance(node, MappingNode):
        found = {}
        for key, item in node.value:
            name, line = _key(path, key), key.start_mark.line + 1
            if name in found:
                raise UsageError(f"{path}:{line}: the key {name!r} is there twice")
            lines[(*place, name)] = line
            found[name] = _value(path, loader, item, (*place, name), lines)
        return found
    return _scalar(path, loader, node)


def _key(path: Path, node: Node) -> str:
    line = node.start_mark.line + 1
    if not isinstance(node, ScalarNode):
        raise UsageError(f"{path}:{line}: a key must be a word")
    if node.tag.endswith(":merge"):
        raise UsageError(f"{path}:{line}: merge keys (<<) are not read; write the keys out")
    return str(node.value)


def _scalar(path: Path, loader: Any, node: Node) -> Any:
    if node.tag.endswith((":timestamp", ":value")):
        return node.value
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise UsageError(f"{path}:{node.start_mark.line + 1}: cannot read the value {str(node.value)[:40]!r}") from error


# ---- TOML ---------------------------------------------------------------------------------------

_PART = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")


_ENDLESS = re.compile(r"^[\s\[]*(?:[A-Za-z0-9_-]+\s*\.\s*){100}", re.MULTILINE)
"""A dotted key for which tomllib takes a time that grows with the square."""


def _toml(path: Path, text: str) -> Document:
    if _ENDLESS.search(text):
        raise UsageError(f"{path}: nested too deeply")
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = f":{match[1]}" if match else ""
        raise UsageError(f"{path}{line}: not valid TOML: {error}") from error
    except ValueError as error:  # a date or number that is none
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    lines: dict[Place, int] = {}
    for place, number in _toml_lines(text):
        for size in range(1, len(place) + 1):
            lines.setdefault(place[:size], number)
    return Document(path, value, lines)


def _toml_lines(text: str) -> Iterator[tuple[Place, int]]:
    """The line of every key of valid TOML; keys in tables that stand on one line are those of the table."""
    table: Place = ()
    counts: dict[Place, int] = {}
    quotes = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quotes:
            quotes = "" if line.count(quotes) % 2 else quotes
            continue
        if match := _HEADER.match(line):
            table = _parts(match[2])
            if match[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            yield table, number
        elif match := _ASSIGNMENT.match(line):
            yield (*table, *_parts(match[1])), number
        quotes = next((mark for mark in ('"""', "'''") if line.count(mark) % 2), "")


def _parts(key: str) -> Place:
    return tuple(part if part[0] not in "\"'" else part[1:-1] for part in re.findall(_PART, key))


# ---- writing ------------------------------------------------------------------------------------


def writer(path: Path) -> Callable[[str, Any], str]:
    """What writes a line for a key and its value, in TOML for the suffix `.toml` and in YAML otherwise."""
    separator = " = " if path.suffix == ".toml" else ": "
    return lambda key, value: key + separator + quoted(value)


def quoted(value: Any) -> str:
    """A string, number, truth value or list of such as both YAML and TOML read it."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
