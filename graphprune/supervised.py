"""What the console script calls: the command line, in a process of its own that another watches.

A damaged or hostile model can crash the libraries that read and run it, or make them work for ever.  That ends the
process that does the work, and this one says what happened, with a documented exit code.  Start reading at `main`.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from math import inf
from typing import NoReturn

from . import garbage, limits
from .errors import ExitCode, SignalExit
from .streams import Lossy, is_unread, open_streams

ITSELF = ("batch",)
"""Verbs that give each job a process with limits."""

SLEEPY = "4"
"""Threads of numpy's OpenBLAS wait for 2 to the power of this many cycles before they sleep: by default, 2**26, they take a third
of the processor's time from a short command, and a tenth of the time of a long one."""

PASSED_ON = (signal.SIGTERM, signal.SIGHUP)

PATIENCE = 5
"""Seconds that the process which works has to end in."""

BY_SIGNAL = 128
"""Exit codes above it are those of a process that a signal ended, as shells have them."""


def main() -> None:
    """Run the command line; with GRAPHPRUNE_LIMITS=off, or where no file is named (`--help`), without a second process."""
    verb, *files = sys.argv[1:] or [""]
    output = open_streams()
    if limits.factor() == inf or not files or verb in ITSELF:
        _leave_at(signal.SIGINT)
        sys.exit(_shown(_leaving(_command).code, output))
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _die_with(parent)
        _leave_at(signal.SIGINT, *PASSED_ON)
        limits.begin()
        _leave_after(_command, output)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: _pass_on(received, child))
    _, status = os.waitpid(child, 0)
    _end(_code(os.waitstatus_to_exitcode(status)))


def _pass_on(number: int, child: int) -> None:
    """Let the process that works end, or end it where it does not within a while."""
    os.kill(child, number)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(PATIENCE)


def _leave_at(*signals: signal.Signals) -> None:
    """Leave at these signals, but for those that the caller wants to be ignored (`nohup`)."""
    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, _: object) -> NoReturn:
    """Leave by an exception, so that temporary files go."""
    if number == signal.SIGINT:
        print("Aborted!", file=sys.stderr)
    raise SignalExit(BY_SIGNAL + number)


def _command() -> None:
    gc.set_threshold(garbage.OBJECTS)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", SLEEPY)
    from .cli import main as command

    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of weights that are infinite or no numbers
    try:
        command()
    finally:
        gc.freeze()  # the process ends: nothing is gained by looking for garbage once more


def _leaving(command: Callable[[], None]) -> SystemExit | SignalExit:
    """What the command leaves with; as long as it is kept, nothing is freed that the command made, which takes 10 ms."""
    try:
        command()
    except (SystemExit, SignalExit) as leaving:
        return leaving
    return SystemExit(0)


def _shown(code: str | int | None, output: Lossy) -> str | int | None:
    """The exit code, when all is written: that of an error where standard output did not take it, but not where nobody reads."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code not in (0, None) or output.lost is None or is_unread(output.lost):
        return code
    lost = f"standard output takes no more ({output.lost.strerror}), and part of what was to be shown is lost"
    print(f"graphprune: error: {lost}", file=sys.stderr)
    return int(ExitCode.USAGE)


def _leave_after(command: Callable[[], None], output: Lossy) -> NoReturn:
    """End the process with the command's exit code, as processes of multiprocessing end: the memory goes back as a whole.

    Taking the interpreter apart would free each object by itself, which takes as long as reading a small model.
    """
    leaving = _leaving(command)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    code = _shown(leaving.code, output)
    if not isinstance(code, int):
        sys.exit(code)  # None, or a message
    _end(code)


def _end(code: int) -> NoReturn:
    """End the process without taking the interpreter apart; nothing is left to be written but messages."""
    sys.stderr.flush()
    os._exit(code)


def _die_with(parent: int) -> None:
    """End this process with its parent, however that ends."""
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _code(code: int) -> int:
    """The exit code of the command; where a signal ended it that of an unreadable model, after a message."""
    if code >= 0 and code - BY_SIGNAL not in PASSED_ON:
        return code
    number = signal.Signals(-code if code < 0 else code - BY_SIGNAL)
    if number in (signal.SIGINT, *PASSED_ON):
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    print(f"graphprune: error: {_reason(number)}; nothing was written", file=sys.stderr)
    return int(ExitCode.INVALID_MODEL)


def _reason(number: signal.Signals) -> str:
    if number == limits.OVER_TIME:
        return limits.TOO_LONG
    if number == signal.SIGKILL:
        return "the process was killed from outside, perhaps for want of memory"
    return f"the model makes a library crash ({number.name}): it is damaged, hostile or too large ({limits.RAISE})"
