"""The verb `compile`: a library for one processor.  Start reading at `compile_`."""

from __future__ import annotations

from pathlib import Path

import click

from . import registry
from .terminal import JSON, MODEL, NUMBER, SHAPE, check_outputs, files_read, json_path, progress, report, sizes_of_inputs


@click.command("compile")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=MODEL, required=True, metavar="LIBRARY", help="NAME.so, or NAME.tar with object files.")
@click.option("--target", default="native", show_default=True, metavar="SPEC", help="A name, or a TVM target as JSON.")
@click.option("--threads", default=0, show_default=True, type=NUMBER, help="Cores the code is meant for; 0: open.")
@click.option("--tune-trials", default=0, show_default=True, type=NUMBER, help="Search schedules for so many trials.")
@click.option("--tune-seconds", default=0.0, show_default=True, type=click.FloatRange(min=0), help="... or for so long.")
@click.option("--tuning-database", type=MODEL, metavar="DIR", help="Kept and reused; tuning goes on where it stopped.")
@SHAPE
@JSON
def compile_(
    model: Path,
    output: Path,
    target: str,
    threads: int,
    tune_trials: int,
    tune_seconds: float,
    tuning_database: Path | None,
    shapes: tuple[str, ...],
    json_to: str | None,
) -> None:
    """Compile a model to a library for one processor (extra tvm), and compare it with ONNX Runtime."""
    from . import tables
    from .pipeline import load_whole

    sizes = sizes_of_inputs(shapes)
    exporter = registry.load("exporters", "tvm")(
        target=target,
        threads=threads,
        tune_trials=tune_trials,
        tune_seconds=tune_seconds,
        database="" if tuning_database is None else str(tuning_database),
    )
    check_outputs([*exporter.files(output), json_path(json_to)], lambda: files_read(model))
    with progress("reading and normalising") as bar:
        exporter.check(output)
        graph = load_whole(model, sizes)
        compiled = exporter.compile(graph, output, bar.describe)
    report([tables.compiled_table(compiled.as_dict())], compiled.as_dict, json_to)
