"""Golden files: what people and scripts read, compared as a whole.

    GRAPHPRUNE_GOLDEN=write pytest tests/test_golden.py      writes them anew; look at the difference before you commit it

Start reading at `compare`.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
VARIABLE = "GRAPHPRUNE_GOLDEN"


def compare(name: str, text: str) -> None:
    """Assert that a text equals the golden file of that name; write it where the environment says so."""
    path = FOLDER / name
    if os.environ.get(VARIABLE) == "write":
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path} is missing; {VARIABLE}=write makes it"
    expected = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
    assert text == expected, "\n".join([f"{VARIABLE}=write accepts this:", *difference])
