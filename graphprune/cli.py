"""The command line: `graphprune VERB ...` (design section 8, docs/command-line.md).

Nothing but the result goes to standard output; progress and errors go to standard error.  Every error that a user can cause
ends with its documented exit code and without a traceback.  Start reading at `prune`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import click

from . import registry
from .configuration_commands import CONFIG, SAVE_CONFIG, config_beside, config_read, write_config
from .errors import ExitCode, GraphpruneError
from .limits import RAISE
from .log_command import EXPERIMENT, MLFLOW, log_run, server_of
from .options import Experts, Masks, Mode, Normalization, Options
from .terminal import (
    COUNT,
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
    file_size,
    files_read,
    files_read_but,
    json_path,
    model_name,
    named_repairs,
    progress,
    report,
    sizes_of_inputs,
    some_text,
    total_size,
    write_json,
    write_text,
)
from .version import VERSION

DEFAULTS = Options()
KINDS = ["importance", "selection", "repair", "importers", "exporters", "backends", "operators"]

ELSEWHERE = {
    "batch": "batch_command:batch",
    "compare": "compare_command:compare",
    "compile": "compile_command:compile_",
    "export": "export_command:export",
    "init": "configuration_commands:init",
    "inspect": "configuration_commands:inspect",
    "log": "log_command:log",
    "schema": "configuration_commands:schema",
    "view": "view_command:view",
}
"""Verbs in modules of their own, read when they are called."""


class Commands(click.Group):
    """A click group that turns graphprune's errors into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all verbs."""
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb by its name."""
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = ELSEWHERE[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"graphprune.{module}"), name)
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; never lets a traceback out unless GRAPHPRUNE_DEBUG is set."""
        try:
            return super().main(*args, **kwargs)
        except GraphpruneError as error:
            _fail(str(error), error.exit_code)
        except MemoryError:
            _fail(f"out of memory: the model needs more than its size allows ({RAISE})", ExitCode.INVALID_MODEL)
        except RecursionError:
            _fail("the model is nested too deeply", ExitCode.INVALID_MODEL)
        except Exception as error:
            _blame_models(sys.argv[1:] if kwargs.get("args") is None else kwargs["args"])
            if os.environ.get("GRAPHPRUNE_DEBUG"):
                traceback.print_exc()
            _fail(f"internal error ({type(error).__name__}: {error}); set GRAPHPRUNE_DEBUG=1 for details", ExitCode.INTERNAL)


def _blame_models(arguments: Sequence[str]) -> None:
    """End with the exit code of an unreadable model where a model on the command line is unsound."""
    from .soundness import unsound

    for argument in arguments:
        reason = unsound(Path(argument))
        if reason is not None:
            _fail(reason, ExitCode.INVALID_MODEL)


def _fail(message: str, code: ExitCode) -> None:
    click.echo(f"graphprune: error: {message}", err=True)
    sys.exit(int(code))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(VERSION, prog_name="graphprune")
def main() -> None:
    """A structured pruning compiler over ONNX: a trained network goes in, a smaller and proven one comes out."""


# ---- verbs --------------------------------------------------------------------------------------


@main.command("import")
@click.argument("source")
@click.option("-o", "--output", type=MODEL, required=True, help="The normalised ONNX file.")
@click.option("--format", "format_", help="The source's framework; by default recognised.")
@SHAPE
def import_(source: str, output: Path, format_: str | None, shapes: tuple[str, ...]) -> None:
    """Normalise a model; names in a plan are names in this file."""
    from .branches import with_branches
    from .pipeline import load_fixed
    from .unread_weights import with_types_of_file

    written = _exporter().files(output)
    check_outputs(written, lambda: files_read_but(written, source, written))
    sizes = sizes_of_inputs(shapes)
    with progress("importing"):
        graph = load_fixed(source, sizes, format_)
    _exporter().write(with_types_of_file(with_branches(graph.model)), output)
    click.echo(f"{output}: {len(graph.nodes)} nodes, {len(graph.initializers)} initializers")
    if graph.given is not None and graph.given.reservation:
        click.echo(graph.given.reservation)


@main.command()
@click.argument("model", type=MODEL)
@NORMALIZATION
@EXPERTS
@SHAPE
@JSON
def analyze(model: Path, normalization: Normalization, experts: Experts, shapes: tuple[str, ...], json_to: str | None) -> None:
    """Show groups of coupled channels, and what is pinned and why; changes nothing."""
    from . import pipeline
    from .cost import CostModel

    check_outputs([json_path(json_to)], lambda: files_read(model))
    with progress("analysing"):
        analysis = pipeline.analyze(model, sizes_of_inputs(shapes), normalization, experts)
        cost = CostModel(analysis).original
    from . import tables

    shown = [tables.analysis_table(analysis), tables.pinned_table(analysis), tables.cost_table(cost)]
    report(shown, lambda: tables.analysis_json(analysis, cost), json_to)


@main.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=MODEL, required=True, help="The pruned ONNX file.")
@CONFIG
@SAVE_CONFIG
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="KIND=VALUE",
    help="macs=0.5, params=300K, bytes=2MB, channels=0.7, latency=8ms.",
)
@click.option("--recipe", default=DEFAULTS.recipe, metavar="fast|balanced|depth|best", help="Names the passes left open.")
@click.option("--importance", default=DEFAULTS.importance, metavar="SPEC", help="How channels are scored.")
@click.option("--selection", default=DEFAULTS.selection, metavar="SPEC", help="How the budget is spread.")
@click.option("--repair", multiple=True, metavar="SPEC|none", help="How weights make up for what left; repeat for several.")
@click.option("--calibration", type=some_text, metavar="FILE.npz|random", help="Unlabelled samples; keys are the input names.")
@click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default=DEFAULTS.mode,
    show_default=True,
    help="Whether all readers of a value drop the same channels, or each its own.",
)
@click.option(
    "--masks",
    type=click.Choice(get_args(Masks)),
    default=DEFAULTS.masks,
    show_default=True,
    help="With --mode unconstrained: one ranking of channels for all readers, or one each.",
)
@click.option("--align", default=str(DEFAULTS.align), show_default=True, metavar="auto|N", help="Step of channel counts.")
@click.option("--keep", multiple=True, metavar="REGEX", help="Leave matching groups, tensors or nodes as they are.")
@click.option("--ratio", "ratios", multiple=True, metavar="REGEX=VALUE", help="Keep this share of matching layers' outputs.")
@click.option(
    "--min-channels",
    default=DEFAULTS.min_channels,
    show_default=True,
    type=NUMBER,
    help="No group gets smaller; with 0 whole residual branches may leave.",
)
@click.option("--seed", default=DEFAULTS.seed, show_default=True, type=NUMBER, help="For the proof and random scores.")
@click.option("--plan", "plan_to", type=MODEL, help="Write the plan: what was kept of every group.")
@click.option(
    "--eval", type=some_text, metavar="FILE.npz|MODULE:FUNCTION", help="Measure accuracy: on labelled samples, or by a function."
)
@click.option("--measure/--no-measure", help="Measure latency before and after.")
@click.option("--threads", default=1, show_default=True, type=THREADS, help="For latency; 0: the runtime decides.")
@click.option("--require", type=some_text, metavar="METRIC<=VALUE,...", help="Write nothing, exit code 8, where this is not met.")
@REPORT
@NORMALIZATION
@EXPERTS
@click.option(
    "--on-unsupported",
    type=click.Choice(["pin", "error"]),
    default=DEFAULTS.on_unsupported,
    show_default=True,
    help="What becomes of operators without a rule.",
)
@click.option("--verify/--no-verify", default=DEFAULTS.verify, help="Prove the result, or do not.")
@click.option("--events", type=MODEL, metavar="FILE", help="Append what happens, as JSON lines, while it happens.")
@MLFLOW
@EXPERIMENT
@SHAPE
@JSON
def prune(
    model: Path,
    output: Path,
    save_config: Path | None,
    plan_to: Path | None,
    report_to: Path | None,
    json_to: str | None,
    shapes: tuple[str, ...],
    eval: str | None,
    measure: bool,
    require: str | None,
    repair: tuple[str, ...],
    events: Path | None,
    mlflow: str | None,
    mlflow_experiment: str,
    **options: Any,
) -> None:
    """Prune a model to a target and prove that the result equals the masked original."""
    from . import run as runs
    from . import tables
    from .plan import weights_path
    from .stages import recorded

    files = {"output": output, "plan": plan_to, "report": report_to, "save-config": save_config or config_beside(output)}
    written, models = [path for path in files.values() if path is not None], _exporter().files(output)
    results = [*written, *models[1:], plan_to and weights_path(plan_to), events, json_path(json_to)]
    check_outputs(results, lambda: [eval, options["calibration"], config_read(), *files_read_but(models, model, results)])
    server = server_of(mlflow, mlflow_experiment)
    where = circumstances() if report_to else {}
    job = runs.Job(str(model), Options(**options, repair=named_repairs(repair)), shapes, eval, measure, require or "")
    with recorded(events, job) as recorder:
        with progress("pruning") as bar:
            step = recorder.also(bar.describe)
            outcome = runs.run(job, step)
            times = runs.layer_times(job, outcome, step) if report_to else None
        model_files = () if outcome.unmet else outcome.write(output, plan_to)
        if not outcome.unmet:
            write_config(job, files)
        sizes = outcome.sizes(model_files)
        if report_to is not None and not outcome.unmet:
            from .report import prune_page

            name = model_name(model)
            write_text(report_to, prune_page(outcome.result, name, sizes, where, outcome.latency, outcome.accuracies, times))
        shown = [tables.prune_table(outcome.result, sizes, outcome.latency, outcome.accuracies)]
        shown += [tables.requirements_table(outcome.requirements)] if outcome.requirements else []
        report(shown, lambda: outcome.as_json(sizes), json_to)
        if json_to != "-":
            click.echo(tables.recipe_line(outcome.result))
            if outcome.result.proof is not None:
                click.echo(str(outcome.result.proof))
            if not outcome.unmet:
                click.echo(f"wrote {', '.join(map(str, written))}")
        if server is not None:
            recorder("logging")
            log_run(outcome, job, server, output, recorder.seconds, None if outcome.unmet else report_to)
        outcome.check()
        recorder.finished(outcome.as_json(sizes))


@main.command()
@click.argument("model", type=MODEL)
@click.argument("plan", type=MODEL)
@click.option("-o", "--output", type=MODEL, required=True, help="The pruned ONNX file.")
@click.option("--no-verify", is_flag=True, help="Leave out the proof.")
@JSON
def apply(model: Path, plan: Path, output: Path, no_verify: bool, json_to: str | None) -> None:
    """Replay a plan: the same bytes as the run that wrote it."""
    from . import pipeline
    from .plan import read_plan, read_weights, weights_path
    from .run import write_pruned

    models = _exporter().files(output)
    written = [*models, json_path(json_to)]
    check_outputs(written, lambda: [plan, weights_path(plan), *files_read_but(models, model, written)])
    before = file_size(model)
    with progress("applying the plan"):
        result = pipeline.apply_plan(model, read_plan(plan), not no_verify, read_weights(plan))
    files = write_pruned(result, output)
    from . import tables

    sizes = before, total_size(files)
    report([tables.prune_table(result, sizes)], lambda: tables.prune_json(result, sizes), json_to)
    if json_to != "-" and result.proof is not None:
        click.echo(str(result.proof))


@main.command()
@click.argument("model", type=MODEL)
@click.argument("plan", type=MODEL)
@click.argument("pruned", type=MODEL)
@click.option("--seed", default=0, show_default=True, type=NUMBER, help="For the random inputs.")
@SHAPE
@JSON
def verify(model: Path, plan: Path, pruned: Path, seed: int, shapes: tuple[str, ...], json_to: str | None) -> None:
    """Prove that a pruned model equals the masked original."""
    from . import pipeline
    from .plan import read_plan, read_weights, weights_path

    check_outputs([json_path(json_to)], lambda: [plan, weights_path(plan), *files_read(model, pruned)])
    with progress("proving"):
        proof = pipeline.verify(model, read_plan(plan), pruned, seed, sizes_of_inputs(shapes), read_weights(plan))
    write_json(lambda: asdict(proof), json_to)
    if json_to != "-":
        click.echo(str(proof))
    if not proof.passed:
        sys.exit(int(ExitCode.PROOF_FAILED))


@main.command()
@click.argument("models", nargs=-1, required=True, type=MODEL)
@click.option("--backend", default="onnxruntime", show_default=True, metavar="NAME", help="Also: openvino, tvm (extras).")
@click.option("--threads", default=1, show_default=True, type=THREADS, help="0: the runtime decides.")
@click.option("--batch", default=1, show_default=True, type=COUNT, help="For models with a dynamic batch.")
@SHAPE
@JSON
def bench(models: tuple[Path, ...], backend: str, threads: int, batch: int, shapes: tuple[str, ...], json_to: str | None) -> None:
    """Measure the latency of models, interleaved, with spread."""
    from . import bench as benchmark
    from . import tables
    from .model_file import read_model

    check_outputs([json_path(json_to)], lambda: files_read(*models))
    input_shapes = sizes_of_inputs(shapes)
    with progress("measuring", total=benchmark.ROUNDS) as bar:
        loaded = [read_model(path) for path in models]
        latencies = benchmark.measure(loaded, threads, batch, input_shapes, tick=bar.advance, backend=backend)
    result = {"backend": backend, "models": [{"model": str(p), **t.as_dict()} for p, t in zip(models, latencies, strict=True)]}
    report([tables.bench_table([str(path) for path in models], latencies, backend)], lambda: result, json_to)


@main.command()
@click.argument("model", type=MODEL)
@click.argument("pruned", type=MODEL)
@JSON
def diff(model: Path, pruned: Path, json_to: str | None) -> None:
    """Compare two models layer by layer."""
    from . import pipeline, tables
    from .difference import compare

    check_outputs([json_path(json_to)], lambda: files_read(model, pruned))
    with progress("comparing"):
        difference = compare(pipeline.load(model), pipeline.load(pruned))
    report([tables.difference_table(difference)], lambda: asdict(difference), json_to)


@main.command("list")
@click.argument("kind", required=False, type=click.Choice(KINDS))
def list_(kind: str | None) -> None:
    """List passes, importers, exporters, backends or operators, with their options and defaults."""
    from .operators import operator_table

    for each in [kind] if kind else KINDS:
        if not kind:
            click.echo(f"{each}:")
        indent = "" if kind else "  "
        if each == "operators":
            for name, entry in sorted(operator_table().items()):
                click.echo(f"{indent}{name:<28} {entry.rule}")
            continue
        for name in sorted(registry.registered(each)):
            spec, text = registry.describe(each, name)
            click.echo(f"{indent}{spec:<60} {text}")


def _exporter() -> Any:
    return registry.load("exporters", "onnx")()


if __name__ == "__main__":
    main()
