"""Checks the documentation without a network: links and anchors lead somewhere, and quoted files are quoted as they are.

A code block that follows the line `<!-- file: PATH -->` must be the text of that file (PATH from the root of the repository).
Start reading at `problems`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^(```+).*?^\1\s*$|`[^`\n]*`|^(?: {4}[^\n]*\n)+", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_QUOTED = re.compile(r"<!-- file: (\S+) -->\s*\n```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def problems() -> Iterator[str]:
    """What is wrong, one line each."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT)
        for link in _LINK.findall(_CODE.sub("", text)):
            problem = _broken(page, link)
            if problem:
                yield f"{name}: link {link}: {problem}"
        for quoted, body in _QUOTED.findall(text):
            source = ROOT / quoted
            if not source.is_file():
                yield f"{name}: quotes {quoted}, which is not there"
            elif source.read_text(encoding="utf-8") != body:
                yield f"{name}: quotes {quoted}, but the text differs from that file"


def pages() -> list[Path]:
    """Every page of the documentation, those at the top of the repository and of the examples included."""
    folders = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(folders)


def _broken(page: Path, link: str) -> str | None:
    """Why a link leads nowhere; None where it leads somewhere, or to the network."""
    if re.match(r"[a-z]+:", link):
        return None
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return "there is no such file"
    if not target.is_relative_to(ROOT):
        return "leads out of the repository"
    if anchor and anchor not in _anchors(target):
        return "there is no such heading"
    return None


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^(```+).*?^\1\s*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}


def main() -> None:
    """Print the problems; exit code 1 where there are any."""
    found = list(problems())
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
