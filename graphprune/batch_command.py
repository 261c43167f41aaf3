"""The verb `batch`.  Start reading at `batch`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import JobsFailedError, LoggingError, UsageError
from .log_command import EXPERIMENT, MLFLOW, log_results, server_of
from .terminal import check_outputs, json_path, report

if TYPE_CHECKING:
    from rich.table import Table

    from .batch import Record, Tell
    from .jobs import Batch
    from .tracking import Server

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("jobs", type=FILE)
@click.option("-o", "--output", type=FILE, help="Folder of the results; by default JOBS.results beside the file.")
@click.option("--engine", default="local", show_default=True, help="Where jobs run: local, ray, or a plugin's.")
@click.option("--workers", type=click.IntRange(min=1), help="Jobs at once; by default one, or half of the processors.")
@click.option("--resume", is_flag=True, help="Go on in a folder that has results.")
@click.option("--dry-run", is_flag=True, help="List the jobs, and do none.")
@MLFLOW
@EXPERIMENT
@click.option("--json", "json_to", metavar="FILE|-", help="Also write the result as JSON; '-' is standard output.")
def batch(
    jobs: Path,
    output: Path | None,
    engine: str,
    workers: int | None,
    resume: bool,
    dry_run: bool,
    mlflow: str | None,
    mlflow_experiment: str,
    json_to: str | None,
) -> None:
    """Run many pruning jobs; each is done once, whatever happens."""
    from .batch import Record, run_batch
    from .jobs import read_jobs

    found = read_jobs(jobs)
    read = {each for named in found.jobs for each in (named.job.model, named.job.eval, named.job.options.calibration)}
    check_outputs([json_path(json_to)], lambda: [jobs, *read])
    folder = output or jobs.with_suffix(".results")
    server = None if dry_run else server_of(mlflow, mlflow_experiment)
    if dry_run:
        records = [Record(each.name, each.job.model, "") for each in found.jobs]
    else:
        if (folder / "events.jsonl").exists() and not resume:
            raise UsageError(f"{folder}: has results of an earlier batch; --resume goes on there, or give another -o")
        with _progress(len(found.jobs)) as tell:
            records = run_batch(found, folder, engine, workers or _workers(found), tell)
    report([_table(records)], lambda: {"folder": str(folder), "jobs": [asdict(record) for record in records]}, json_to)
    unlogged = _log(records, folder, server)
    failed = [] if dry_run else [record for record in records if not record.succeeded]
    if failed:
        first = f"{failed[0].name}: {failed[0].message}"
        raise JobsFailedError(f"{len(failed)} of {len(records)} jobs failed, the first: {first}")
    if unlogged is not None:
        raise unlogged


def _log(records: list[Record], folder: Path, server: Server | None) -> LoggingError | None:
    """Log all results to a server, if there is one; the error that stopped this, which is also shown."""
    places = sorted({folder / record.folder for record in records if record.succeeded})
    try:
        for _ in log_results(places, server) if server is not None else ():
            pass
    except LoggingError as error:
        advice = f"the results are in {folder}; --resume, or graphprune log {folder}, logs what is left"
        click.echo(f"graphprune: warning: {error}; {advice}", err=True)
        return error
    return None


def _workers(batch: Batch) -> int:
    """One where latency is measured, which other jobs would disturb; else half of the processors, since each job uses several."""
    if any(each.job.measures for each in batch.jobs):
        return 1
    return max(1, len(os.sched_getaffinity(0)) // 2)


@contextmanager
def _progress(total: int) -> Iterator[Tell]:
    """A live display on standard error; where that is no terminal, a line for each job that ended."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("running", total=total)
        failed = 0

        def tell(record: Record, ended: int, total: int) -> None:
            nonlocal failed
            failed += not record.succeeded
            bar.update(shown, completed=ended, description=f"running, {failed} failed" if failed else "running")
            if not console.is_terminal or not record.succeeded:
                what = _printable(f"[{ended}/{total}] {record.name}: {record.state} {record.message}".rstrip())
                console.print(what, markup=False, highlight=False, soft_wrap=True)

        yield tell


def _table(records: list[Record]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="jobs", title_justify="left")
    for name in ("job", "state", "MACs", "params", "latency", "accuracy", "front", "time", "result"):
        table.add_column(name, justify="left" if name in ("job", "state", "result") else "right", overflow="fold")
    for record in records:
        shares = (_share(record.macs), _share(record.params))
        latency = "" if record.latency_ms is None else f"{record.latency_ms:.3g} ms"
        accuracy = "" if record.accuracy is None else f"{record.accuracy:.2%}"
        seconds = "" if record.seconds is None else f"{record.seconds:.1f} s"
        rest = latency, accuracy, "*" if record.pareto else "", seconds, Text(_printable(record.folder or record.message))
        table.add_row(Text(_printable(record.name)), record.state, *shares, *rest)
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _printable(text: str) -> str:
    """Names of files may have any characters; a terminal should not obey them."""
    return "".join(char if char.isprintable() else "?" for char in text.replace("\n", "; "))
