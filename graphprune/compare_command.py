"""The verb `compare`: recipes side by side.  Start reading at `compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .options import Options
from .registry import specs_of
from .terminal import (
    EXPERTS,
    JSON,
    MODEL,
    NORMALIZATION,
    NUMBER,
    REPORT,
    SHAPE,
    THREADS,
    check_outputs,
    circumstances,
    files_read,
    json_path,
    model_name,
    progress,
    report,
    sizes_of_inputs,
    write_text,
)


@click.command()
@click.argument("model", type=MODEL)
@click.option("--recipes", default="fast,balanced", show_default=True, help="Names, or IMPORTANCE/SELECTION/REPAIR.")
@click.option("--target", "targets", multiple=True, default=("macs=0.9", "macs=0.7", "macs=0.5"), show_default=True)
@click.option("--eval", "eval_from", type=MODEL, required=True, metavar="FILE.npz", help="Labelled samples to report on.")
@click.option("--calibration", "calibration_from", type=MODEL, metavar="FILE.npz", help="Unlabelled samples to choose on.")
@click.option("--align", default=str(Options.align), show_default=True, metavar="auto|N", help="Step of channel counts.")
@click.option("--keep", multiple=True, metavar="REGEX", help="Leave matching groups, tensors or nodes as they are.")
@click.option("--seed", default=Options.seed, show_default=True, type=NUMBER, help="For random scores and samples.")
@click.option("--threads", default=1, show_default=True, type=THREADS, help="For the latency.")
@click.option("--plot", "plot_to", type=MODEL, metavar="FILE.svg|png|pdf", help="Draw the curves (extra plots).")
@REPORT
@NORMALIZATION
@EXPERTS
@SHAPE
@JSON
def compare(
    model: Path,
    recipes: str,
    targets: tuple[str, ...],
    eval_from: Path,
    calibration_from: Path | None,
    threads: int,
    plot_to: Path | None,
    report_to: Path | None,
    shapes: tuple[str, ...],
    json_to: str | None,
    **options: Any,
) -> None:
    """Compare recipes, with random and uniform magnitude always among them, on data that was not chosen on."""
    from . import charts, comparison, pipeline, tables
    from .evaluation import labelled_samples
    from .samples import read_samples

    check_outputs([plot_to, report_to, json_path(json_to)], lambda: [eval_from, calibration_from, *files_read(model)])
    run = circumstances() if report_to else {}
    if plot_to is not None:
        charts.check_chart(plot_to)
    sizes = sizes_of_inputs(shapes)
    with progress("comparing") as bar:
        graph = pipeline.load(model, sizes)
        calibration = None if calibration_from is None else read_samples(calibration_from, graph)
        common = Options(**options, calibration=calibration)
        names = [name for name in specs_of(recipes, ",") if name]
        found = comparison.compare(
            graph, names, targets, labelled_samples(eval_from, graph), common, sizes, threads, bar.describe
        )
    if plot_to is not None:
        charts.comparison_chart(found, plot_to)
    if report_to is not None:
        from .report import comparison_page

        write_text(report_to, comparison_page(found, model_name(model), run))
    report([tables.comparison_table(found)], lambda: asdict(found), json_to)
