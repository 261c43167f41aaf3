"""What an exporter is, and files that appear whole or not at all.  Start reading at `Exporter.write`."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from graphprune.errors import UsageError


@dataclass(frozen=True)
class Written:
    """What an exporter wrote."""

    files: tuple[Path, ...]
    difference: float | None
    """Largest difference of an output to ONNX Runtime's, relative to scale; None where nothing was there to compare."""


class Exporter(ABC):
    """Writes a model for one target; `name` is what the command line calls it."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    """How its files may end, with the dot; where the user names no format these choose one."""

    def check(self, path: Path) -> object:
        """Refuse, before any work starts, what cannot be written.  Raises UsageError or MissingExtraError."""
        if self.suffixes and path.suffix not in self.suffixes:
            raise UsageError(f"{path}: the format {self.name!r} writes NAME{' or NAME'.join(self.suffixes)}")
        return None

    def files(self, path: Path) -> tuple[Path, ...]:
        """What `write` may write: the file and those beside it."""
        return (path,)

    @abstractmethod
    def write(self, model: ModelProto, path: Path) -> Written:
        """Write the artefact of a normalised model, whole or not at all.

        Raises UsageError where the folder cannot be written, and ProofError where the artefact computes something else.
        """


@contextmanager
def staged(*paths: Path) -> Iterator[list[Path]]:
    """Paths in a hidden folder beside the first of `paths`; what is written there takes its place on success, in this order.

    Raises UsageError where the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{paths[0].name}.", dir=paths[0].parent) as folder:
            temporary = [Path(folder) / path.name for path in paths]
            yield temporary
            for source, path in zip(temporary, paths, strict=True):
                if source.exists():
                    os.replace(source, path)
    except OSError as error:
        raise UsageError(f"{paths[0]}: cannot write there: {error.strerror or error}") from error
