"""The verb `export`: a model for one runtime, by the exporters that are registered.  Start reading at `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import registry
from .errors import UsageError
from .terminal import JSON, MODEL, SHAPE, check_outputs, files_read, json_path, progress, report, sizes_of_inputs


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=MODEL, required=True, help="The file to write; some formats write others beside it.")
@click.option("--format", "spec", metavar="SPEC", help="A name, with options where it has some; by default chosen by the suffix.")
@SHAPE
@JSON
def export(model: str, output: Path, spec: str | None, shapes: tuple[str, ...], json_to: str | None) -> None:
    """Write a model for a runtime, checked against the ONNX model; `graphprune list exporters` has the formats."""
    from .pipeline import load_whole
    from .tables import exported_table

    sizes = sizes_of_inputs(shapes)
    spec = spec or format_of(output)
    exporter = registry.make("exporters", spec)
    exporter.check(output)
    check_outputs([*exporter.files(output), json_path(json_to)], lambda: files_read(model))
    with progress(f"exporting for {exporter.name}"):
        graph = load_whole(model, sizes)
        written = exporter.write(graph.model, output)
    facts: dict[str, Any] = {
        "format": spec,
        "files": {str(path): path.stat().st_size for path in written.files},
        "difference": written.difference,
    }
    report([exported_table(facts)], lambda: facts, json_to)


def format_of(path: Path) -> str:
    """The format that a file's suffix names: where several write such files, the one that is called like the suffix.

    Raises UsageError where there is none, or no way to choose.
    """
    named = path.suffix.removeprefix(".")
    if named in registry.registered("exporters"):
        return named
    writers = {name: registry.load("exporters", name).suffixes for name in sorted(registry.registered("exporters"))}
    fitting = [name for name, suffixes in writers.items() if path.suffix in suffixes]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"{path}: several formats write {path.suffix} files ({', '.join(fitting)}): choose one by --format")
    known = "; ".join(f"{name}: {', '.join(suffixes)}" for name, suffixes in writers.items() if suffixes)
    raise UsageError(f"{path}: no format writes files that end like this; give --format, or another suffix ({known})")
