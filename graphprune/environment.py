"""Where and when a result was made: versions, machine, date, command.  Start reading at `environment`."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from .errors import UsageError
from .version import VERSION

LIBRARIES = ("onnx", "onnxruntime", "numpy")


def environment(command: str = "") -> dict[str, str]:
    """What a reader needs to make the result again, in the order of display; `command` is the command line, where there is one.

    The date is that of SOURCE_DATE_EPOCH where the variable is set (reproducible-builds.org).  Raises UsageError where it is no
    number of seconds.
    """
    versions = {name: version(name) for name in LIBRARIES}
    return {
        **({"command": command} if command else {}),
        "date": _date().strftime("%Y-%m-%d %H:%M:%S UTC"),
        "graphprune": VERSION,
        **versions,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
    }


def _date() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH={epoch!r} is not a number of seconds since 1970") from error


def _processor() -> str:
    """The processor's name as Linux has it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
