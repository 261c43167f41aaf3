"""Jobs on a Ray cluster (extra `ray`).  Start reading at `Ray`."""

from __future__ import annotations

import os
import socket
from typing import Any, ClassVar

from graphprune.errors import UsageError
from graphprune.extras import require
from graphprune.worker import Report, Task

from .base import Engine

SECONDS = 10
"""Until a cluster must have answered."""


class Ray(Engine):
    """A Ray cluster: the one that RAY_ADDRESS names, else one that is started here.  The output folder must be shared."""

    name: ClassVar[str] = "ray"

    def __init__(self, workers: int) -> None:
        self._ray: Any = require("ray", "ray")
        address = os.environ.get("RAY_ADDRESS")
        if address:
            _check_reachable(address)
        place = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            self._ray.init(log_to_driver=False, logging_level="error", ignore_reinit_error=True, **place)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"cannot reach the Ray cluster at {address or 'this machine'}: {error}") from error
        self._contained = self._ray.remote(num_cpus=1, max_retries=0)(contained)
        self._tasks: dict[Any, Task] = {}

    def submit(self, task: Task) -> None:
        """Queue a task for the next free processor of the cluster."""
        self._tasks[self._contained.remote(task)] = task

    def ended(self) -> tuple[Task, Report]:
        """Wait until some task has ended, or its worker is lost."""
        done, _ = self._ray.wait(list(self._tasks), num_returns=1)
        task = self._tasks.pop(done[0])
        try:
            report: Report = self._ray.get(done[0])
        except self._ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return task, Report("died", f"its worker was lost ({type(error).__name__}: {first})", 1)
        return task, report

    def close(self) -> None:
        """Stop what runs, and a cluster that was started here."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise UsageError where nobody answers; Ray would try for more than a minute and end the process without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`, or what Ray has a message for
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot reach the Ray cluster at {address}: {error}") from error


def contained(task: Task) -> Report:
    """Do a task on a node of the cluster, in a process beside Ray's worker, with the same limits as on one machine."""
    from .local import Local

    with Local(1) as engine:
        engine.submit(task)
        return engine.ended()[1]
