"""The verb `view`: the groups of a model, to look at in a browser.  Start reading at `view`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Experts, Normalization
from .terminal import (
    EXPERTS,
    MODEL,
    NORMALIZATION,
    SHAPE,
    check_outputs,
    circumstances,
    files_read,
    model_name,
    progress,
    sizes_of_inputs,
    write_text,
)


@click.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=MODEL, help="The HTML file; by default MODEL with the ending .html, in this folder.")
@NORMALIZATION
@EXPERTS
@SHAPE
def view(model: Path, output: Path | None, normalization: Normalization, experts: Experts, shapes: tuple[str, ...]) -> None:
    """Draw the groups of coupled channels, to look at in a browser; one HTML file."""
    from . import pipeline
    from .cost import CostModel
    from .report import analysis_page

    output = output or Path(Path(model_name(model)).stem + ".html")
    check_outputs([output], lambda: files_read(model))
    run = circumstances()
    with progress("analysing"):
        analysis = pipeline.analyze(model, sizes_of_inputs(shapes), normalization, experts)
        page = analysis_page(analysis, CostModel(analysis).original, model_name(model), run)
    write_text(output, page)
    click.echo(f"{output}: {len(analysis.groups)} groups; open it in a browser")
