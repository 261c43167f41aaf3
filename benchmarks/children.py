"""Programs run in processes of their own: time, peak of memory, what they report, how they fail.

Start reading at `run`.  pyperf and hyperfine measure one command after the other; here commands take turns, so that a machine
that is busy for a while disturbs all of them alike.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

GRAPHPRUNE = str(Path(sys.executable).with_name("graphprune"))
"""The command as users call it."""


@dataclass(frozen=True)
class Command:
    """What to run: words, and changes of the environment."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def tool(name: str, model: Path, output: Path, openmp: int = 0, **options: Any) -> Command:
    """A module of tools/, called by its protocol; `openmp` is the number of threads of OpenMP and torch (0: what they like)."""
    words = [sys.executable, "-m", f"tools.{name}", str(model), str(output), json.dumps(options)]
    return Command(words, {"OMP_NUM_THREADS": str(openmp)} if openmp else {})


def run(command: Command, limit: float) -> dict[str, Any]:
    """A row: `seconds` and `peak_mib` of the whole process, what it reported, and `error` where it failed.

    The process and its children are killed after `limit` seconds.
    """
    environment = {**os.environ, **command.environment}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it would compile every import of an editable installation anew
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        child = subprocess.Popen(command.words, stdout=out, stderr=err, env=environment, cwd=HERE, start_new_session=True)
        late = threading.Event()
        timer = threading.Timer(limit, _kill, (child.pid, late))
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            _kill(child.pid, late)
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        row = {"seconds": round(seconds, 4), "peak_mib": round(usage.ru_maxrss / 1024, 1), **_reported(out.read())}
        if late.is_set():
            row["error"] = f"no result within {limit:.0f} s"
        elif child.returncode:
            row["error"] = _failure(child.returncode, err.read())
    return row


def in_turns(commands: Mapping[str, Command], rounds: int, limit: float) -> list[dict[str, Any]]:
    """Each command once a round, a row for each run with `tool`, its name, and `round`; what failed is not tried again.

    Each begins when what the ones before it wrote is on the disk.
    """
    rows: list[dict[str, Any]] = []
    failed: set[str] = set()
    for number in range(rounds):
        print(f"    round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for name, command in commands.items():
            if name in failed:
                continue
            os.sync()
            row = {"tool": name, "round": number, **run(command, limit)}
            rows.append(row)
            if "error" in row:
                failed.add(name)
                print(f"    {name}: {row['error']}", file=sys.stderr)
    return rows


@contextmanager
def busy_processors() -> Iterator[None]:
    """A loop on each processor meanwhile."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _kill(pid: int, late: threading.Event) -> None:
    late.set()
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _reported(text: str) -> dict[str, Any]:
    last = text.strip().splitlines()[-1:] or [""]
    if not last[0].startswith("{"):
        return {}
    found: dict[str, Any] = json.loads(last[0])
    return found


def _failure(code: int, text: str) -> str:
    """The last line of standard error; a traceback ends with the error."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return (text.strip().splitlines() or [f"exit code {code}"])[-1][:300]
