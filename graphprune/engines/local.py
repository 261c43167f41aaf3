"""Jobs on this machine, in a pool of processes (pebble).  Start reading at `Local`."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import CancelledError
from functools import partial
from queue import SimpleQueue
from typing import ClassVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from graphprune.errors import ExitCode
from graphprune.limits import OVER_TIME, TOO_LONG
from graphprune.worker import Report, Task, end_with_parent, work

from .base import Engine

PRELOADED = ["graphprune.pipeline", "graphprune.tables", "graphprune.evaluation", "graphprune.engines.local"]
"""What every job imports: once, in the process that theirs are forked from."""


class Local(Engine):
    """A pool on this machine: a new process for each job, which is killed when its time is over, and with the batch."""

    name: ClassVar[str] = "local"

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._pool = ProcessPool(workers, max_tasks=1, initializer=end_with_parent, context=context)
        self._ended: SimpleQueue[tuple[Task, Report]] = SimpleQueue()

    def submit(self, task: Task) -> None:
        """Queue a task for the next free process."""
        future = self._pool.schedule(work, args=[task], timeout=task.time)
        future.add_done_callback(partial(self._end, task))

    def _end(self, task: Task, future: ProcessFuture[Report]) -> None:
        self._ended.put((task, report_of(task, future)))

    def ended(self) -> tuple[Task, Report]:
        """Wait until some task has ended."""
        return self._ended.get()

    def close(self) -> None:
        """Kill what runs, and wait until it is gone."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


def report_of(task: Task, future: ProcessFuture[Report]) -> Report:
    """How a task ended."""
    try:
        report: Report = future.result()
    except TimeoutError:
        return Report("timeout", f"over its time limit of {task.time:g} s", 1)
    except ProcessExpired as error:
        if error.exitcode == -OVER_TIME:
            return Report("timeout", TOO_LONG, int(ExitCode.INVALID_MODEL))
        return Report("died", f"its process died ({_cause(error.exitcode)}); see logs/{task.digest}.log", 1)
    except CancelledError:
        return Report("died", "stopped", 1)
    except BaseException as error:  # the report could not be sent or the task not be read, or users' code ended the process
        return Report("died", f"its process gave no report ({type(error).__name__}: {error})", 1)
    return report


def _cause(code: int | None) -> str:
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:
        return f"exit code {code}"
