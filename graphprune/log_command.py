"""The verb `log`, and how `prune` and `batch` log their results to MLflow.  Start reading at `log`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import LoggingError
from .terminal import MODEL, progress, some_text

if TYPE_CHECKING:
    from .run import Job, Outcome
    from .tracking import Server

EXPERIMENT = click.option("--mlflow-experiment", default="graphprune", show_default=True, help="The experiment of the runs.")
MLFLOW = click.option("--mlflow", type=some_text, metavar="URI", help="Log results to this MLflow server, too (extra mlflow).")


@click.command()
@click.argument("results", nargs=-1, required=True, type=MODEL)
@click.option(
    "--mlflow", "uri", type=some_text, envvar="MLFLOW_TRACKING_URI", show_envvar=True, required=True, help="The server."
)
@EXPERIMENT
def log(results: tuple[Path, ...], uri: str, mlflow_experiment: str) -> None:
    """Log folders of results, or of batches, to MLflow (extra mlflow); each result once."""
    from .result_folder import result_folders
    from .tracking import Server

    folders = [folder for path in results for folder in result_folders(path)]
    for folder, run in log_results(folders, Server(uri, mlflow_experiment)):
        click.echo(f"{folder}: run {run}")


def log_results(folders: Sequence[Path], server: Server) -> Iterator[tuple[Path, str]]:
    """Log folders of results; yields each with the id of its run.  Raises LoggingError at the first that cannot be logged."""
    from .tracking import log_result

    with progress("logging", total=len(folders)) as bar:
        for folder in folders:
            yield folder, log_result(folder, server)
            bar.advance()


def server_of(uri: str | None, experiment: str) -> Server | None:
    """The server that was named, if one was, and does answer.  Raises UsageError before any work is done, MissingExtraError."""
    if uri is None:
        return None
    from .tracking import Server, check_server

    server = Server(uri, experiment)
    check_server(server)
    return server


def log_run(outcome: Outcome, job: Job, server: Server, output: Path, seconds: float, report: Path | None) -> None:
    """Log one run; where that fails, what was to be logged is kept in a folder beside the output.

    Raises LoggingError, but where a requirement is not met: its exit code counts more.
    """
    from .result_folder import REPORT, write_result
    from .tracking import log_result

    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent, ignore_cleanup_errors=True) as name:
        folder, kept = Path(name), _free(output.with_name(output.name + ".unlogged"))
        folder.chmod(output.parent.stat().st_mode & 0o777)
        write_result(outcome, job, folder, kept, {"seconds": round(seconds, 3)})
        if report is not None:
            shutil.copyfile(report, folder / REPORT)
        try:
            log_result(folder, server)
        except LoggingError as error:
            os.rename(folder, kept)
            text = f"{error}. What was to be logged is in {kept}; later: graphprune log {kept} --mlflow {server}"
            if not outcome.unmet:
                raise LoggingError(f"{text}. The model is written") from error
            click.echo(f"graphprune: warning: {text}", err=True)


def _free(path: Path) -> Path:
    """The path, or the first of `PATH-2`, `PATH-3` ... that is not taken."""
    number = 1
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
