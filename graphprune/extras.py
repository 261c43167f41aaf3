"""Optional dependencies: what each extra brings, and the one message for what is missing.  Start reading at `need`."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from .errors import MissingExtraError

MODULES = {
    "torch": "torch",
    "solver": "scipy",
    "plots": "matplotlib",
    "tvm": "tvm",
    "openvino": "openvino",
    "mlflow": "mlflow",
}
"""The module that tells whether an extra is installed."""

ENVIRONMENT = {"torch": {"OMP_WAIT_POLICY": "PASSIVE"}}
"""What an extra finds in the environment unless it is set: threads that wait in a loop take the time of those that work."""


def need(extra: str) -> ModuleType:
    """The module of an extra.  Raises MissingExtraError where it cannot be imported."""
    for name, value in ENVIRONMENT.get(extra, {}).items():
        os.environ.setdefault(name, value)
    return require(MODULES[extra], extra)


def require(module: str, extra: str) -> ModuleType:
    """Import what an extra brings.  Raises MissingExtraError that names it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"this needs {module!r} ({error}): pip install 'graphprune[{extra}]'") from error
