"""A log of events: one JSON object a line, appended whole, so that several processes can write at once.

Start reading at `EventLog.write`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .json_text import finite


@dataclass(frozen=True)
class EventLog:
    """The log in a file, which need not exist yet."""

    path: Path

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time (UTC) and the process."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "event": event, "pid": os.getpid(), **values}
        line = json.dumps(finite(entry), ensure_ascii=True, allow_nan=False, default=str) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def mend(self) -> None:
        """End a line that a crash of the machine left open."""
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
