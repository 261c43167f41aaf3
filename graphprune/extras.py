"""Optional dependencies: what each extra brings, and the one message for what is missing.  Start reading at `need`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import MissingExtraError

MODULES = {"torch": "torch", "solver": "scipy", "plots": "matplotlib"}
"""The module that tells whether an extra of the passes is installed."""


def need(extra: str) -> Any:
    """The module of an extra.  Raises MissingExtraError where it cannot be imported."""
    try:
        return import_module(MODULES[extra])
    except ImportError as error:
        message = f"{MODULES[extra]} is needed and cannot be imported ({error}): pip install 'graphprune[{extra}]'"
        raise MissingExtraError(message) from error
