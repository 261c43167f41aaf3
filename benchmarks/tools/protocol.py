"""How a tool reports to the benchmark that started it: one JSON object, the last line of standard output.

Start reading at `Tool`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Tool:
    """The arguments of a tool (model, output, options), the seconds of its phases and the facts that it reports."""

    def __init__(self, arguments: list[str]) -> None:
        self.model, self.output = Path(arguments[0]), Path(arguments[1])
        self.options: dict[str, Any] = json.loads(arguments[2]) if len(arguments) > 2 else {}
        self.facts: dict[str, Any] = {"phases": {}}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is in here."""
        start = time.perf_counter()
        yield
        self.facts["phases"][name] = time.perf_counter() - start


def main(work: Callable[[Tool], None]) -> None:
    """Run a tool; whatever it raises is a result, too: the type and the first line of the message."""
    warnings.simplefilter("ignore")
    tool = Tool(sys.argv[1:])
    try:
        work(tool)
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        tool.facts["error"] = f"{type(error).__name__}: {text}" if text else type(error).__name__
    print("\n" + json.dumps(tool.facts), flush=True)
