"""Standard output and error that may be closed, full or read by nobody, while the work goes on.

Start reading at `open_streams`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO


class Lossy(io.FileIO):
    """A file that takes whatever is written; `lost` is the first error of the one below, which then gets nothing more."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or do as if: a command whose result is on disk has its exit code, whoever reads what it says."""
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def open_streams() -> Lossy:
    """Replace `sys.stdout` and `sys.stderr`; those that are closed lead nowhere.  Returns what is below standard output."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file that is opened would get what is printed
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdout, output = _lossy(1, sys.stdout)
    sys.stderr, _ = _lossy(2, sys.stderr)
    return output


def _lossy(number: int, stream: TextIO | None) -> tuple[io.TextIOWrapper, Lossy]:
    raw = Lossy(number, "wb", closefd=False)
    encoding, errors = (stream.encoding, stream.errors) if stream else ("utf-8", "backslashreplace")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=number == 2 or raw.isatty()), raw


def is_unread(error: OSError) -> bool:
    """Whether the reader went away, as `head` does, which is no mistake."""
    return error.errno == errno.EPIPE
