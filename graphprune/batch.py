"""Many jobs, each done once: results are kept under a hash of all they depend on, and appear whole or not at all.

    OUT/results/HASH/   model.onnx, plan.json, result.json, config.yaml
    OUT/unfinished/     what is being written; emptied when a batch starts
    OUT/events.jsonl, OUT/summary.json, OUT/logs/

Start reading at `run_batch`.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import registry
from .contents import job_digest
from .errors import GraphpruneError, UsageError
from .event_log import EventLog
from .jobs import Batch, NamedJob
from .json_text import json_text
from .result_folder import MODEL, read_result
from .terminal import write_text
from .version import VERSION
from .worker import Report, Task

if TYPE_CHECKING:
    from .engines.base import Engine

SCHEMA = "graphprune.batch/1"


@dataclass
class Record:
    """What became of a job; figures are shares of the original's, None where there are none."""

    name: str
    model: str
    digest: str
    state: Literal["waiting", "done", "reused", "failed", "timeout", "died"] = "waiting"
    message: str = ""
    exit_code: int = 0
    attempts: int = 0
    folder: str = ""
    """Relative to the output folder."""
    macs: float | None = None
    params: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
    seconds: float | None = None
    pareto: bool | None = None
    """Whether no other job of this model is both faster and more accurate; None where accuracy was not measured."""

    @property
    def succeeded(self) -> bool:
        """Whether there is a result."""
        return self.state in ("done", "reused")


Tell = Callable[[Record, int, int], None]
"""Called when a job has ended, with its record, how many have ended and how many there are."""


def run_batch(
    batch: Batch, folder: Path, engine: str = "local", workers: int = 1, tell: Tell = lambda record, ended, total: None
) -> list[Record]:
    """Do all jobs whose results are not in the folder yet, and write `summary.json`.

    One failing job does not stop the others.  Raises UsageError where the folder cannot be used or another batch is at work in
    it, and what the engine raises when it starts.
    """
    cls = registry.load("engines", engine)
    with _locked(folder):
        _sweep(folder)
        log = EventLog(folder / "events.jsonl")
        log.mend()
        log.write("batch_started", graphprune=VERSION, engine=engine, workers=workers, jobs=len(batch.jobs))
        records, tasks = _prepared(batch, folder)
        _tell_ended(records, log, tell)
        if tasks:
            with cls(workers) as place:
                _run(place, tasks, records, batch.limits.retries, log, tell)
        for record in records:
            _read_result(record, folder)
        _mark_front(records)
        failed = sum(not record.succeeded for record in records)
        summary = {"schema": SCHEMA, "graphprune": VERSION, "failed": failed, "jobs": [asdict(record) for record in records]}
        write_text(folder / "summary.json", json_text(summary))
        log.write("batch_finished", done=len(records) - failed, failed=failed)
        _sweep(folder)
    return records


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, for this process alone; the kernel frees it when the process ends."""
    from filelock import FileLock, Timeout

    try:
        for part in ("results", "logs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UsageError(f"{folder}: another batch is at work there; wait for it, or give another -o") from error
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there: {error.strerror or error}") from error


def _sweep(folder: Path) -> None:
    """Throw away what was not finished."""
    unfinished = folder / "unfinished"
    if unfinished.is_dir() and not unfinished.is_symlink():
        shutil.rmtree(unfinished, ignore_errors=True)  # a process that another batch left on a cluster may still write there
    unfinished.mkdir(exist_ok=True)


def _prepared(batch: Batch, folder: Path) -> tuple[list[Record], list[Task]]:
    """A record for each job, and the tasks that are left to do: one for each hash."""
    records, tasks = [], {}
    for named in batch.jobs:
        record = _record(named)
        records.append(record)
        if record.state == "failed":
            continue
        limits = {"memory": batch.limits.memory_bytes, "time": batch.limits.time}
        task = Task(named.name, record.digest, named.job, folder.resolve(), **limits)  # type: ignore[arg-type]
        if _is_result(task.result):
            record.state = "reused"
        else:
            tasks[record.digest] = task
    return records, list(tasks.values())


def _tell_ended(records: list[Record], log: EventLog, tell: Tell) -> None:
    """Say which jobs need not, or cannot, begin."""
    ended = [record for record in records if record.state != "waiting"]
    for number, record in enumerate(ended, 1):
        if record.state == "reused":
            log.write("job_reused", job=record.name, digest=record.digest)
        else:
            _log_failed(log, record.name, record.digest, Report("failed", record.message, record.exit_code))
        tell(record, number, len(records))


def _log_failed(log: EventLog, name: str, digest: str, report: Report) -> None:
    values = {"state": report.state, "exit_code": report.exit_code, "message": report.message}
    log.write("job_failed", job=name, digest=digest, **values)


def _record(named: NamedJob) -> Record:
    try:
        return Record(named.name, named.job.model, job_digest(named.job))
    except GraphpruneError as error:
        return Record(named.name, named.job.model, "", "failed", str(error), int(error.exit_code))


def _is_result(folder: Path) -> bool:
    """Whether a folder has a result; one that somebody has broken is thrown away."""
    if not folder.exists():
        return False
    if read_result(folder) is not None and (folder / MODEL).is_file():
        return True
    shutil.rmtree(folder)
    return False


def _run(place: Engine, tasks: list[Task], records: list[Record], retries: int, log: EventLog, tell: Tell) -> None:
    """Do the tasks; those whose process died are begun again, at most `retries` times."""
    owners: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        owners[record.digest].append(record)
    ended = sum(record.state != "waiting" for record in records)
    for task in tasks:
        place.submit(task)
    left = len(tasks)
    while left:
        task, report = place.ended()
        if report.state == "died" and task.attempt <= retries and not _is_result(task.result):
            log.write("job_retried", job=task.name, digest=task.digest, message=report.message)
            place.submit(replace(task, attempt=task.attempt + 1))
            continue
        left -= 1
        report = _settled(task, report, log)
        for record in owners[task.digest]:
            record.state, record.message, record.exit_code = report.state, report.message, report.exit_code
            record.attempts = task.attempt
            ended += 1
            tell(record, ended, len(records))


def _settled(task: Task, report: Report, log: EventLog) -> Report:
    """The report as it counts: what is in its place is done, even if the process died right after."""
    if _is_result(task.result):
        return Report("done")
    if report.state == "done":
        report = Report("failed", f"its result is not in {task.result}", 1)
    _log_failed(log, task.name, task.digest, report)
    return report


def _read_result(record: Record, folder: Path) -> None:
    """Fill in the figures of a job that has a result."""
    if not record.succeeded:
        return
    record.folder = f"results/{record.digest}"
    found = read_result(folder / record.folder) or {}
    for kind in ("macs", "params"):
        before, after = (found.get(when, {}).get(kind, 0) for when in ("before", "after"))
        setattr(record, kind, after / before if before else 1.0)
    record.accuracy = found.get("accuracy", {}).get("after")
    record.latency_ms = found.get("latency", {}).get("after", {}).get("median_ms")
    record.seconds = found.get("seconds")


def _mark_front(records: list[Record]) -> None:
    """Say which jobs of each model no other one beats: less latency (MACs where that was not measured), more accuracy."""
    models = defaultdict(list)
    for record in records:
        if record.succeeded and record.accuracy is not None:
            models[record.model].append(record)
    for group in models.values():
        timed = all(record.latency_ms is not None for record in group)
        points = [(float((r.latency_ms if timed else r.macs) or 0), -float(r.accuracy or 0)) for r in group]
        for record, (cost, loss) in zip(group, points, strict=True):
            record.pareto = not any(c <= cost and d <= loss and (c, d) != (cost, loss) for c, d in points)
