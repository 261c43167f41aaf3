"""Writes docs/operators.md from the operator table; with --check only says whether the page is up to date (exit code 1: no).

Start reading at `page`.
"""

from __future__ import annotations

import inspect
import sys
from itertools import groupby
from pathlib import Path

from graphprune import operators, rules
from graphprune.operators import TABLE, Operator

PAGE = Path(__file__).with_name("operators.md")

INTRODUCTION = """\
<!-- Written by docs/generate_operators.py from graphprune/operators.py. Do not edit: run `make docs`. -->

# Operators

The {count} operators that have an entry in the operator table (`graphprune/operators.py`). An operator without an entry pins
every axis that it touches, and `graphprune analyze` says so; `--on-unsupported error` stops instead. To add one, see
[Adding an operator](adding-an-operator.md).

Operators of other domains are written `domain::Operator`. Models of opset 12 and older are upgraded to opset 13 first; newer
ones are taken as they are, up to the newest that the installed onnx knows. [Concepts](concepts.md) explains dimensions, products
and pinning.

## Notation

{notation}
Rules in words ("pins axis, carries the others") belong to operators whose rule depends on attributes or constant operands. "Axis"
then means the axes that the operator's attribute or operand of that name selects.

## The table

*Parameters* names the operands that criteria may ask for. *Rewrite* says what else changes in a node when its channels
shrink, besides its weights.

| operators | rule | meaning | parameters | rewrite |
|---|---|---|---|---|
"""


def page() -> str:
    """The text of the page."""
    rows = [_row([entry.name for entry in entries], key) for key, entries in _families()]
    return INTRODUCTION.format(count=len(TABLE), notation=_notation()) + "".join(rows)


Key = tuple[str, str, str, str]


def _families() -> list[tuple[Key, list[Operator]]]:
    """Neighbours in the table that say the same stand in one row."""
    return [(key, list(entries)) for key, entries in groupby(TABLE.values(), _columns)]


def _columns(entry: Operator) -> Key:
    shrink = "" if entry.shrink is None else _sentence(entry.shrink)
    return entry.rule, _sentence(entry.infer), ", ".join(filter(None, entry.parameters)), shrink


def _sentence(function: object) -> str:
    """The first paragraph of a function's docstring; of the function that made it, where it has none itself."""
    function = getattr(function, "func", function)
    module = sys.modules[getattr(function, "__module__", operators.__name__)]
    maker = getattr(module, getattr(function, "__qualname__", "").partition(".")[0], None)
    if maker is operators.typed:
        return ""
    text = inspect.getdoc(function) or inspect.getdoc(maker) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _row(names: list[str], key: Key) -> str:
    rule, *texts = key
    prose = [text.replace("[", "\\[") for text in texts]  # else a list of axes can be taken for a link
    cells = [", ".join(f"`{name}`" for name in names), f"`{rule}`" if "->" in rule else rule, *prose]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _notation() -> str:
    """What the module `graphprune.rules` says about its notation."""
    text, _, _ = (inspect.getdoc(rules) or "").partition("Start reading")
    return text.strip() + "\n"


def main() -> None:
    """Write the page, or compare it."""
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is out of date: run `make docs`")
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
