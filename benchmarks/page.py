"""Write docs/benchmarks.md and its drawings from the JSON in benchmarks/results.

    python benchmarks/page.py [FOLDER]

With a FOLDER of other results, page and drawings go there.  Start reading at `page`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import results
from areas import AREAS, area
from page_tables import table

from graphprune.atomic import atomic_file

DOCS = Path(__file__).resolve().parent.parent / "docs"

HEAD = """# Benchmarks

This page is generated from the JSON in [`benchmarks/results`](../benchmarks/results) by `benchmarks/page.py`.
`make benchmarks` measures everything anew, on your machine, and writes it again;
[`benchmarks/README.md`](../benchmarks/README.md) says how.

graphprune stands beside [Torch-Pruning](https://github.com/VainF/Torch-Pruning), `onnxsim.pruning` of
[onnxsim](https://pypi.org/project/onnxsim/) and [apple-upscale](https://github.com/apple/ml-upscale) where they apply. Every tool
runs in a process of its own; all of an area run on one machine, in one run. A figure with a range is a median with the smallest
and the largest of its repeats. What failed is shown as failed, with the first line of the error. `make reproduce` measures again
and compares: verdicts and counts must be the same, and ranges, each widened by a tenth, must overlap."""

SIZES = {
    "quick": "a quick run: few networks, few repeats",
    "default": "a run of the default size",
    "full": "a full run",
}


def page(folder: Path, plots: Path) -> str:
    """The text; areas that were not measured are left out."""
    documents = {name: document for name in AREAS if (document := results.read(name, folder)) is not None}
    lines = [HEAD, ""]
    for name, document in documents.items():
        lines += [f"## {area(name).TITLE}", "", _origin(document), ""]
        if (plots / f"{name}.svg").exists():
            lines += [f"![{area(name).TITLE}, drawn](benchmarks/{name}.svg)", ""]
        lines += area(name).section(document["rows"])
    lines += ["## Where this was measured", ""]
    for names, surroundings in _groups(documents):
        lines += [
            f"{', '.join(area(name).TITLE for name in names)}:",
            "",
            *table(["", ""], [list(each) for each in surroundings.items()]),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _origin(document: dict[str, Any]) -> str:
    """When, how much, and how busy the machine was before; what the benchmark itself does is not other work."""
    before, cores = document["load"], document["cores"]
    date, minutes = document["surroundings"]["date"][:10], max(1, round(document["seconds"] / 60))
    text = f"*{date}, {SIZES[document['size']]}, {minutes} minutes. Before it began, {before} processes wanted {cores} cores.*"
    if before > 0.5 * cores:
        text += " **The machine was busy with other work: trust ratios and counts, not seconds.**"
    return text


def _groups(documents: dict[str, Any]) -> list[tuple[list[str], dict[str, str]]]:
    """Areas with the same surroundings (but for the date) share a table."""
    found: list[tuple[list[str], dict[str, str]]] = []
    for name, document in documents.items():
        mine = {key: value for key, value in document["surroundings"].items() if key != "date"}
        same = next((names for names, other in found if other == mine), None)
        if same is None:
            found.append(([name], mine))
        else:
            same.append(name)
    return found


def draw(name: str, folder: Path, plots: Path) -> None:
    """One area as SVG: text stays text, and the same figures give the same file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "graphprune", "svg.fonttype": "none"})
    from matplotlib import pyplot

    document = results.read(name, folder)
    if document is None:
        return
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    area(name).plot(document["rows"], axes)
    axes.set_title(area(name).TITLE)
    plots.mkdir(parents=True, exist_ok=True)
    with atomic_file(plots / f"{name}.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def write(folder: Path = results.FOLDER) -> None:
    """The page and its drawings: in docs/, or beside results that are elsewhere."""
    docs = DOCS if folder == results.FOLDER else folder
    for name in AREAS:
        draw(name, folder, docs / "benchmarks")
    with atomic_file(docs / "benchmarks.md") as path:
        path.write_text(page(folder, docs / "benchmarks"), encoding="utf-8")


if __name__ == "__main__":
    write(*(Path(each).resolve() for each in sys.argv[1:2]))
