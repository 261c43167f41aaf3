"""What the documentation site needs beside the pages in docs/: the files outside of it that they link to.

mkdocs knows one folder of pages.  What links out of it lead to (README.md, examples, a source file) gets a page under
`repository/`: a Markdown file as it is, anything else as a block of code.  So the site is complete by itself, without a network.
Start reading at `on_files`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "repository"
IN_NAVIGATION = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")

# code or a link, whichever comes first: what looks like a link in code is none, and the text of a link may have code
_CODE_OR_LINK = re.compile(
    r"^(?P<fence>```+).*?^(?P=fence)\s*$|^(?: {4}[^\n]*\n)+|`[^`\n]*`|"
    r"(?P<text>!?\[[^\]]*\]\()(?P<link>[^)\s#]*)(?P<rest>(?:#[^)\s]*)?\))",
    re.MULTILINE | re.DOTALL,
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write the decisions into the navigation, where `Decisions: decisions/` stands."""
    decisions = sorted(f"decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("*.md"))
    for section in config.nav or []:
        for pages in section.values():
            for entry in pages:
                if isinstance(entry, dict) and entry.get("Decisions") == "decisions/":
                    entry["Decisions"] = decisions
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside of docs/ that a page links to, directly or through other such files."""
    seen = {file.src_uri for file in files}
    waiting = [_in_repository(file.src_uri) for file in files.documentation_pages()]
    waiting += [place for place in IN_NAVIGATION if _add(place, files, seen, config)]
    while waiting:
        place = waiting.pop()
        if place.endswith(".md"):
            waiting += [target for target in _targets(place) if _add(target, files, seen, config)]
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    place = page.meta.get("place") or _in_repository(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(found: re.Match[str]) -> str:
        target = _resolved(place, found["link"])
        return f"{found['text']}{posixpath.relpath(_on_site(target), here or '.')}{found['rest']}" if target else found[0]

    return _CODE_OR_LINK.sub(rewritten, markdown)


def _add(place: str, files: Files, seen: set[str], config: MkDocsConfig) -> bool:
    """Whether a file outside of docs/ had no page yet; then it has one afterwards.  What is not there mkdocs reports."""
    uri = _on_site(place)
    if uri in seen or place.startswith("docs/") or not (ROOT / place).is_file():
        return False
    seen.add(uri)
    text = (ROOT / place).read_text(encoding="utf-8")
    if not place.endswith(".md"):
        language = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}.get(Path(place).suffix, "")
        text = f"# {posixpath.basename(place)}\n\n`{place}`\n\n````{language}\n{text}\n````\n"
    files.append(File.generated(config, uri, content=f"---\nplace: {place}\n---\n{text}"))
    return True


def _targets(place: str) -> list[str]:
    found = _CODE_OR_LINK.finditer((ROOT / place).read_text(encoding="utf-8"))
    return [target for each in found if (target := _resolved(place, each["link"]))]


def _resolved(place: str, link: str | None) -> str | None:
    """The file of the repository that a link of another one means; None for the network and for the page itself."""
    if not link or re.match(r"[a-z]+:", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    return f"{target}/README.md" if (ROOT / target).is_dir() else target


def _in_repository(uri: str) -> str:
    return f"docs/{uri}"


def _on_site(place: str) -> str:
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    return f"{OUTSIDE}/{place}" if place.endswith(".md") else f"{OUTSIDE}/{place}.md"
