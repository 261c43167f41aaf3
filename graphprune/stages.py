"""The events of one run, for `prune --events FILE`: JSON lines that another program can follow while the run goes on.

Every line has `time` (UTC, ISO 8601), `event`, `pid` and `run`, which is the same in all lines of a run, and the fields of the
class below that is called like the event.  Start reading at `recorded`.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .errors import ExitCode, SignalExit, UsageError
from .event_log import EventLog
from .run import Job
from .version import VERSION

if TYPE_CHECKING:
    from .problem import Step


@dataclass(frozen=True)
class RunStarted:
    """A run began."""

    graphprune: str
    """Version."""
    options: dict[str, Any]
    """Every option, those that the recipe chooses included, as in a configuration."""


@dataclass(frozen=True)
class StageStarted:
    """A stage of the run began, which ended the one before."""

    stage: str
    """What the progress display says, up to a colon."""


@dataclass(frozen=True)
class StageFinished:
    """A stage ended, also where an error ended it."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Warned:
    """A library warned; the run goes on."""

    category: str
    message: str


@dataclass(frozen=True)
class RunFinished:
    """The run is done and its files are written."""

    seconds: float
    result: dict[str, Any]
    """What `--json` writes, without the groups."""


@dataclass(frozen=True)
class RunFailed:
    """An error ended the run."""

    seconds: float
    error: str
    """Class of the error."""
    message: str
    exit_code: int


EVENTS = (RunStarted, StageStarted, StageFinished, Warned, RunFinished, RunFailed)
Event = RunStarted | StageStarted | StageFinished | Warned | RunFinished | RunFailed


def event_name(kind: type[Event]) -> str:
    """What an event is called in a log: `stage_started` for StageStarted."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def events_schema() -> dict[str, Any]:
    """The JSON Schema of one line."""
    from pydantic import TypeAdapter

    common: dict[str, Any] = {
        "time": {"type": "string", "format": "date-time"},
        "pid": {"type": "integer"},
        "run": {"type": "string"},
    }
    lines = []
    for kind in EVENTS:
        line = TypeAdapter(kind).json_schema()
        name = {"event": {"const": event_name(kind)}}
        line["properties"] = common | name | line["properties"]
        line["required"] = [*common, "event", *line["required"]]
        lines.append(line)
    return {"title": "A line of graphprune prune --events", "oneOf": lines}


@dataclass
class Recorder:
    """Writes what happens in one run; called with a text when a stage begins, as progress displays are."""

    log: EventLog
    run: str = field(default_factory=lambda: uuid4().hex[:12])
    start: float = field(default_factory=time.monotonic)
    stage: str = ""
    stage_start: float = 0.0

    def write(self, event: Event) -> None:
        """Append an event.  Raises UsageError where the file cannot be written."""
        try:
            self.log.write(event_name(type(event)), run=self.run, **asdict(event))
        except OSError as error:
            raise UsageError(f"{self.log.path}: cannot write events there: {error.strerror or error}") from error

    def __call__(self, text: str) -> None:
        """A stage begins, or goes on: what follows a colon says how far it is."""
        stage = text.partition(":")[0]
        if stage == self.stage:
            return
        self.end_stage()
        self.stage, self.stage_start = stage, time.monotonic()
        self.write(StageStarted(stage))

    def also(self, show: Step) -> Step:
        """A callback that shows stages as well."""

        def both(stage: str) -> None:
            self(stage)
            show(stage)

        return both

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self._since(self.start)

    def end_stage(self) -> None:
        """The stage that is going on, if there is one, has ended."""
        if self.stage:
            self.write(StageFinished(self.stage, self._since(self.stage_start)))
        self.stage = ""

    def finished(self, result: dict[str, Any]) -> None:
        """The run has ended with a result."""
        self.end_stage()
        self.write(RunFinished(self.seconds, {key: value for key, value in result.items() if key != "groups"}))

    def failed(self, error: Exception | SignalExit) -> None:
        """An error ended the run, or a signal."""
        self.end_stage()
        code = error.code if isinstance(error, SignalExit) else getattr(error, "exit_code", ExitCode.INTERNAL)
        self.write(RunFailed(self.seconds, type(error).__name__, str(error), int(code)))

    @staticmethod
    def _since(start: float) -> float:
        return round(time.monotonic() - start, 3)


class Silent(Recorder):
    """Where no events were asked for."""

    def write(self, event: Event) -> None:
        """Nothing."""


@contextmanager
def recorded(path: Path | None, job: Job) -> Iterator[Recorder]:
    """A recorder for a run, which also writes its beginning, what libraries warn about, and the error that ends it.

    Raises UsageError where the file cannot be written, and what the run raises.
    """
    if path is None:
        yield Silent(EventLog(Path()))
        return
    from .configuration import values_of

    recorder = Recorder(EventLog(path))
    recorder.write(RunStarted(VERSION, values_of(job)))
    with warnings.catch_warnings():
        _record_warnings(recorder)
        try:
            yield recorder
        except (Exception, SignalExit) as error:
            recorder.failed(error)
            raise


def _record_warnings(recorder: Recorder) -> None:
    """Write warnings to the log as well; `warnings.catch_warnings` takes this back."""
    show = warnings.showwarning

    def both(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        recorder.write(Warned(category.__name__, str(message)))
        show(message, category, *where, **more)

    warnings.showwarning = both
