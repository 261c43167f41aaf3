"""One job of a batch, in a process of its own: limits, files that appear together, and a report that is never an exception.

Start reading at `work`.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import limits
from .contents import job_digest
from .errors import ExitCode, GraphpruneError, UsageError
from .event_log import EventLog
from .result_folder import write_result
from .run import Job, run


@dataclass(frozen=True)
class Task:
    """A job with the place of its result and what it may take."""

    name: str
    digest: str
    job: Job
    folder: Path
    """The output folder of the batch."""
    memory: int | None = None
    """Bytes."""
    time: float | None = None
    """Seconds."""
    attempt: int = 1

    @property
    def result(self) -> Path:
        """The folder of the result: there, and whole, once the job is done."""
        return self.folder / "results" / self.digest

    @property
    def log(self) -> EventLog:
        """The log of the batch."""
        return EventLog(self.folder / "events.jsonl")


@dataclass(frozen=True)
class Report:
    """How a job ended: `failed` by an error, `timeout` over its time, `died` with its process."""

    state: Literal["done", "failed", "timeout", "died"]
    message: str = ""
    exit_code: int = 0


def work(task: Task) -> Report:
    """Do a job; its result appears in one step.  What it prints goes to `logs/`, since standard output is the table's."""
    if task.result.is_dir():  # on a cluster a process of a batch that was killed may have been faster
        return Report("done")
    task.log.write("job_started", job=task.name, digest=task.digest, attempt=task.attempt)
    start = time.monotonic()
    _capture_output(task.folder / "logs" / f"{task.digest}.log")
    if task.memory is not None:
        _limit_memory(task.memory)
    limits.begin()
    try:
        is_first = _work(task, start)
    except GraphpruneError as error:
        return Report("failed", str(error), int(error.exit_code))
    except MemoryError:
        return Report("failed", _over_memory(task), int(ExitCode.INTERNAL))
    except RecursionError:
        return Report("failed", "the model is nested too deeply", int(ExitCode.INVALID_MODEL))
    except (Exception, SystemExit) as error:  # a bug must not stop the other jobs
        return _stumbled(task, error)
    event = "job_finished" if is_first else "job_reused"
    task.log.write(event, job=task.name, digest=task.digest, seconds=round(time.monotonic() - start, 3))
    return Report("done")


def _stumbled(task: Task, error: Exception | SystemExit) -> Report:
    """What an exception that nobody expected says: the model's fault, or a bug."""
    from .soundness import unsound

    reason = unsound(Path(task.job.model))
    if reason is not None:
        return Report("failed", reason, int(ExitCode.INVALID_MODEL))
    return Report("failed", f"internal error ({type(error).__name__}: {error})", int(ExitCode.INTERNAL))


def _over_memory(task: Task) -> str:
    if task.memory is None:
        return f"out of memory: the model needs more than its size allows ({limits.RAISE})"
    return f"out of memory: the job needs more than its limit of {task.memory / 1e6:.0f} MB"


def _work(task: Task, start: float) -> bool:
    """Whether the result is this process's, and not that of another that was faster."""
    unfinished = task.folder / "unfinished" / f"{task.digest}-{os.getpid()}-{task.attempt}"
    unfinished.mkdir()
    try:
        outcome = run(task.job)
        outcome.check()
        seconds = round(time.monotonic() - start, 3)
        write_result(outcome, task.job, unfinished, task.result, {"seconds": seconds})
        if job_digest(task.job) != task.digest:
            raise UsageError("the model or its data changed while the job ran; resume the batch")
        return _publish(unfinished, task.result)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: Path, result: Path) -> bool:
    """Move a folder to its place, on disk before it is there; False where another process was first, whose result stays."""
    for path in (*unfinished.iterdir(), unfinished):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    try:
        os.rename(unfinished, result)
    except OSError as error:
        if not result.is_dir():
            raise UsageError(f"{result}: cannot write there: {error.strerror}") from error
        return False
    return True


def _capture_output(path: Path) -> None:
    """Send standard output and error of this process to a file, crashes of C code included."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    faulthandler.enable(2)


def _limit_memory(limit: int) -> None:
    """Let the kernel refuse memory beyond the limit: what is written to, not what is only reserved or mapped from files."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    bound = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
