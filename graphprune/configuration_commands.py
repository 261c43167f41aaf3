"""The verbs around configurations and what models say about themselves: `init`, `schema` and `inspect`.

Start reading at `init`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import UsageError
from .terminal import check_output, check_outputs, files_read, json_path, progress, report, write_text

if TYPE_CHECKING:
    from .run import Job

MODEL = click.Path(path_type=Path)
KINDS = ("config", "batch", "plan", "events")
"""Files that have a schema."""

_EXAMPLES = 5
"""Groups that a new configuration names."""


def _defaults_from(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Take a configuration's values where the command line says nothing."""
    if path is None:
        return
    from .configuration import read_configuration

    values = read_configuration(path)
    names = {max(p.opts, key=len).removeprefix("--"): p.name for p in context.command.params}
    context.default_map = {str(names[key]): value for key, value in values.items()}
    context.obj = path


CONFIG = click.option(
    "--config", type=MODEL, is_eager=True, expose_value=False, callback=_defaults_from, help="Options from a YAML or TOML file."
)
SAVE_CONFIG = click.option(
    "--save-config", type=MODEL, help="Write all options of the run; with --config by default beside the output."
)


def config_read() -> Path | None:
    """The configuration that this run reads, if any."""
    source: Path | None = click.get_current_context().obj
    return source


def config_beside(output: Path) -> Path | None:
    """Where a run that reads a configuration writes all its options.  Raises UsageError where that is what it reads."""
    source = config_read()
    if source is None:
        return None
    beside = output.with_suffix(".config" + source.suffix)
    if beside.resolve() == source.resolve():
        raise UsageError(f"{beside}: all options of the run would overwrite the configuration; name another --save-config")
    return beside


def write_config(job: Job, files: dict[str, Path | None]) -> None:
    """Write all options of a run, with the files that it writes, to the one that `save-config` names, if any."""
    path = files.pop("save-config")
    if path is not None:
        from .configuration import rendered, values_of

        named = {key: str(value) for key, value in files.items() if value is not None}
        write_text(path, rendered(values_of(job) | named, path))


@click.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=MODEL, help="YAML, or TOML for the suffix .toml; by default standard output.")
def init(model: Path, output: Path | None) -> None:
    """Write a commented configuration for a model."""
    from . import pipeline

    check_output(output)
    if output is not None and output.exists():
        raise UsageError(f"{output}: is already there; give another -o, or remove it")
    with progress("analysing"):
        analysis = pipeline.analyze(model)
    groups = sorted(analysis.groups, key=lambda group: -group.size)[:_EXAMPLES]
    text = _commented(model, [(group.id, group.size) for group in groups], output or Path("configuration.yaml"))
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)


def _commented(model: Path, groups: list[tuple[str, int]], path: Path) -> str:
    """A configuration that sets what must be set, with all the rest as comments."""
    from .configuration import configuration, relative
    from .document import writer

    line = writer(path)
    pruned = model.with_name(re.split(r"[:.]", model.name)[0] + ".pruned.onnx")
    folder = path.parent.resolve()
    chosen: dict[str, Any] = {"model": relative("model", str(model), folder), "output": relative("output", str(pruned), folder)}
    chosen |= {"target": ["macs=0.5"], "recipe": "fast"}
    helps = option_helps()
    lines = [
        "# Options of a pruning run: graphprune prune --config FILE",
        "# Options on the command line win over this file.",
        "",
    ]
    for key in ("model", "output", "target", "recipe"):
        lines += [f"# {helps[key]}", line(key, chosen[key]), ""]
    for name, field in configuration().model_fields.items():
        key = field.alias or name
        if key in chosen:
            continue
        lines += [f"# {helps[key]}", *(_examples(line, key, groups) or ["# " + line(key, _default(key, field.default))]), ""]
    return "\n".join(lines)


def _examples(line: Callable[[str, Any], str], key: str, groups: list[tuple[str, int]]) -> list[str]:
    """Lines that name groups of this model."""
    if key not in ("keep", "ratio"):
        return []
    found = [(f"^{re.escape(name)}$", size) for name, size in groups]
    values = [(name if key == "keep" else f"{name}=0.5", size) for name, size in found]
    return [f"# {line(key, [value])}   # {size} units" for value, size in values]


def _default(key: str, default: Any) -> Any:
    shown: dict[str, Any] = {
        "calibration": "random",
        "eval": "eval.npz",
        "plan": "plan.json",
        "report": "report.html",
        "json": "result.json",
    }
    shown |= {"save-config": "all-options.yaml", "require": "macs<=50%", "input-shape": ["NAME=1,3,224,224"]}
    shown |= {"events": "events.jsonl", "mlflow": "http://localhost:5000"}
    shown |= {"importance": "path", "selection": "global", "repair": ["none"]}
    return shown.get(key, default)


def option_helps() -> dict[str, str]:
    """What the command line says about every key of a configuration."""
    from .cli import prune

    texts = {"model": "An ONNX file, or anything that an importer reads."}
    for parameter in prune.params:
        if isinstance(parameter, click.Option):
            texts[max(parameter.opts, key=len).removeprefix("--")] = parameter.help or ""
    return texts


@click.command()
@click.argument("kind", type=click.Choice(KINDS), default="config")
def schema(kind: str) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    click.echo(json.dumps(schema_of(kind), indent=2, sort_keys=True, ensure_ascii=False))


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of configurations, batches, plans or lines of event logs."""
    from pydantic import TypeAdapter

    if kind == "plan":
        from .plan import Plan

        found = TypeAdapter(Plan).json_schema()
    elif kind == "events":
        from .stages import events_schema

        found = events_schema()
    elif kind == "batch":
        from .jobs import batch_file

        found = batch_file().model_json_schema()
    else:
        from .configuration import configuration

        found = configuration().model_json_schema()
    for part in (found, *found.get("$defs", {}).values()) if kind in ("config", "batch") else ():
        for key, entry in part.get("properties", {}).items():
            entry.pop("title", None)
            if key in option_helps() and "description" not in entry:
                entry["description"] = option_helps()[key]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


@click.command()
@click.argument("model", type=MODEL)
@click.option("--json", "json_to", metavar="FILE|-", help="Also write the result as JSON; '-' is standard output.")
def inspect(model: Path, json_to: str | None) -> None:
    """Show what a model file says about itself, and where graphprune made it from."""
    from rich.table import Table

    from .provenance import inspect as read

    check_outputs([json_path(json_to)], lambda: files_read(model))
    found = read(model)
    table = Table(title=str(model), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in asdict(found).items():
        if not isinstance(value, dict):
            table.add_row(key.replace("_", " "), str(value))
            continue
        for name, entry in value.items():
            table.add_row(f"{key.replace('_', ' ')}: {name}", str(entry))
    if not found.provenance:
        table.add_row("provenance", "none: not written by graphprune")
    report([table], lambda: asdict(found), json_to)
