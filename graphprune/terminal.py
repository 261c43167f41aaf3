"""What the verbs share: progress on standard error, results as tables or JSON, checks of paths and shapes.

Start reading at `report`.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .errors import UsageError
from .json_text import json_text
from .options import MOST, MOST_THREADS, Options

if TYPE_CHECKING:
    from rich.table import Table

MODEL = click.Path(path_type=Path)

COUNT = click.IntRange(min=1)
NUMBER = click.IntRange(min=0, max=MOST)
JSON = click.option("--json", "json_to", metavar="FILE|-", help="Also write the result as JSON; '-' is standard output.")
THREADS = click.IntRange(min=0, max=MOST_THREADS)
REPORT = click.option("--report", "report_to", type=MODEL, metavar="FILE.html", help="Also write a report: one HTML file.")
NORMALIZATION = click.option(
    "--normalization",
    type=click.Choice(["pin", "kept"]),
    default=Options.normalization,
    show_default=True,
    help="Channels that a normalisation averages over: pinned, or prunable with statistics over those that are kept.",
)
EXPERTS = click.option(
    "--experts",
    type=click.Choice(["keep", "prune"]),
    default=Options.experts,
    show_default=True,
    help="Experts of a mixture: all stay, or some may leave, never to be chosen.",
)
SHAPE = click.option(
    "--input-shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="Size of an input with dynamic dimensions."
)


def some_text(value: str) -> str:
    """An option that says something: an empty one is most likely a variable of a script that nobody set."""
    if not value.strip():
        raise click.BadParameter("it is empty")
    return value


class Bar(NamedTuple):
    """A progress display: say what is going on, and that one more step is done."""

    describe: Callable[[str], None] = lambda text: None
    advance: Callable[[], None] = lambda: None


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Bar]:
    """A progress display on standard error; silent where that is no terminal."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(what, total=total)
        yield Bar(lambda text: display.update(task, description=text), partial(display.advance, task))


def report(tables: list[Table], result: Callable[[], dict[str, Any]], json_to: str | None) -> None:
    """Tables to standard output, or JSON where that was asked for."""
    write_json(result, json_to)
    if json_to == "-":
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    for table in tables:
        console.print(table)


def write_json(result: Callable[[], dict[str, Any]], json_to: str | None) -> None:
    """JSON to a file, or to standard output for `-`."""
    if json_to is None:
        return
    text = json_text(result())
    if json_to == "-":
        click.echo(text, nl=False)
    else:
        write_text(Path(json_to), text)


def write_text(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    from .atomic import atomic_file

    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def json_path(json_to: str | None) -> Path | None:
    """The file that JSON goes to, if it is one."""
    return None if json_to in (None, "-") else Path(str(json_to))


def without_passwords(text: str) -> str:
    """A text in which URIs have no user and password, for messages and reports."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def check_output(path: Path | None) -> None:
    """Refuse a folder that cannot be written before the long work starts."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot write there")
    from .archives import check_regular

    check_regular(path, UsageError)


def check_outputs(outputs: Iterable[Path | None], inputs: Callable[[], Iterable[str | Path | None]]) -> None:
    """As `check_output` for several files; refuse those that are the same, and those that are read as well.

    What is read is asked for only where a file is there that would be written over.
    """
    written: dict[Path, Path] = {}
    for path in outputs:
        check_output(path)
        if path is None:
            continue
        if path.resolve() in written:
            raise UsageError(f"{path}: two results would be written there; give each a file of its own")
        written[path.resolve()] = path
    if not any(path.exists() for path in written):
        return
    for each in inputs():
        if each is not None and (path := written.get(Path(each).resolve())) is not None:
            raise UsageError(f"{path}: this command reads it; write the result to another file")


def files_read(*models: str | Path) -> list[Path]:
    """The files of models, each model's own first; of an ONNX file also those with its weights."""
    return [path for model in models for path in _files_of(Path(model))]


def files_read_but(replaced: Sequence[Path], model: str | Path, written: Sequence[Path | None]) -> list[Path]:
    """The files of a model, without those that are `replaced` where the first of them is the model itself.

    Weights are in the model's folder: where nothing is written there, it need not be looked through for their names.
    """
    own = Path(model).resolve()
    if not any(path is not None and path.resolve().is_relative_to(own.parent) for path in written):
        return [Path(model)]
    places = {path.resolve() for path in replaced}
    found = files_read(model)
    return [path for path in found if path.resolve() not in places] if own == replaced[0].resolve() else found


def _files_of(model: Path) -> list[Path]:
    from .companion_files import files_of

    try:
        return files_of(model)
    except OSError:  # an import string, or what reading will say
        return [model]


def file_size(path: Path) -> int:
    """The size of an ONNX file with its external data."""
    from .companion_files import files_of

    return total_size(files_of(path))


def total_size(files: Iterable[Path]) -> int:
    """The size of some files."""
    return sum(each.stat().st_size for each in files)


def model_name(path: Path) -> str:
    """What a report calls a model: the name of its file, or the import string as it is."""
    return path.name or str(path)


def source_size(path: Path, model: Any) -> int:
    """The size of an ONNX file; for a model of another framework that of what it was converted to."""
    from .model_file import serialised_size, weight_bytes

    if path.suffix != ".onnx":
        return serialised_size(model)
    own = path.stat().st_size
    return own if own >= weight_bytes(model) else file_size(path)  # weights that are all inside need no look at others


_SIZE = re.compile("0*[1-9][0-9]{0,17}")
"""A size that fits 64 bits."""


def sizes_of_inputs(texts: tuple[str, ...]) -> dict[str, list[int]]:
    """The sizes that `NAME=1,3,224,224` gives for each input.  Raises UsageError on syntax."""
    shapes = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        parts = sizes.split(",")
        if not equals or not all(_SIZE.fullmatch(part.strip()) for part in parts):
            raise UsageError(f"--input-shape {text!r} is not of the form NAME=1,3,224,224")
        shapes[name] = [int(part) for part in parts]
    return shapes


def named_repairs(specs: tuple[str, ...]) -> tuple[str, ...] | None:
    """The repair passes that were named; none at all for `none`, the recipe's for nothing."""
    return tuple(spec for spec in specs if spec != "none") if specs else None


def circumstances() -> dict[str, str]:
    """When, where and by which command: for reports."""
    from .environment import environment

    return environment(without_passwords(shlex.join(["graphprune", *sys.argv[1:]])))
