"""From whatever the user has to an ONNX model: finds the importer that knows a file, a folder or an object.

`package.module:attribute` names an object in Python code, as for the tools of the web world: a model, or a function without
arguments that makes one.  Importing it runs that code.  Start reading at `read_source`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any, TypeGuard

from onnx import ModelProto

from . import registry
from .errors import UsageError
from .limits import paused
from .model_file import read_model
from .shape_inference import InputShapes

_IMPORT_STRING = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")


def read_source(source: object, format_: str | None = None, shapes: InputShapes | None = None) -> ModelProto:
    """The source as ONNX, not yet normalised.

    `source` is a path, an import string or an object of a framework, perhaps with example inputs: (module, inputs).  `shapes` are
    the shapes of inputs for formats that trace a model.  Raises UsageError, InvalidModelError or MissingExtraError.
    """
    if is_onnx_file(source, format_):
        return read_model(Path(source))
    if isinstance(source, str | Path) and is_import_string(source):
        source = _built(str(source))
    with paused():  # frameworks take their time
        model: ModelProto = _importer(source, format_).read(source, shapes or {})
    return model


def is_onnx_file(source: object, format_: str | None = None) -> TypeGuard[str | Path]:
    """Whether a source is a path that is read as ONNX by its name alone."""
    return format_ in (None, "onnx") and isinstance(source, str | Path) and Path(source).suffix == ".onnx"


def _importer(source: object, name: str | None) -> Any:
    if name is not None:
        return registry.load("importers", name)()
    for known in sorted(registry.registered("importers")):
        importer = registry.load("importers", known)()
        if importer.accepts(source):
            return importer
    if isinstance(source, str | Path):
        if not Path(source).is_dir():
            return registry.load("importers", "onnx")()
        raise UsageError(f"{source}: cannot tell which framework this is from; name it with --format")
    raise UsageError(f"cannot import an object of type {type(source).__qualname__}; see `graphprune list importers`")


def is_import_string(text: str | Path) -> bool:
    """Whether a text is of the form `package.module:attribute` and no file."""
    return _IMPORT_STRING.fullmatch(str(text)) is not None and not Path(text).exists()


def imported(text: str) -> Any:
    """The object that an import string names; runs its module.  The current folder is searched first, as by python -m.

    Raises UsageError where there is none.
    """
    module, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with paused():
            found: Any = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{text}: cannot import {module!r}: {error}") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything, and end the program where it is imported
        raise UsageError(f"{text}: importing {module!r} fails: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{text}: {module!r} has no {attribute!r}")
        found = getattr(found, part)
    return found


def _built(text: str) -> object:
    """The object that an import string names; a function is called."""
    found = imported(text)
    is_factory = callable(found) and (isinstance(found, type) or type(found).__module__ == "builtins")
    try:
        with paused():
            return found() if is_factory else found
    except (Exception, SystemExit) as error:  # as above
        raise UsageError(f"{text} fails: {type(error).__name__}: {error}") from error
