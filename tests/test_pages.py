"""Every command and every line of Python on the pages of the documentation works, and gives what is shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import documents
import pytest

WARNS = pytest.mark.filterwarnings("ignore")  # of other libraries, on pages that need them
DOCS = documents.ROOT / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
OTHERS = sorted([*DOCS.glob("*.md"), *(DOCS / "how-to").glob("*.md")])


def _parameters(pages: list[Path], otherwise: str | None = None) -> list[object]:
    """A page each, with the marker that it asks for."""
    found = [(page, documents.needs(page) or otherwise) for page in pages]
    return [pytest.param(page, id=page.stem, marks=[getattr(pytest.mark, mark), WARNS] if mark else []) for page, mark in found]


@pytest.mark.parametrize("page", [*_parameters(TUTORIALS), *_parameters(OTHERS, "site")])
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    documents.run(page)


@pytest.mark.site
def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    """Links, anchors, navigation and references are right, and no page wants anything from the network."""
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(mkdocs, cwd=documents.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 50
    loaded = re.compile(r"<(?:script|img|iframe)[^>]+src=.?https?:|<link[^>]+rel=.?(?:stylesheet|preconnect)[^>]*https?:")
    assert not [page for page in pages if loaded.search(page.read_text(encoding="utf-8"))]
    assert "Shrink a module in place as a plan has it" in (tmp_path / "reference" / "graphprune.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("expected", "output", "complaint"),
    [
        ("max error 4.8e-07", "max error 5.9e-07", None),
        ("accuracy 91.00% of 12,000", "accuracy 90.90% of 12,000", None),
        ("accuracy 91.00%", "accuracy 71.00%", "expected: accuracy 91.00%"),
        ("latency 0.5 ms", "latency 13 ms", None),
        ("path 91.0% 8.7 s", "path 91.1% 2.5 s", None),
        ("path 91.0% 8.7 s", "path 19.1% 2.5 s", "expected: path"),
        ("a\n...\nd", "a\nb\nc\nd", None),
        ("a\n...", "a\nb\nc", None),
        ("a\n...\nd", "a\nb", "not in the output"),
        ("a", "a\nb", "more output"),
        ("a\nb", "a", "not in the output"),
        ("│ 5 groups │", "│ 5   groups  │", None),
    ],
)
def test_outputs_are_compared(expected: str, output: str, complaint: str | None) -> None:
    found = documents._mismatch(expected, output)
    assert found is None if complaint is None else complaint in str(found)


def test_a_wrong_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that fail, and outputs that are others."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```sh\nfalse\n```\n")
    with pytest.raises(AssertionError, match="false"):
        documents.run(page)
    for name in ("docs", "examples", "benchmarks"):
        (tmp_path / name).unlink()
    page.write_text("<!-- not run: why -->\n```sh\nfalse\n```\n\n```python\nprint(3)\n```\n\n```text\n4\n```\n")
    with pytest.raises(Exception, match="expected: 4"):
        documents.run(page)
