"""What every test shares: Hypothesis profiles, which tests run by default, the command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
COMMON = {"deadline": None, "suppress_health_check": SLOW}
settings.register_profile("default", max_examples=300, derandomize=True, **COMMON)
settings.register_profile("explore", max_examples=500, **COMMON)
settings.register_profile("nightly", max_examples=5000, **COMMON)

FRAMEWORKS = ("torch", "keras", "jax", "paddle", "sklearn", "tvm", "openvino", "mlflow", "lightning")
DESELECTED = ("nightly", "shared", "ray", "browser", "site", *FRAMEWORKS)
"""Markers of tests that run only where they are asked for: `pytest -m nightly`."""


def pytest_configure(config: pytest.Config) -> None:
    """`pytest -m nightly` runs as many examples as its name says; HYPOTHESIS_PROFILE overrides."""
    profile = "nightly" if "nightly" in config.getoption("-m") else "default"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests start would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave marked tests out unless `-m` says something about them."""
    asked = config.getoption("-m")
    out = [item for item in items if any(mark not in asked and item.get_closest_marker(mark) for mark in DESELECTED)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture
def graphprune_cli() -> Callable[..., Result]:
    """The command line, in this process: `graphprune_cli("prune", model, "-o", out)`."""
    from graphprune.cli import main

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models and functions that score them; the current folder."""
    from batches import models_and_scores

    models_and_scores(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "scores_of_jobs", raising=False)
    return tmp_path
