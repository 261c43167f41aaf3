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
    """The commit that is measured; `+` where files differ from it."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
