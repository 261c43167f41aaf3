"""What every engine is: a place that takes tasks and says how they ended.  Start reading at `Engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from graphprune.worker import Report, Task


class Engine(ABC):
    """Runs tasks, each in a process of its own; used as a context, at whose end nothing runs any more.

    An engine is registered under `graphprune.engines` and made with the number of jobs that run at once.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, workers: int) -> None:
        """Get ready.  Raises MissingExtraError, and UsageError where the place cannot be reached."""

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Queue a task: `graphprune.worker.work(task)`, killed when its time is over."""

    @abstractmethod
    def ended(self) -> tuple[Task, Report]:
        """Wait until some task has ended; each is given back once."""

    @abstractmethod
    def close(self) -> None:
        """Stop all that still runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
