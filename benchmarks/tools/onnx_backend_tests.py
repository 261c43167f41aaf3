"""The node and model tests that the onnx package ships, each pruned to half of its channels.  Start reading at `work`.

Nodes alone seldom have weights: that most are refused with a reason is as it should be.  None may crash or give a wrong model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.protocol import Tool, main


def work(tool: Tool) -> None:
    """Every model twice: normalisations pinned and kept."""
    import graphprune
    from graphprune.errors import GraphpruneError, InternalError, ProofError

    counts: Counter[str] = Counter()
    failures, slowest = [], 0.0
    for name, model in models():
        for normalization in ("pin", "kept"):
            start = time.perf_counter()
            try:
                graphprune.prune(model, targets=["channels=0.5"], align=1, normalization=normalization)
                counts["proven"] += 1
            except GraphpruneError as error:
                wrong = isinstance(error, InternalError) or (isinstance(error, ProofError) and "NOT equal" in str(error))
                counts["failed" if wrong else "refused"] += 1
                failures += [f"{name}: {type(error).__name__}: {error}"] if wrong else []
            except Exception as error:  # a traceback for a user
                counts["failed"] += 1
                failures.append(f"{name}: {type(error).__name__}: {error}")
            slowest = max(slowest, time.perf_counter() - start)
        counts["models"] += 1
    tool.facts |= {"counts": counts, "failures": failures, "slowest": slowest}


def models() -> Iterator[tuple[str, Any]]:
    """Node tests are made by the package's code; the others are files in it."""
    import onnx.backend.test
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        if case.model is not None:
            yield case.name, case.model
    data = Path(onnx.backend.test.__file__).parent / "data"
    for path in sorted([*data.glob("*/*/model.onnx"), *data.glob("light/*.onnx")]):
        yield str(path.relative_to(data)), path


if __name__ == "__main__":
    main(work)
