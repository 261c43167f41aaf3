"""Where a measurement was made: versions, processor, memory, load.  Start reading at `surroundings`."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from children import HERE

from graphprune.environment import environment

PEERS = ("torch", "torchvision", "torch-pruning", "onnxsim", "apple-upscale", "transformers", "onnxscript")


def surroundings() -> dict[str, Any]:
    """Versions of everything that is compared, the machine, the commit."""
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return {**environment(), **{name: _version(name) for name in PEERS}, "memory": memory, "commit": commit()}


def load() -> float:
    """Processes that wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """The commit that is measured; `+` where files differ from it, those apart that the benchmarks write."""
    written = [f":(top,exclude){each}" for each in ("benchmarks/results", "docs/benchmarks", "docs/benchmarks.md")]
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ":(top)", *written)
    return f"{head}+" if changed else head or "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
