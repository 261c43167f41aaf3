"""Recipes: which passes run where the user names none.

A recipe fills in what was left open: how channels are scored, how the budget is spread, how weights are repaired.  The passes
that were named stay.  Start reading at `resolved`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import UsageError
from .options import Options


@dataclass(frozen=True)
class Recipe:
    """The passes of one recipe, as specs."""

    importance: str
    selection: str
    repair: tuple[str, ...]
    text: str
    unseen: str = ""
    """The importance where samples are made up, if another: what outputs do on those says little about real ones."""


RECIPES = {
    "fast": Recipe("path", "global", (), "weights alone, nothing is run: seconds for any size"),
    "balanced": Recipe(
        "probed", "distortion", ("reconstruct",), "second-order scores, least total error, least squares in every layer", "obspa"
    ),
    "depth": Recipe("removal", "blocks", ("reconstruct",), "whole residual branches: the fewest operations left, coarse steps"),
    "best": Recipe(
        "probed", "distortion", ("reconstruct", "polish"), "balanced, then all weights by gradients (extra torch)", "obspa"
    ),
}
"""The recipes by name, from the fastest to the most thorough."""


MADE_UP_MACS = 4 * 10**11
"""The work that one run over made up samples may be: some ten seconds."""


def resolved(options: Options) -> Options:
    """The options with every pass named.  Raises UsageError for an unknown recipe."""
    runs_anyway = options.calibration is not None or bool(options.repair)
    name = options.recipe or ("balanced" if runs_anyway else "fast")
    if name not in RECIPES:
        raise UsageError(f"no recipe is called {name!r}; there are: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    return replace(
        options,
        recipe=name,
        importance=options.importance or (options.samples_made_up and recipe.unseen) or recipe.importance,
        selection=options.selection or recipe.selection,
        repair=options.repair if options.repair is not None else recipe.repair,
    )
