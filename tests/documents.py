"""Runs a page of the documentation as a reader would: commands and Python from top to bottom, in one folder.

- Blocks of `sh` are run by bash, blocks of `python` share one namespace.  A command that fails fails the test.
- A block of `text` right behind one of them is its output.  Words have to be equal, numbers nearly: what processors round
  differently is no mistake.  Where a line has a time, only its percentages are compared; lines about latency may have any number.
- What a block of `console` shows is not compared: measurements, and results of training.
- `<!-- file: PATH -->` before a block: it quotes a file (docs/check_docs.py compares them), and is not run.
- `<!-- not run: REASON -->` before a block: it is not run.
- `<!-- invisible-code-block: sh ... -->`: what the tests do where a reader does something by hand.
- `<!-- needs: NAME -->` anywhere: the page belongs to the tests of that marker.

Start reading at `run`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600
"""What one block may take; far more than any should."""

_QUIET = {"COLUMNS": "120", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
_COMMENT = re.compile(r"<!-- *(file|not run): *[^>]*--> *\n+\Z")
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*)(?:e[-+]?\d+)?")
_TIME = re.compile(r"latency|faster|slower")
_SECONDS = re.compile(r"\d m?s\b")
_HASH = re.compile(r"\b[0-9a-f]{32,64}\b")
_ANY_LINES = "..."


def needs(page: Path) -> str | None:
    """The marker that a page asks for."""
    found = re.search(r"^<!-- needs: (\w+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


def run(page: Path) -> None:
    """Run all blocks of a page in the current folder, which gets links to what a reader has at the root of the repository."""
    for name in ("docs", "examples", "benchmarks"):
        Path(name).symlink_to(ROOT / name)
    parsers = [CodeBlockParser(language, evaluator) for language, evaluator in _EVALUATORS.items()]
    for example in Sybil(parsers).parse(page).examples():
        example.evaluate()


def _shell(example: Example) -> None:
    if _is_left_out(example):
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.getcwd(), **_QUIET}
    command = ["bash", "-euo", "pipefail", "-c", example.parsed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{example.parsed}\n{done.stdout}{done.stderr}"
    _remember(example, done.stdout)


def _python(example: Example) -> None:
    if _is_left_out(example):
        return
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        PythonEvaluator()(example)
    _remember(example, output.getvalue())


def _text(example: Example) -> str | None:
    """What is wrong with an output; None where it is right, or where the block is no output."""
    end, output = example.namespace.get("_output", (-1, ""))
    if example.document.text[end : example.start].strip() or end < 0:
        return None
    return _mismatch(example.parsed, output)


def _is_left_out(example: Example) -> bool:
    return bool(_COMMENT.search(example.document.text[: example.start]))


def _remember(example: Example, output: str) -> None:
    example.namespace["_output"] = (example.end, output)


_EVALUATORS = {"sh": _shell, "bash": _shell, "python": _python, "text": _text}


def _mismatch(expected: str, output: str) -> str | None:
    """The first line that differs; a line `...` stands for any number of lines."""
    wanted, found = expected.rstrip().splitlines(), iter(output.rstrip().splitlines())
    skipping = False
    for line in wanted:
        if line.strip() == _ANY_LINES:
            skipping = True
            continue
        for actual in found:
            if _alike(line, actual):
                break
            if not skipping:
                return f"expected: {line}\nfound:    {actual}\n\nall of it:\n{output}"
        else:
            return f"expected: {line}\nbut that is not in the output:\n{output}"
        skipping = False
    if not skipping and (rest := next(found, None)) is not None:
        return f"there is more output than expected, from: {rest}\n\nall of it:\n{output}"
    return None


def _alike(expected: str, actual: str) -> bool:
    if _words(expected) != _words(actual):
        return False
    if _TIME.search(expected):
        return True
    one, other = (_HASH.sub("", line) for line in (expected, actual))
    if _SECONDS.search(expected):  # then shares can still be compared
        one, other = (" ".join(re.findall(r"[\d.]+(?=%)", line)) for line in (one, other))
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(_near(float(wanted.replace(",", "")), float(found.replace(",", ""))) for wanted, found in pairs)


def _words(line: str) -> list[str]:
    """A line without its numbers and hashes, and without spaces and borders, which numbers of other widths move."""
    return re.sub(r"[━┏┓┡┩┳╇└┘┴─│┃]", " ", _NUMBER.sub("0", _HASH.sub("HASH", line))).split()


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= max(0.02 * abs(one), 1e-4)
