"""What one file may cost: memory and time in proportion to its size, so that a small file cannot take a machine.

Two kinds of limits.  Before a network runs, what its values take in memory is computed from their shapes (`check_memory`): this
holds everywhere.  And in a process that does the work of one command or job (`begin`), the operating system limits what is done
with a file until its network has run once: seconds of the processor, and memory.  What comes later is work that the user asked
for, and takes as long as it takes.  GRAPHPRUNE_LIMITS=10 makes all limits ten times as wide, GRAPHPRUNE_LIMITS=off takes them
away.  Start reading at `grant`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, prod
from pathlib import Path

VARIABLE = "GRAPHPRUNE_LIMITS"

SECONDS = 8.0
"""Of the processor, for reading, analysing, rewriting and one run of a network, without what its size adds.

Real networks take less than a tenth of that (docs/decisions/0024-limits.md).
"""

SECONDS_PER_BYTE = 1e-6

VALUES = 2**30
"""Bytes that the values of a network may take at once while it runs, without what its size adds."""

DATA = 1500 * 2**20
"""Bytes of memory that may be written to beyond what the process had before, without what sizes and processors add."""

DATA_PER_THREAD = 2**26
"""Stacks and buffers of libraries that start a thread for each processor."""

COPIES = 16
"""How many bytes of memory each byte of a model allows."""

RAISE = f"{VARIABLE}=10 allows ten times as much, {VARIABLE}=off anything"

TOO_LONG = f"the model takes longer than its size allows, and was stopped ({RAISE})"

TIMER, OVER_TIME = signal.ITIMER_PROF, signal.SIGPROF
"""Counts the processor's time in all threads; the signal ends the process, whatever library it is in."""


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
    timed = False
    bytes = 0
    before = 0
    """Bytes of memory that are not for the model."""
    left: float | None = None
    """Seconds, while the clock stands still."""


def begin() -> None:
    """From here on `grant` limits this process; for processes that do the work of one command or job."""
    _Process.limited = _Process.timed = factor() < inf
    _Process.bytes = 0


def grant(size: int) -> None:
    """Start the clock, if it does not run, and allow what a model of so many bytes may take, beyond what others were granted.

    When the time is over the process ends by the signal `OVER_TIME`; what needs more memory fails.
    """
    if not _Process.limited:
        return
    seconds = (size * SECONDS_PER_BYTE + (0 if _Process.bytes else SECONDS)) * factor()
    _Process.before = _Process.before if _Process.bytes else _data()
    _Process.bytes += max(size, 1)
    if _Process.left is not None:
        _Process.left += seconds
        return
    if _Process.timed:
        signal.setitimer(TIMER, signal.getitimer(TIMER)[0] + seconds)
    _limit_data()


def clock_runs() -> bool:
    """Whether time is limited: networks then run on one thread, so that a wait is not counted for each processor."""
    return _Process.timed and signal.getitimer(TIMER)[0] > 0


def stop_clock() -> None:
    """No limit of time any more: the network has run once within it."""
    if _Process.timed:
        signal.setitimer(TIMER, 0)
        _Process.timed = False


def lift() -> None:
    """No limits of the process any more: what comes is work that the user asked for (calibration, measuring)."""
    stop_clock()
    if _Process.limited and _Process.bytes:
        _set_data_limit(None)
    _Process.limited = False


@contextmanager
def paused() -> Iterator[None]:
    """No limits of the process meanwhile: a file is being written, which must not stop in the middle, or code is imported."""
    if not _Process.limited or not _Process.bytes or _Process.left is not None:
        yield
        return
    _Process.left, before = signal.getitimer(TIMER)[0], _data()
    signal.setitimer(TIMER, 0)
    _set_data_limit(None)
    try:
        yield
    finally:
        left, _Process.left = _Process.left, None
        if _Process.timed:
            signal.setitimer(TIMER, left)
        if _Process.limited:
            _Process.before += max(0, _data() - before)
            _limit_data()


def _limit_data() -> None:
    threads = DATA_PER_THREAD * (os.cpu_count() or 1)
    _set_data_limit(int(_Process.before + (DATA + threads + COPIES * _Process.bytes) * factor()))


def _set_data_limit(size: int | None) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if size is None or (hard != resource.RLIM_INFINITY and size > hard) else size
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data() -> int:
    """Bytes of memory that this process may write to, as the kernel counts them for RLIMIT_DATA; 0 where that is not known."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


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
