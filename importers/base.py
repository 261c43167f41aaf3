"""What an importer is.  Start reading at `Importer.read`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from onnx import ModelProto


class Importer(ABC):
    """Reads a model of one framework; `name` is what `--format` calls it."""

    name: ClassVar[str]

    @abstractmethod
    def accepts(self, source: str) -> bool:
        """Whether the source looks like one of this framework's."""

    @abstractmethod
    def read(self, source: str) -> ModelProto:
        """The model as ONNX, not yet normalised.  Raises InvalidModelError."""
