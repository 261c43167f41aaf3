"""From options to a problem: which passes are named, how units score, and the bounds that the user sets.  Targets come later.

Start reading at `formulate`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import registry
from .alignment import steps_of
from .budget import Counts, Problem
from .cost import CostModel
from .errors import CalibrationError, UnreachableError, UsageError
from .evidence import Evidence
from .extras import need
from .graph import operator_name
from .groups import Group
from .inference import Analysis
from .operators import operator_table
from .options import Options
from .site import FREED
from .unconstrained import nested
from .weights import Vector

Step = Callable[[str], None]
"""Called with a short description when a stage begins; for progress displays."""


def check_passes(options: Options) -> None:
    """Raises UsageError for specs that name nothing, MissingExtraError for passes whose extra is not installed."""
    specs = [("importance", options.importance), ("selection", options.selection), *(("repair", s) for s in options.repair or ())]
    for kind, spec in specs:
        extra = registry.make(kind, spec).extra
        if extra:
            need(extra)


def check_supported(analysis: Analysis, options: Options) -> None:
    """Raises UnreachableError where operators without a rule are not to be pinned."""
    if options.on_unsupported == "pin":
        return
    unknown = sorted({operator_name(node) for node in analysis.graph.nodes} - set(operator_table()))
    if unknown:
        raise UnreachableError(f"operators without a rule: {', '.join(unknown)} (--on-unsupported pin keeps what they touch)")


def formulate(evidence: Evidence, model: CostModel, options: Options, step: Step) -> Problem:
    """Groups that may shrink, with scores and bounds, without targets.  Raises UsageError and UnreachableError."""
    analysis = evidence.analysis
    if not analysis.groups:
        freed = sum(pinned.reason.text.endswith(FREED) for pinned in analysis.pinned)
        hint = f"; {freed} of them are statistics, which --normalization kept frees" if freed else ""
        raise UnreachableError(f"nothing can be pruned: every axis is pinned (`graphprune analyze` tells why){hint}")
    frozen = _matching(analysis, options.keep, "--keep", every_member=True)
    fixed = _ratios(analysis, options)
    criterion = seeded(registry.make("importance", options.importance), options)
    groups = analysis.decided
    raw: list[Vector | None] = []
    for batch in evidence.batches() if criterion.sees == "activations" else [groups]:
        for group in batch:
            step(f"scoring channels: group {len(raw) + 1} of {len(groups)}")
            raw.append(_scored(criterion, group, evidence))
    _check_say(criterion.name, analysis, dict(zip(groups, raw, strict=True)))
    for group, score in zip(groups, raw, strict=True):
        if score is None and group.id in fixed:
            raise UsageError(f"--ratio: importance {criterion.name!r} has no say about {group.id!r}; name another, such as path")
    scores = [np.zeros(g.size) if s is None else s for g, s in zip(groups, raw, strict=True)]
    if options.mode == "unconstrained" and options.masks == "nested":
        scores = nested(analysis, groups, scores)
    sizes = np.array([group.size for group in groups], np.int64)
    least = np.minimum(np.maximum(1, options.min_channels), sizes)
    least[[group in analysis.may_leave for group in groups]] = 0
    least = np.maximum(least, [analysis.fewest.get(group, 0) for group in groups])
    least = np.where([group.id in frozen or raw[k] is None for k, group in enumerate(groups)], sizes, least)

    coarse, fine = steps_of(analysis, groups, options.align)
    problem, finer = (Problem(groups, scores, *_bounds(groups, steps, least, fixed), steps, model) for steps in (coarse, fine))
    return problem if np.array_equal(coarse, fine) else replace(problem, finer=finer)


def _scored(criterion: Any, group: Group, evidence: Evidence) -> Vector | None:
    """What a criterion says of a group.  Raises CalibrationError for what is no number."""
    scores: Vector | None = criterion.score(group, evidence)
    if scores is None:
        return None
    if np.isnan(scores).any():
        raise CalibrationError(
            f"importance {criterion.name!r} gives scores for {group.id!r} that are no numbers (are all weights and samples "
            "finite?); name another"
        )
    return evidence.completed(group, scores) if criterion.sees in ("activations", "maps") else scores


def _bounds(groups: Sequence[Group], steps: Counts, least: Counts, fixed: Mapping[str, float]) -> tuple[Counts, Counts]:
    """The fewest and the most units of each group; where the user names a share, both are that, in whole steps."""
    lower, upper = least.copy(), np.array([group.size for group in groups], np.int64)
    for k, group in enumerate(groups):
        if group.id in fixed and lower[k] < group.size:
            wished = max(1, round(fixed[group.id] * group.size / int(steps[k]))) * int(steps[k])
            lower[k] = upper[k] = min(max(wished, int(lower[k])), group.size)
    return lower, upper


def _check_say(name: str, analysis: Analysis, scores: Mapping[Group, Vector | None]) -> None:
    if all(score is None for score in scores.values()):
        raise UnreachableError(f"importance {name!r} has no say about any group of this model; try magnitude")
    experts = [score for group, score in scores.items() if group in analysis.fewest]
    if experts and all(score is None for score in experts):
        raise UsageError(
            f"--experts prune: importance {name!r} has no say about experts, so all would stay; "
            "name one that has, such as --importance path"
        )


def seeded(made: Any, options: Options) -> Any:
    """The pass with the seed of the options, if it has a seed and its own spec names none."""
    return replace(made, seed=options.seed) if getattr(made, "seed", None) == 0 else made


def _matching(analysis: Analysis, patterns: Sequence[str], option: str, every_member: bool) -> set[str]:
    """Ids of the groups that any of the regular expressions matches.  Raises UsageError for one that matches nothing."""
    found: set[str] = set()
    for pattern in patterns:
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{option} {pattern!r} is not a regular expression: {error}") from error
        hits = {g.id for g in analysis.groups if any(regex.search(n) for n in _names(analysis, g, every_member))}
        if not hits and not _matches_pinned(analysis, regex):
            raise UsageError(f"{option} {pattern!r} matches no group, tensor or node (see `graphprune analyze`)")
        found |= hits
    return found


def _names(analysis: Analysis, group: Group, every_member: bool) -> set[str]:
    members = [m for m in group.members if every_member or m.role == "producer"]
    return {group.id, *(m.tensor for m in members), *(analysis.graph.nodes[m.node].name for m in members)}


def _matches_pinned(analysis: Analysis, regex: re.Pattern[str]) -> bool:
    return any(regex.search(name) for name in analysis.graph.initializers) or any(
        regex.search(node.name) for node in analysis.graph.nodes
    )


def _ratios(analysis: Analysis, options: Options) -> dict[str, float]:
    fixed: dict[str, float] = {}
    for text in options.ratios:
        pattern, equals, value = text.rpartition("=")
        try:
            ratio = float(value)
        except ValueError:
            ratio = -1.0
        if not equals or not 0 < ratio <= 1:
            raise UsageError(f"--ratio {text!r} is not of the form REGEX=VALUE with a value above 0 and at most 1")
        fixed |= dict.fromkeys(_matching(analysis, [pattern], "--ratio", every_member=False), ratio)
    return fixed
