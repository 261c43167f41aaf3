"""Marks of tests that need an extra, whose own code warns."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def with_tvm(test: Callable[..., None]) -> Callable[..., None]:
    """Runs with `pytest -m tvm`."""
    marked: Callable[..., None] = pytest.mark.tvm(pytest.mark.filterwarnings("ignore")(test))
    return marked


def with_mlflow(test: Callable[..., None]) -> Callable[..., None]:
    """Runs with `pytest -m mlflow`."""
    marked: Callable[..., None] = pytest.mark.mlflow(pytest.mark.filterwarnings("ignore")(test))
    return marked


def with_openvino(test: Callable[..., None]) -> Callable[..., None]:
    """Runs with `pytest -m openvino`."""
    marked: Callable[..., None] = pytest.mark.openvino(pytest.mark.filterwarnings("ignore")(test))
    return marked
