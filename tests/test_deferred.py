"""Modules that are read when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from graphprune.deferred import deferred

CODE = """
import sys
from graphprune.deferred import deferred
module = deferred("annotated_types")
print("typing_extensions" in sys.modules, sys.modules["annotated_types"] is module)
from annotated_types import Ge
print(module.Ge is Ge, Ge(3).ge, deferred("annotated_types") is module)
"""


def test_a_module_is_read_with_its_first_attribute_and_is_the_one_that_others_import() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False True", "True 3 True"]


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        deferred("no_such_module")
