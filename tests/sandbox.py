"""Runs graphprune on files that nobody should trust, each command in a process of its own that is watched.

`Sandbox` starts this file as a server that has graphprune loaded and forks for each command, so that a command costs
milliseconds.  What is watched: how it ends, what it prints, how long it takes, its memory, and every file of the folder around
it.  Start reading at `Sandbox.run`.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

SECONDS = 20
"""Of the clock and of the processor: other processes may have the machine."""

HANGS = 6 * SECONDS
"""Of the clock alone."""

MEMORY = 2 * 2**30
CANARY = b"canary-7f3a9c"
"""What is in the files that nobody may read."""

CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9}
"""Documented exit codes without that of internal errors."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """The exit code; minus the signal that ended it."""
    output: str
    seconds: float
    memory: int

    def problems(self) -> list[str]:
        """What may not happen, whatever the files say."""
        found = []
        if self.seconds > SECONDS:
            found.append(f"took {self.seconds:.0f} s")
        if self.memory > MEMORY:
            found.append(f"took {self.memory >> 20} MB")
        if self.code not in CODES and not found:
            found.append(f"ended with {self.code}")
        if "Traceback" in self.output:
            found.append("traceback")
        if "Warning: " in self.output:
            found.append("warning of Python")
        if "\x1b" in self.output:
            found.append("escape sequence")
        return found


class Sandbox:
    """A folder with `in`, `out` and what may neither be read nor written, and a server for commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("in", "out", "work", "tmp", "secret"):
            (folder / name).mkdir(parents=True)
        (folder / "secret" / "canary").write_bytes(CANARY * 66 + b"\0" * 6)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GRAPHPRUNE_")}
        environment |= {"TMPDIR": str(folder / "tmp"), "HOME": str(folder / "work"), "PYTHONDONTWRITEBYTECODE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._server.stdin, self._server.stdout):
            assert pipe is not None
            pipe.close()
        self._server.wait()

    def run(self, arguments: Sequence[str | Path]) -> tuple[Outcome, list[str]]:
        """The outcome of `graphprune ARGUMENTS` and everything that is wrong with it."""
        before = self._files()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"arguments": [str(each) for each in arguments], "folder": str(self.folder / "work")}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        outcome = Outcome(**json.loads(self._server.stdout.readline()))
        found = outcome.problems()
        after = self._files()
        if before != after:
            changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            found.append(f"files changed: {changed[:3]}")
        written = list((self.folder / "out").iterdir())
        if outcome.code and written and outcome.code not in (8, 9):
            found.append(f"left behind: {sorted(path.name for path in written)[:3]}")
        texts = [outcome.output.encode(errors="replace"), *(path.read_bytes() for path in written if path.is_file())]
        if any(CANARY in text for text in texts):
            found.append("read a file outside its folder")
        return outcome, found

    def clear(self, name: str = "out") -> None:
        """Empty a folder."""
        for path in sorted((self.folder / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def _files(self) -> dict[str, tuple[int, int]]:
        """Every file but those in `out`, with size and time of writing."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if name.partition("/")[0] != "out":
                state = path.lstat()
                found[name] = (state.st_size, 0 if path.is_dir() else state.st_mtime_ns)
        return found


# ---- the server ---------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests, one line of JSON each."""
    for name in ("graphprune.batch", "graphprune.cli", "graphprune.tables", "onnxruntime", "onnxscript.optimizer"):
        import_module(name)  # graphprune first, as where it is used: it decides what onnxruntime writes when imported
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_watched(**request)), flush=True)


def _watched(arguments: list[str], folder: str) -> dict[str, object]:
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _command(arguments, folder, writer)
    os.close(writer)
    os.set_blocking(reader, False)
    output, peak = b"", 0
    while True:
        output = (output + _drain(reader))[-100_000:]
        done, status, usage = os.wait4(child, os.WNOHANG)
        peak = max(peak, _group_memory(child))
        if done or time.monotonic() - start > HANGS or peak > 1.5 * MEMORY:
            break
        time.sleep(0.01)
    if not done:
        os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - start
    if done:
        seconds = min(seconds, usage.ru_utime + usage.ru_stime)
    output += _drain(reader)
    os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    memory = max(peak, usage.ru_maxrss * 1024)
    return {"code": code, "output": output.decode(errors="replace"), "seconds": seconds, "memory": memory}


def _drain(reader: int) -> bytes:
    found = b""
    try:
        while part := os.read(reader, 65536):
            found += part
    except BlockingIOError:
        pass
    return found


def _group_memory(group: int) -> int:
    """Resident bytes of the largest process of a group."""
    try:
        children = Path(f"/proc/{group}/task/{group}/children").read_text().split()
    except OSError:
        return 0
    return max(_resident(pid) for pid in [str(group), *children])


def _resident(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _command(arguments: list[str], folder: str, writer: int) -> None:
    """Become `graphprune ARGUMENTS`; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.argv = ["graphprune", *arguments]
        ENTRY()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def ENTRY() -> None:
    """What the console script calls."""
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="graphprune")
    script.load()()


if __name__ == "__main__":
    serve()
