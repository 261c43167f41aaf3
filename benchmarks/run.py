"""Run the benchmarks, all areas or some, and write JSON, drawings and docs/benchmarks.md.

    python benchmarks/run.py [AREA|all]... [--quick|--full] [--data FOLDER] [--resume]

The areas are the files of areas/.  Start reading at `main`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import results
from areas import AREAS, area
from settings import Settings, Size
from surroundings import commit, load, surroundings

HERE = Path(__file__).resolve().parent


@click.command(help="Measure AREAs (default: all) and write benchmarks/results, docs/benchmarks and docs/benchmarks.md.")
@click.argument("names", nargs=-1, metavar="[AREA]...", type=click.Choice([*AREAS, "all"]))
@click.option("--quick", "size", flag_value="quick", help="Few networks and repeats: some minutes.")
@click.option("--default", "size", flag_value="default", default="default", help="About 35 minutes on two quiet cores.")
@click.option("--full", "size", flag_value="full", help="Everything: hours.")
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Trained networks and data for accuracy."
)
@click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), default=HERE / "cache", help="Where exported networks stay."
)
@click.option(
    "--results", "folder", type=click.Path(file_okay=False, path_type=Path), default=results.FOLDER, help="Where JSON goes."
)
@click.option("--resume", is_flag=True, help="Leave out areas that this commit has measured in this size.")
def main(names: tuple[str, ...], size: Size, data: Path | None, cache: Path, folder: Path, resume: bool) -> None:
    """Each area writes its JSON when it is done, so that a run that was stopped goes on with the next one."""
    folder = folder.resolve()
    wanted = AREAS if not names or "all" in names else [name for name in AREAS if name in names]
    settings = Settings(size, cache.resolve(), data.resolve() if data else None)
    for name in wanted:
        if resume and _is_there(name, size, folder):
            print(f"{name}: there already", file=sys.stderr)
            continue
        print(name, file=sys.stderr, flush=True)
        results.write(name, measured(name, settings), folder)
        subprocess.run([sys.executable, str(HERE / "page.py"), str(folder)], check=True)


def measured(name: str, settings: Settings) -> dict[str, Any]:
    """The results of an area, with where they come from."""
    start, before = time.perf_counter(), load()
    document: dict[str, Any] = {"size": settings.size, "surroundings": surroundings(), "cores": len(os.sched_getaffinity(0))}
    document["rows"] = area(name).measure(settings)
    return {**document, "seconds": round(time.perf_counter() - start), "load": before}


def _is_there(name: str, size: Size, folder: Path) -> bool:
    document = results.read(name, folder)
    return document is not None and document["size"] == size and document["surroundings"]["commit"] == commit()


if __name__ == "__main__":
    main()
