"""Whether a second run of the benchmarks says what the first one said.

    python benchmarks/reproduce.py FOLDER [FIRST]      (FIRST: benchmarks/results)

Verdicts and counts must be the same; the ranges of ratios, each widened by a tenth, must overlap: repeats follow one another,
and a machine differs more between an hour and the next.  Exit code 1 where they do not.  Start reading at `differences`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import results
from areas import AREAS, area
from results import Spread

MARGIN = 0.1


def differences(first: Path, second: Path) -> tuple[int, list[str]]:
    """How many figures both runs have, and a line for each that differs."""
    compared, lines = 0, []
    for name in AREAS:
        documents = [results.read(name, folder) for folder in (first, second)]
        one, two = (area(name).figures(document["rows"]) if document else {} for document in documents)
        for key in (key for key in one if key in two):
            compared += 1
            if not agree(one[key], two[key]):
                lines.append(f"{name}: {key}: {_text(one[key])}, then {_text(two[key])}")
    return compared, lines


def agree(one: Spread | str, two: Spread | str) -> bool:
    """Widened ranges overlap, words are equal."""
    if isinstance(one, Spread) and isinstance(two, Spread):
        return one.overlaps(two, MARGIN)
    return one == two


def _text(figure: Spread | str) -> str:
    return figure if isinstance(figure, str) else figure.text(3)


def main() -> None:
    """Print what differs."""
    compared, lines = differences(Path(sys.argv[2]) if len(sys.argv) > 2 else results.FOLDER, Path(sys.argv[1]))
    print("\n".join([*lines, f"{compared - len(lines)} of {compared} figures are reproduced"]))
    sys.exit(1 if lines or not compared else 0)


if __name__ == "__main__":
    main()
