"""Reads a report as a browser would, and refuses what a self-contained page must not have.  Start reading at `Page`."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
FETCHING = {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source", "image", "use", "feimage"}


class Page(HTMLParser):
    """The elements of a page: tags, attributes, text by element; nesting is checked on the way."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind; `class_` is one of its classes."""
        wanted = {name.replace("_", "-").removesuffix("-"): value for name, value in attributes.items()}
        found = [own for name, own in self.elements if name == tag]
        return [
            own
            for own in found
            if all(
                value in own.get(key, "").split() if key == "class" else own.get(key) == value for key, value in wanted.items()
            )
        ]

    def text(self, tag: str) -> list[str]:
        """What stands directly in elements of a kind."""
        return [text for name, text in self.texts if name == tag]

    @property
    def words(self) -> str:
        """All that can be read, on one line."""
        return " ".join(" ".join(text for name, text in self.texts if name not in ("style", "script")).split())


def check(page: Page) -> None:
    """What every report must be: one document that fetches nothing, runs nothing else, and can be read by everybody."""
    tags = Counter(tag for tag, _ in page.elements)
    assert page.html.startswith("<!DOCTYPE html>")
    assert not tags.keys() & FETCHING
    assert tags["script"] == tags["style"] == tags["h1"] == tags["main"] == 1
    for tag, attributes in page.elements:
        assert not [
            name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset", "action", "background")
        ]
        assert attributes.get("href", "#").startswith("#"), f"<{tag}> leads out of the page"
    outside = re.findall(r"(?:https?:)?//[^\s\"'<>]+|url\(|@import", "".join(page.text("style") + page.text("script")))
    assert not outside
    _check_policy(page)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {own["href"][1:] for own in page.all("a")} | {own["aria-labelledby"] for own in page.all("section")}
    assert targets <= set(ids)
    assert all(own["aria-label"] for own in page.all("svg", role="img"))
    assert tags["caption"] == tags["table"]
    assert all(own.get("scope") for own in page.all("th"))
    for own in page.all("path"):
        assert re.fullmatch(r"[MLHVhvlz0-9 .\-]*", own["d"]), own["d"]
    for _, own in page.elements:
        for name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy"):
            if name in own:
                assert re.fullmatch(r"-?\d+(\.\d+)?", own[name]), f"{name}={own[name]!r}"
        assert float(own.get("width", 0)) >= 0
        assert float(own.get("height", 0)) >= 0


def _check_policy(page: Page) -> None:
    (policy,) = [own["content"] for own in page.all("meta") if own.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        text = re.search(f"<{kind}>(.*?)</{kind}>", page.html, re.DOTALL)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
