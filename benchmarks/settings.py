"""What a run of the benchmarks is asked for.  Start reading at `Settings`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from networks import Files
from results import Row

Size = Literal["quick", "default", "full"]
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How much is measured, where files are kept, and trained models and data beside the shipped ones."""

    size: Size
    cache: Path
    data: Path | None = None

    def pick(self, choices: Mapping[Size, T]) -> T:
        """What this size of run has."""
        return choices[self.size]

    def exported(self, networks: Mapping[Size, list[str]], rows: list[Row], style: str = "dynamo") -> Iterator[tuple[str, Files]]:
        """The networks of this size of run, each announced; where one cannot be exported there is a row that says so instead."""
        names = self.pick(networks)
        for name in names:
            announce(names, name)
            files = self.files(name, style)
            if files.error:
                rows.append({"network": name, "tool": "export", "error": files.error})
            else:
                yield name, files

    def files(self, name: str, style: str = "dynamo") -> Files:
        """The files of a network."""
        files = Files.of(name, self.cache, style)
        if files.error:
            print(f"    {name}: {files.error}", file=sys.stderr)
        return files

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for pruned models, on the disk of the cache."""
        self.cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.cache, prefix="scratch-")


def announce(names: Sequence[str], name: str) -> None:
    """A line on standard error, so that one sees where a long run is."""
    print(f"  {names.index(name) + 1}/{len(names)} {name}", file=sys.stderr, flush=True)
