"""Code of users that ends the program, and what tables say of two targets of one kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import plain

import graphprune
from graphprune.errors import UsageError
from graphprune.evaluation import evaluator
from graphprune.pipeline import load
from graphprune.sources import imported, read_source
from graphprune.tables import headline
from graphprune.terminal import without_passwords


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise RuntimeError('boom')", "def f(:"])
def test_a_module_that_cannot_be_imported(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ending{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"importing '{name}' fails: (SystemExit|RuntimeError|SyntaxError)"):
        imported(f"{name}:f")


def test_functions_that_end_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ending_functions.py").write_text("import sys\ndef make(): sys.exit(0)\ndef score(model): sys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="ending_functions:make fails: SystemExit: 0"):
        read_source("ending_functions:make")
    score = evaluator("ending_functions:score", load(plain()))
    with pytest.raises(UsageError, match="ending_functions:score failed: SystemExit: 0"):
        score(plain())


def test_the_target_that_binds_is_shown() -> None:
    for targets in (["macs=0.5", "macs=0.9"], ["macs=0.9", "macs=0.5"]):
        result = graphprune.prune(plain(), targets=targets, align=1)
        limit = next(figure.limit for figure in headline(result, (1, 1)) if figure.title == "MACs")
        assert limit == pytest.approx(0.5)
    assert np.isfinite(limit)


def test_passwords_with_an_at_sign() -> None:
    assert without_passwords("see http://u:p@ss@localhost:1/a@b") == "see http://localhost:1/a@b"
