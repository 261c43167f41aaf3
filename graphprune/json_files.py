"""JSON files that others may have written, read as dataclasses of ours or refused with the place.  Start reading at `parse`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from .archives import check_regular
from .errors import UsageError
from .limits import RAISE, factor

STRICT = {"extra": "forbid", "strict": True}
"""How pydantic reads these classes: no unknown keys, no conversions."""

MOST_BYTES = 2**27

Document = TypeVar("Document")


def parse(kind: type[Document], text: str, source: str, what: str) -> Document:
    """Read JSON as a dataclass.  Raises UsageError where it is not JSON, not of this schema, or malformed, naming the place."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise UsageError(f"{source}: not a valid {what}: {where}: {first['msg']}") from error


def read_text(path: Path, what: str) -> str:
    """The text of a file.  Raises UsageError where it cannot be read, or is larger than `MOST_BYTES`."""
    check_regular(path, UsageError)
    try:
        if path.stat().st_size > MOST_BYTES * factor():
            raise UsageError(f"{path}: larger than {MOST_BYTES >> 20} MiB, which is the limit for a {what} ({RAISE})")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the {what}: {error}") from error
