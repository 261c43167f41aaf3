"""What an exporter is.  Start reading at `Exporter.write`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from onnx import ModelProto


class Exporter(ABC):
    """Writes a model for one target; `name` is what the command line calls it."""

    name: ClassVar[str]

    @abstractmethod
    def write(self, model: ModelProto, path: Path) -> None:
        """Write the artefact, whole or not at all.  Raises UsageError where the folder cannot be written."""
