"""What an importer is, and what several of them need.  Start reading at `Importer.read`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto

from graphprune.errors import InvalidModelError
from graphprune.model_file import fits_message, load_weights, read_model
from graphprune.shape_inference import InputShapes


class Importer(ABC):
    """Reads a model of one framework; `name` is what `--format` calls it."""

    name: ClassVar[str]

    @abstractmethod
    def accepts(self, source: object) -> bool:
        """Whether the source (a path, or an object) looks like one of this framework's; imports no framework."""

    @abstractmethod
    def read(self, source: Any, shapes: InputShapes) -> ModelProto:
        """The model as ONNX, not yet normalised.  Raises InvalidModelError, UsageError or MissingExtraError.

        `shapes` are shapes of inputs that the user gives, for frameworks that trace a model.
        """


def read_written(path: Path) -> ModelProto:
    """Read what a converter wrote to a folder that will be gone: no weight stays in the file.

    Raises InvalidModelError where the weights are 2 GB or more.
    """
    model = read_model(path)
    if not fits_message(model):
        raise InvalidModelError("models of 2 GB and more are not converted here: export ONNX, and prune that file")
    return load_weights(model)


def is_from(source: object, package: str) -> bool:
    """Whether an object's class, or one that it derives from, is defined in a package."""
    return any(cls.__module__.split(".")[0] == package for cls in type(source).__mro__)


def has_suffix(source: object, *suffixes: str) -> bool:
    """Whether the source is a path with one of these suffixes."""
    return isinstance(source, str | Path) and Path(source).suffix in suffixes
