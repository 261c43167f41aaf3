"""What one file may cost: memory and time in proportion to its size, so that a small file cannot take a machine.

Two kinds of limits.  Before a network runs, what its values take in memory is computed from their shapes (`check_memory`): this
holds everywhere.  And where the command line has given the work a process of its own (`graphprune.supervised`), the operating
system limits that process (`grant`, `lift`).  GRAPHPRUNE_LIMITS=10 makes all limits ten times as wide, GRAPHPRUNE_LIMITS=off
takes them away.  Start reading at `grant`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, prod

VARIABLE = "GRAPHPRUNE_LIMITS"

SECONDS = 14.0
"""For reading, analysing, rewriting and proving a network, without what its size adds."""

SECONDS_PER_BYTE = 1e-6

VALUES = 2**30
"""Bytes that the values of a network may take at once while it runs, without what its size adds."""

DATA = 1600 * 2**20
"""Bytes of memory that the process may write to, without what its size and the machine's processors add."""

DATA_PER_THREAD = 2**26
"""Stacks and buffers of libraries that start a thread for each processor."""

COPIES = 16
"""How many bytes of memory each byte of a model allows."""

RAISE = f"{VARIABLE}=10 allows ten times as much, {VARIABLE}=off anything"


def factor() -> float:
    """What the user multiplies all limits by; infinite for `off`, 1 for anything that is no positive number."""
    text = os.environ.get(VARIABLE, "1").strip().lower()
    if text == "off":
        return inf
    try:
        value = float(text)
    except ValueError:
        return 1.0
    return value if value > 0 else 1.0


# ---- the process --------------------------------------------------------------------------------


class _Process:
    """What this process may take; nothing is limited until `begin`."""

    limited = False
    bytes = 0


def begin() -> None:
    """From here on `grant` limits this process; for processes that do the work of one command."""
    _Process.limited = factor() < inf


def grant(size: int) -> None:
    """Start the clock, if it does not run, and allow what a model of so many bytes may take, beyond what others were granted.

    When the time is over the process ends by SIGALRM; what needs more memory fails.
    """
    if not _Process.limited:
        return
    _Process.bytes += size
    started = signal.getitimer(signal.ITIMER_REAL)[0]
    signal.setitimer(signal.ITIMER_REAL, (started or SECONDS * factor()) + size * SECONDS_PER_BYTE * factor())
    threads = DATA_PER_THREAD * (os.cpu_count() or 1)
    _limit_data(int((DATA + threads + COPIES * _Process.bytes) * factor()))


def lift() -> None:
    """No limits any more: what comes is work that the user asked for (calibration, measuring), on a network that has run once."""
    if _Process.limited:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _limit_data(None)
        _Process.limited = False


@contextmanager
def undisturbed() -> Iterator[None]:
    """The clock stands still: a file is being written, which must not stop in the middle."""
    left = signal.getitimer(signal.ITIMER_REAL)[0] if _Process.limited else 0
    if left:
        signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if left:
            signal.setitimer(signal.ITIMER_REAL, left)


def _limit_data(size: int | None) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if size is None or (hard != resource.RLIM_INFINITY and size > hard) else size
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


# ---- values -------------------------------------------------------------------------------------


def check_memory(size: int, model_bytes: int, what: str) -> None:
    """Refuse what takes more memory than a model of that many bytes allows.  Raises InvalidModelError."""
    from .errors import InvalidModelError

    allowed = (VALUES + COPIES * model_bytes) * factor()
    if size > allowed:
        raise InvalidModelError(
            f"{what} takes {_readable(size)} of memory, more than the {_readable(allowed)} that a model of this size may take: "
            f"give smaller sizes with --input-shape, or more room ({RAISE})"
        )


def peak_bytes(reads: Sequence[tuple[Sequence[str], Sequence[str]]], sizes: Mapping[str, int], kept: Sequence[str]) -> int:
    """The most bytes that values take at once when nodes (what each reads, what it writes) run in order.

    `sizes` are bytes by value, 0 where not known; values in `kept` stay to the end.
    """
    last = {name: position for position, (read, _) in enumerate(reads) for name in read}
    last |= dict.fromkeys(kept, len(reads))
    written = {name for _, outputs in reads for name in outputs}
    live = peak = sum(size for name, size in sizes.items() if name not in written)
    for position, (read, outputs) in enumerate(reads):
        live += sum(sizes.get(name, 0) for name in outputs)
        peak = max(peak, live)
        gone = {name for name in [*read, *outputs] if last.get(name, position) <= position}
        live -= sum(sizes.get(name, 0) for name in gone)
    return peak


def array_bytes(shape: Sequence[object], bits: int) -> int:
    """Bytes of an array; dimensions that are not known count as 1."""
    return -(-prod(max(dim, 0) if isinstance(dim, int) else 1 for dim in shape) * bits // 8)


def _readable(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
